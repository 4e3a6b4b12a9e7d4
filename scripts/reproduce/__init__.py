"""Published tables, the runs behind them, and what the runs found beside what was published."""
