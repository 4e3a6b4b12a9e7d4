"""What the code of one day gives, kept to be compared with what later code gives.

    python scripts/golden.py files              # model files and run directories, made anew

Everything is asked for through names that stay: commands, `prunekit.prune`, classes of settings.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import golden_files


def main() -> int:
    """Do what the first argument says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    actions = parser.add_subparsers(dest="action", required=True)
    files = actions.add_parser("files", help="write model files and run directories anew")
    files.add_argument("--out", type=Path, default=golden_files.FILES)
    given = parser.parse_args()
    golden_files.make(given.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
