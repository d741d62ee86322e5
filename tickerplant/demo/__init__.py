"""The demonstration: a simulated exchange, the plant and a subscriber as three processes, and the proof at the end."""
