"""Table 4 of Hinge: ResNet-50 on ImageNet, searched and tuned from the weights of torchvision.

The settings of this row were not published: `hinge_resnet50_imagenet` says which are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from every_experiment import Experiment
from measured import IMAGENET, NOT_RUN, QUOTED, Row, a_gpu, metrics, spread
from tables import TAIL, Job

NAME = "hinge_resnet50_imagenet"
MACS, EPOCHS = 4.089e9, 30 + 60 / 2  # of the search, at most, and of tuning half of the network
TITLES = ("seeds", "top-1 error", "increase", "MACs %", "params %", "needs")


@dataclass(frozen=True)
class Extent:
    """How the run is set, and with which seeds."""

    settings: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)


SCALES = {
    "paper": Extent((f"experiment={NAME}", "model.weights=IMAGENET1K_V1")),
    "smoke": Extent(Experiment.read(NAME).small().overrides),
}


def jobs(extent: Extent) -> list[Job]:
    """All stages of every seed."""
    return [_job(extent, seed) for seed in extent.seeds]


def measured(root: Path, extent: Extent, fact: Mapping[str, str]) -> Row:
    """What the runs found beside Hinge's own row; others are quoted and need nothing."""
    blank = {"seeds": 0, **dict.fromkeys(TITLES[1:-1], NOT_RUN)}
    if fact["method"] != "Hinge":
        return {**blank, **dict.fromkeys(TITLES[1:-1], "-"), "needs": QUOTED}
    found = [metrics(root, _job(extent, seed).name, "measure") for seed in extent.seeds]
    done = [one for one in found if one is not None]
    if not done:
        return {**blank, "needs": f"{a_gpu('ImageNet', MACS, IMAGENET * EPOCHS)}, {NAME}"}
    columns = (
        [100 - one["top1"] for one in done],
        [one["dense_top1"] - one["top1"] for one in done],
        *([100 * one[key] / one[f"dense_{key}"] for one in done] for key in ("macs", "params")),
    )
    return dict(zip(TITLES, (len(done), *map(spread, columns), ""), strict=True))


def _job(extent: Extent, seed: int) -> Job:
    stages = ("pretrain", "sparsify", *TAIL)
    return Job(f"hinge_imagenet/seed{seed}", (*extent.settings, f"seed={seed}"), stages)
