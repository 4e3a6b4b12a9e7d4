"""Commands run in this process, in an empty directory; see tests/cli."""

from __future__ import annotations

from cli.conftest import cli

__all__ = ["cli"]
