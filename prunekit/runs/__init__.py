"""Run directories: their files, locks, reports, and what jobs of a sweep share."""
