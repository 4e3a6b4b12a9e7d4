"""SSR's table VII: what table IV made of VGG-16 goes on with CUB-200, with a new last layer.

The unpruned network of the first row goes the same way. Rates and epochs are those of a published
recipe for the same network (`configs/schedule/ssr_cub.yaml`): the paper states none.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import ssr_imagenet as imagenet
from measured import NOT_RUN, Row, a_gpu, metrics, spread
from ssr_imagenet import Extent, Line
from tables import Job

NETWORK = "VGG-16"
IMAGES, EPOCHS = 5_994, 21  # of the training set; of the recipe
TITLES = ("seeds", "top-1 error", "MACs", "params", "needs")
SCALES = imagenet.SCALES
TUNING = ("schedule=ssr_cub", "head=linear", "head.rate=10", "dataset=cub200")
FEW = ("head=linear", "head.rate=10", "dataset.classes=5")


def line(fact: Mapping[str, str]) -> Line | None:
    """The row of table IV whose network a row starts from; None for the unpruned one."""
    return None if "unpruned" in fact["method"] else Line(NETWORK, fact["method"], 1)


def jobs(facts: list[Mapping[str, str]], extent: Extent) -> list[Job]:
    """Table IV's networks, as far as they are wanted, and their tuning."""
    starts = [one for fact in facts if (one := line(fact)) is None or one.method in extent.methods]
    before = imagenet.jobs([one for one in starts if one is not None], extent)
    return before + [transfer(one, extent, seed) for seed in extent.seeds for one in starts]


def transfer(start: Line | None, extent: Extent, seed: int) -> Job:
    """Tuning on CUB-200 from a network that was tuned on ImageNet."""
    if start is None:
        base, stage = imagenet.dense(NETWORK, extent, seed), "pretrain"
    else:
        base, stage = imagenet.row(start, extent, seed), "finetune"
    name = base.name.replace("ssr_imagenet", "ssr_cub")
    plain = imagenet.shared(Line(NETWORK, imagenet.BASE, 1), extent, seed)
    more = FEW if extent.small else TUNING
    return Job(name, (*plain, *more), ("finetune", "measure"), base.name, stage)


def measured(root: Path, extent: Extent, fact: Mapping[str, str]) -> Row:
    """What the runs of a row found, over the seeds that have finished; else what it needs."""
    start = line(fact)
    wanted = start is None or start.method in extent.methods
    runs = [transfer(start, extent, seed).name for seed in extent.seeds if wanted]
    found = [one for run in runs if (one := metrics(root, run, "measure"))]
    if not found:
        return {"seeds": 0, **dict.fromkeys(TITLES[1:-1], NOT_RUN), "needs": needs(start)}
    error = spread([100 - one["top1"] for one in found])
    sizes = (spread([one[key] for one in found], "{:,.0f}") for key in ("macs", "params"))
    return dict(zip(TITLES, (len(found), error, *sizes, ""), strict=True))


def needs(start: Line | None) -> str:
    """What a run takes, if no filter was gone."""
    source = "ImageNet weights" if start is None else f"the run of {start.method} in ssr_table4"
    return f"{a_gpu('CUB-200-2011', imagenet.MACS[NETWORK], IMAGES * EPOCHS)}, {source}"
