"""Published tables, the runs behind them, and measured beside published figures."""
