"""`prunekit run` in processes of their own that start at once.

Importing PyTorch and prunekit takes longer than a small run. One server imports them, once; every
run is forked from it, so that runs share no state and one that dies takes no other with it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from pathlib import Path

_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
_CONTEXT = multiprocessing.get_context(_METHOD)
_CONTEXT.set_forkserver_preload(["prunekit.stages.pipeline", "torch._dynamo", "hydra"])


def prunekit_run(arguments: Sequence[str], log: Path) -> int:
    """Run the command to its end, its output in `log`; returns its exit code."""
    process = _CONTEXT.Process(target=_run, args=(list(arguments), str(log)))
    process.start()
    process.join()
    return process.exitcode or 0


def _run(arguments: list[str], log: str) -> None:
    with open(log, "w") as file:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    from prunekit.cli import main

    main(["run", *arguments])
