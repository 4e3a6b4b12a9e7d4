"""Write what classes say of their settings behind the keys of the config files.

    python scripts/comment_configs.py          # rewrites configs/**/*.yaml
    python scripts/comment_configs.py --check  # names the files that it would change

A key is commented once in a file, where it stands in a line of its own. Lines that hold only a
comment are left alone, and so is what stands behind keys of which no class says anything.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from prunekit.build import locate
from prunekit.comments import keys, package, write_comments
from prunekit.config import config_dir
from prunekit.schema import settings_of
from prunekit.stages.settings import Root


def told(text: str, at: str) -> dict[tuple[str, str], str]:
    """Return the comments of the classes on the settings that a file names."""
    owners = {key.owner for key in keys(text, at)}
    makers = {owner: locate(owner) for owner in owners if owner.startswith("prunekit.")}
    return _comments(makers)


def _comments(makers: Mapping[str, Callable[..., object]]) -> dict[tuple[str, str], str]:
    found = {(o, s.name): s.comment for o, made in makers.items() for s in settings_of(made)}
    return {key: comment for key, comment in found.items() if comment}


def written(file: Path) -> str:
    """Return the text of the file as it should be."""
    text = file.read_text(encoding="utf-8")
    if file == config_dir() / "config.yaml":
        return write_comments(text, _comments({"": Root}))
    at = package(config_dir(), file, text)
    return write_comments(text, told(text, at), at)


def main() -> None:
    """Rewrite the files, or name those that would change."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, fail if it would")
    check = parser.parse_args().check
    stale = [f for f in sorted(config_dir().rglob("*.yaml")) if written(f) != f.read_text()]
    for file in stale:
        sys.stdout.write(f"{file.relative_to(config_dir().parent)}\n")
        if not check:
            file.write_text(written(file), encoding="utf-8")
    if stale and check:
        sys.exit(1)


if __name__ == "__main__":
    main()
