"""Subscriber library of the ticker plant."""
