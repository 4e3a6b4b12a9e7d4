"""Settings of small runs, and what commands say."""

from __future__ import annotations

from cli.conftest import Result

from scripts.faults.results import TIMED_NOTE

SMALL = (
    *("dataset.train=96", "dataset.val=32", "dataset.test=40", "model.widths=[4,6,12]"),
    *("selection=per_layer", "diagnose=false"),
)
STAGES = "pipeline=[pretrain,sparsify,prune,finetune]"


def told(result: Result) -> list[str]:
    """What a command that ended well complained of, line by line, but for what a clock says."""
    assert result.code == 0, result.err
    return [line for line in result.err.splitlines() if TIMED_NOTE not in line]


def refused(result: Result) -> str:
    """The one line with which a command ended."""
    assert result.code == 1, result.out
    (line,) = result.err.splitlines()
    assert line.startswith("prunekit: ")
    return line
