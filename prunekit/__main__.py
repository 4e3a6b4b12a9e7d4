"""`python -m prunekit` is the console command."""

from prunekit.cli import main

main()
