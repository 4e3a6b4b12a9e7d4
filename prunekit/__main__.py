"""Run the console command as `python -m prunekit`."""

from prunekit.cli import main

main()
