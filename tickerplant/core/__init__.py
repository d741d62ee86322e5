"""The pure core: bytes and `now_ns` in, messages and bytes out; no clock, no socket, no loop."""
