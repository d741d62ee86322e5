"""The Kalshi feed: wire messages, protocol and normalisation (pure); session, REST, discovery (I/O)."""
