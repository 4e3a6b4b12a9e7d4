"""Faults that are done to small runs, and what becomes of the runs."""
