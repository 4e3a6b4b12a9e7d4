"""Measurements of speed, of exactness, and of which networks can be pruned."""
