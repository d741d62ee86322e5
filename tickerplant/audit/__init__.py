"""The proof: exchange frames, tick log and recordings of one session account for every message, or a hole is named."""
