"""Table IV of Liu et al. 2017: VGG-19 pruned in several passes, each from the tuned network before.

Half of all scales goes in a pass, by one threshold, but of every layer at most half, as published.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from measured import NOT_RUN, Row, metrics, spread
from slimming_tables import DATASETS, Cell, Extent, dense, needs
from slimming_tables import SCALES as SLIMMING
from tables import Job

PASSES = 6
NETWORK = "VGG-19"
TITLES = ("error, sparse", "error", "params pruned %", "MACs pruned %")
NARROW = (
    *("model._target_=prunekit.models.VGG", "+model.average=true"),
    "+model.blocks=[[8,8],[12,12],[16,16,16,16],[24,24,24,24],[24,24,24,24]]",
)
SCALES = {
    "paper": replace(SLIMMING["paper"], datasets=("CIFAR-10", "CIFAR-100"), networks=(NETWORK,)),
    "short": replace(SLIMMING["short"], networks=(NETWORK,)),
    "smoke": replace(SLIMMING["smoke"], networks=(NETWORK,), own=((NETWORK, NARROW),)),
}


def jobs(extent: Extent) -> list[Job]:
    """Every pass, and the dense network that shares are of."""
    found = []
    for seed in extent.seeds:
        for data in extent.datasets:
            found.append(dense(extent, Cell(data, NETWORK, 0), seed))
            found += [one_pass(extent, data, seed, number) for number in range(1, PASSES + 1)]
    return found


def one_pass(extent: Extent, data: str, seed: int, number: int) -> Job:
    """Trained under l1, cut, tuned; the first pass starts from nothing."""
    place = f"ns_multipass/{DATASETS[data]}/seed{seed}/pass"
    half = ("selection.ratio=0.5", "selection.most=0.5", f"seed={seed}")
    settings = (*extent.settings(Cell(data, NETWORK, 50)), *half)
    before = f"{place}{number - 1}" if number > 1 else None
    return Job(f"{place}{number}", settings, ("sparsify", "prune", "finetune"), before)


def measured(root: Path, extent: Extent, fact: Mapping[str, str]) -> Row:
    """What a pass found, over the seeds that have finished; else what it needs."""
    data, number = fact["dataset"], int(fact["iter"])
    found = []
    for seed in extent.seeds if data in extent.datasets else ():
        run = one_pass(extent, data, seed, number).name
        sparse, tuned = (metrics(root, run, stage) for stage in ("sparsify", "finetune"))
        whole = metrics(root, dense(extent, Cell(data, NETWORK, 0), seed).name, "pretrain")
        if sparse and tuned and whole:
            gone = (100 - 100 * tuned[key] / whole[key] for key in ("params", "macs"))
            found.append((100 - sparse["top1"], 100 - tuned["top1"], *gone))
    if not found:
        work = f"{needs(Cell(data, NETWORK, 50))} at most, after the pass before"
        return {"seeds": 0, **dict.fromkeys(TITLES, NOT_RUN), "needs": work}
    columns = zip(TITLES, zip(*found, strict=True), strict=True)
    return {
        "seeds": len(found),
        **{title: spread(values) for title, values in columns},
        "needs": "",
    }
