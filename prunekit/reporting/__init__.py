"""Reports of finished runs: tables, figures, and one page."""
