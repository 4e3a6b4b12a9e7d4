"""Hinge, tables 1 and 2: what Li et al. 2020 report, beside runs here; table 4 and the plots below.

Table 3, the ablations and the text on ImageNet were not at hand.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from measured import (
    NOT_RUN,
    Row,
    a_gpu,
    metrics,
    publish,
    refuse_empty,
    spread,
    write_markdown,
)
from tables import TAIL, Job

PUBLISHED = Path(__file__).parent / "published"
NETWORKS = {
    "ResNet20": "resnet20",
    "ResNet56": "resnet56",
    "ResNet164": "resnet164",
    "ResNeXt20": "resnext20",
    "ResNeXt164": "resnext164",
    "VGG16": "vgg16",
    "DenseNet-12-40": "densenet40",
    "WRN": "wrn16_10",
}
DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100"}
FLOPS = {  # of one image, by the released counter
    "ResNet20": 41.1e6,
    "ResNet56": 127.1e6,
    "ResNet164": 257.3e6,
    "ResNeXt20": 36.8e6,
    "ResNeXt164": 259.6e6,
    "VGG16": 314.6e6,
    "DenseNet-12-40": 290.1e6,
    "WRN": 3123.1e6,
}
EPOCHS = {"WRN": 300 + 200 + 200}  # of training, search (at most) and tuning
USUAL_EPOCHS = 300 + 200 + 300
IMAGES = 45_000  # for training, after the validation split
REPORTED = {
    "top1_error": "paper error",
    "baseline_error": "paper BL",
    "flops_remaining_pct": "paper FLOPs %",
    "params_remaining_pct": "paper params %",
}
MEASURED = ("error, dense", "error, pruned", "error", "MACs %", "params %", "epochs of search")
HEAD = (
    "Published figures are those of Li et al. 2020, in percent: top-1 error, BL that of the dense "
    "network, and what is left of FLOPs and parameters. FLOPs as published count norms and some "
    "ReLUs too, MACs here convolutions and linear layers. Measured: mean and standard deviation "
    "over seeds. Hours that a run needs are computed, not timed. The released code scrambles some "
    "weights of ResNet164 and ResNeXt when it compacts them, before tuning; here none are. Table 3 "
    "and the ablations were not at hand."
)


@dataclass(frozen=True, order=True)
class Cell:
    """One Hinge row of the published tables; `flops` is the share left, as printed."""

    dataset: str
    network: str
    method: str
    flops: str

    def experiment(self) -> tuple[str, ...]:
        """The overrides that run it."""
        network = NETWORKS[self.network] + ("_24" if self.flops == "24.0" else "")
        more = ("solver.annealing=null",) if self.method.startswith("Hinge-NA") else ()
        more += ("selection.keep=0.7556",) if self.flops.startswith("75.") else ()
        return (f"experiment=hinge_{network}_{DATASETS[self.dataset]}", *more)


@dataclass(frozen=True)
class Extent:
    """Which rows are run, and how: overrides of all jobs, and those of one network."""

    said: str
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    networks: tuple[str, ...] = tuple(NETWORKS)
    overrides: tuple[str, ...] = ()
    own: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def runs(self, cell: Cell) -> bool:
        """Whether a published row is run."""
        return cell.dataset in self.datasets and cell.network in self.networks

    def settings(self, cell: Cell, seed: int) -> tuple[str, ...]:
        """The overrides of a row."""
        own = dict(self.own).get(cell.network, ())
        return (*cell.experiment(), *self.overrides, *own, f"seed={seed}")


STRONG = "regularizer.lam=0.02"
SCALES = {
    "paper": Extent("The published schedule.", (0, 1, 2), tuple(DATASETS)),
    "short": Extent(
        "The 8,336 exact CIFAR-10 images, 8 + 8 + 4 epochs, a hundred times the published lam.",
        seeds=(0,),
        datasets=("CIFAR-10",),
        overrides=("schedule=hinge_short", "dataset.only_exact=true", "dataset.val=836", STRONG),
    ),
    "smoke": Extent(
        "ResNet-20 and ResNeXt-20 on synthetic images: shows that all runs, and nothing else.",
        seeds=(0,),
        datasets=("CIFAR-10",),
        networks=("ResNet20", "ResNeXt20"),
        overrides=(
            *("dataset=synthetic", "dataset.channels=3", "dataset.image_size=32", "schedule=smoke"),
            *("dataset.train=160", "dataset.val=32", "dataset.test=50"),
            *("diagnose=false", "latency.runs=5", "latency.batch=8"),
        ),
    ),
}


def table1(extent: Extent) -> list[Job]:
    """Every run of both tables: the dense networks, and what each row makes of them."""
    jobs: dict[str, Job] = {}
    for seed in extent.seeds:
        for cell in (cell for cell in published() if extent.runs(cell)):
            for job in (dense(extent, cell, seed), pruned(extent, cell, seed)):
                jobs.setdefault(job.name, job)
    return list(jobs.values())


def dense(extent: Extent, cell: Cell, seed: int) -> Job:
    """The network that all rows of it start from."""
    plain = Cell(cell.dataset, cell.network, "Hinge", "")
    return Job(f"{_place(cell, seed)}/dense", extent.settings(plain, seed), ("pretrain",))


def pruned(extent: Extent, cell: Cell, seed: int) -> Job:
    """One row: searched, pruned, tuned, measured."""
    name = f"{_place(cell, seed)}/{cell.method.split()[0]}-{cell.flops}"
    stages = ("sparsify", *TAIL)
    return Job(name, extent.settings(cell, seed), stages, dense(extent, cell, seed).name)


def _place(cell: Cell, seed: int) -> str:
    return f"hinge_t1/{DATASETS[cell.dataset]}/{NETWORKS[cell.network]}/seed{seed}"


@cache
def published() -> dict[Cell, Row]:
    """Every Hinge row of tables 1 and 2, to its figures as printed there."""
    return {
        Cell(fact["dataset"], fact["model"], fact["method"], fact["flops_remaining_pct"]): {
            title: fact[key] for key, title in REPORTED.items()
        }
        for name in ("hinge_table1", "hinge_table2")
        for fact in _facts(name)
        if fact["method"].startswith("Hinge")
    }


def _facts(name: str) -> list[dict[str, str]]:
    return _lines(PUBLISHED / f"{name}.csv")


def _lines(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def write_table1(root: Path, out: Path, extent: Extent) -> None:
    """Both tables with what was measured."""
    rows = [_row(root, extent, cell) for cell in published()]
    refuse_empty(rows)
    write_markdown(
        out / "hinge_t1.md",
        f"{HEAD} Runs: {extent.said}\n",
        publish(out, "hinge_t1", "Hinge, tables 1 and 2: published beside measured", rows),
    )


def _row(root: Path, extent: Extent, cell: Cell) -> Row:
    head = {"data": cell.dataset, "network": cell.network, "method": cell.method}
    found = measured_cell(root, extent, cell) if extent.runs(cell) else _blank()
    return {**head, **published()[cell], **found, "needs": "" if found["seeds"] else needs(cell)}


def _blank() -> Row:
    return {"seeds": 0, **dict.fromkeys(MEASURED, NOT_RUN)}


def measured_cell(root: Path, extent: Extent, cell: Cell) -> Row:
    """What the runs of a row found, over the seeds that have finished."""
    found = [_of_seed(root, extent, cell, seed) for seed in extent.seeds]
    done = [one for one in found if one]
    if not done:
        return _blank()
    return {"seeds": len(done), **{key: spread([one[key] for one in done]) for key in MEASURED}}


def _of_seed(root: Path, extent: Extent, cell: Cell, seed: int) -> Row | None:
    run, base = pruned(extent, cell, seed).name, dense(extent, cell, seed).name
    last, before = metrics(root, run, "finetune"), metrics(root, base, "pretrain")
    if last is None or before is None:
        return None
    return {
        "error, dense": 100 - before["top1"],
        "error, pruned": 100 - metrics(root, run, "prune")["top1"],
        "error": 100 - last["top1"],
        "MACs %": 100 * last["macs"] / before["macs"],
        "params %": 100 * last["params"] / before["params"],
        "epochs of search": len(_lines(root / run / "sparsify" / "metrics.csv")),
    }


def needs(cell: Cell) -> str:
    """What a run of the published schedule takes."""
    epochs = EPOCHS.get(cell.network, USUAL_EPOCHS)
    return a_gpu(cell.dataset, FLOPS[cell.network], IMAGES * epochs)
