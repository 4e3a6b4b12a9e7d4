"""A run of a copy of a network, written down step by step."""
