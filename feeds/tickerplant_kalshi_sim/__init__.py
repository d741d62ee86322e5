"""A simulated Kalshi exchange: a real WebSocket and REST server, usable as a product feature."""
