"""What comparisons on the exact CIFAR-10 images share: how much is done, and where they start."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tables import Job

WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet56": "resnet56-4bfd9763.th"}
TINY = (  # overrides that run everything on next to nothing
    *("dataset=synthetic", "dataset.channels=3", "dataset.image_size=32", "dataset.val=32"),
    *("~dataset.only_exact", "~dataset.mean", "~dataset.std", "dataset.train=160"),
    *("schedule=smoke", "latency.runs=5", "latency.batch=8", "diagnose=false"),
)


@dataclass(frozen=True)
class Extent:
    """How much is done: seeds, overrides of every job; without `weights` a network trained here."""

    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()
    weights: bool = True
    larger: bool = True


SCALES = {
    "short": Extent((0, 1, 2), ("latency.seconds=5",)),
    "smoke": Extent(seeds=(0,), overrides=TINY, weights=False, larger=False),
}


def start(
    name: str, settings: tuple[str, ...], weights: bool, data: str, model: str = "resnet20"
) -> Job:
    """The published weights, beside the folder of the data, not trained any further.

    Without `weights` a network of another seed is trained.
    """
    place = Path(data).parent / "weights" / WEIGHTS[model]
    given = (f"weights={place}", "schedule.pretrain.epochs=0") if weights else ("seed=1",)
    return Job(name, (*settings, *given), ("pretrain",))
