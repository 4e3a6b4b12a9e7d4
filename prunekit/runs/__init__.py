"""Run directories, reports, tables and plots."""
