"""Commands of prunekit run in this process, quietly, and what they say when they refuse."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.core.global_hydra import GlobalHydra

from prunekit.cli import main


@dataclass(frozen=True)
class Ended:
    """The exit code of a command, and everything it printed."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """Return the last line of its complaints that is not empty."""
        lines = [line.strip() for line in self.err.splitlines() if line.strip()]
        return lines[-1] if lines else ""


def call(place: Path, *arguments: str) -> Ended:
    """Run a command in the folder `place`; this process is left as it was."""
    argv, before, handlers = sys.argv, os.getcwd(), list(logging.getLogger().handlers)
    level, threads = logging.getLogger().level, torch.get_num_threads()
    out, err, code = io.StringIO(), io.StringIO(), 0
    os.chdir(place)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            main(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os.chdir(before)
        sys.argv = argv
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
        GlobalHydra.instance().clear()
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    return Ended(code, out.getvalue(), err.getvalue())
