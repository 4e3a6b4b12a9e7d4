"""Recordings of forward passes of a network."""
