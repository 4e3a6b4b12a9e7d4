"""Reports of runs: what is read from them, tables, figures, one page."""
