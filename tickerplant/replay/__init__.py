"""What `tickerplant replay` and `tickerplant capture` do: recordings as datagrams, on multicast, in other formats."""
