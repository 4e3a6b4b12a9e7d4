"""The small runs that faults are done to, made once, and what they give undisturbed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from scripts.faults.children import Children
from scripts.faults.results import numbers

_PLAIN = (
    *("model.widths=[4,6,12]", "schedule=smoke", "selection=per_layer", "diagnose=false"),
    *(f"schedule.{stage}.epochs=2" for stage in ("pretrain", "sparsify", "finetune")),
    *(f"schedule.{stage}.batch=16" for stage in ("pretrain", "sparsify", "finetune")),
    *("solver=aulm", "solver.inner=3", "sensitivity.shares=[0.5]", "sensitivity.timing=null"),
    *("runtime.device=cpu", "runtime.threads=1"),
    *("latency.runs=5", "latency.warmup=1", "latency.seconds=0.01"),
)
SMALL = ("dataset=synthetic", "dataset.train=96", "dataset.val=32", "dataset.test=40", *_PLAIN)
MNIST = ("dataset=mnist", "dataset.val=20", *_PLAIN)  # for images in the folder data
STEPS = 24  # of the optimizer in a whole run: four an epoch, two epochs, three stages
ALL = ("run", *SMALL, "pipeline=[pretrain,sparsify,sensitivity,prune,finetune,measure]")
TRAINED = ("run", *SMALL, "pipeline=[pretrain,sparsify,prune,finetune]")
WHOLE = (*ALL, "name=whole")
BEGUN = (*TRAINED, "name=begun")


@dataclass
class SmallRuns:
    """Folders with small runs below `path`, to be copied into the place of a fault.

    `whole` holds a run whose stages are all finished, `begun` one that was killed in the fourteenth
    step, in the middle of sparsify's second epoch, `trained` the same one, finished.
    """

    path: Path
    _numbers: dict[str, dict[str, object]] = field(default_factory=dict)

    def make(self, children: Children) -> None:
        """Make what is missing."""
        kill = {"save_every_step": True, "kill_in_step": 14}
        makers = {
            "whole": partial(self._make, children, "whole", WHOLE, 0),
            "begun": partial(self._make, children, "begun", BEGUN, -9, **kill),
            "trained": partial(self._make, children, "trained", (*TRAINED, "name=trained"), 0),
        }
        for name, make in makers.items():
            if not (self.path / name / "done").exists():
                make()

    def numbers(self, name: str) -> dict[str, object]:
        """Return the numbers of an undisturbed run."""
        if name not in self._numbers:
            run = "trained" if name == "begun" else name
            self._numbers[name] = numbers(self.path / run / "outputs" / run)
        return self._numbers[name]

    def _make(
        self, children: Children, name: str, line: tuple[str, ...], code: int, **trouble: object
    ) -> None:
        place = self.path / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        ended = children.run(place, *line, **trouble)
        if ended.code != code:
            raise SystemExit(f"the small run {name!r} ended with {ended.code}: {ended.err}")
        (place / "done").touch()
