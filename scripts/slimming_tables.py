"""Network slimming's table I: what Liu et al. 2017 and the PyTorch port report, beside runs here.

The published figures are those of the l1 method alone. The tables of the paper on nonconvex
penalties (Bui et al. 2021) are not at hand, so its penalties have measured columns only.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from measured import (
    NOT_RUN,
    Row,
    a_gpu,
    metrics,
    publish,
    refuse_empty,
    spread,
    verdict,
    write_markdown,
)
from slim_resnet20 import PENALTIES, folder
from tables import TAIL, Job

from prunekit.methods.slimming import slimming_flops
from prunekit.surgery import load_model

PUBLISHED = Path(__file__).parent / "published"
NETWORKS = {"VGG-19": "vgg19", "DenseNet-40": "densenet40", "ResNet-164": "preresnet164"}
DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "SVHN": "svhn"}
# training images after the validation split, epochs of sparse training and of tuning together
WORK = {"CIFAR-10": (45_000, 320), "CIFAR-100": (45_000, 320), "SVHN": (598_388, 40)}
MACS = {"VGG-19": 398_136_320, "DenseNet-40": 282_917_328, "ResNet-164": 247_646_720}
MASKED = "ResNet-164 (mask variant)"
REPORTED = (
    *("Liu error", "Liu params", "Liu FLOPs"),
    *("port error, pruned", "port error", "port params"),
)
DENSE = "none"
BAYESIAN = "Bayesian modification of network slimming"
UNKNOWN = "not identified"
HEAD = (
    "Published figures are those of the l1 method (Liu et al. 2017, and the README of its PyTorch "
    "port); the tables of the paper on nonconvex penalties are not at hand. FLOPs count as in the "
    "released code. Errors are in percent, over seeds with their standard deviation; at 0 % pruned "
    "they are those of the dense network and of the one trained under the penalty. Hours that a "
    "run needs are computed, not timed."
)


@dataclass(frozen=True)
class Extent:
    """Which cells are run, and how: overrides of all jobs, and those of one network."""

    said: str
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    networks: tuple[str, ...]
    percents: tuple[int, ...] = (0, 40, 50, 60, 70)
    penalties: tuple[str, ...] = tuple(PENALTIES)
    overrides: tuple[str, ...] = ()
    own: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def runs(self, cell: Cell) -> bool:
        """Whether a published cell is run."""
        at = (self.datasets, self.networks, self.percents)
        parts = (cell.dataset, cell.network, cell.percent)
        return all(part in known for part, known in zip(parts, at, strict=True))

    def settings(self, cell: Cell) -> tuple[str, ...]:
        """The overrides of a cell but for its penalty."""
        name = f"slim_{NETWORKS[cell.network]}_{DATASETS[cell.dataset]}"
        return (f"experiment={name}", *self.overrides, *dict(self.own).get(cell.network, ()))


@dataclass(frozen=True, order=True)
class Cell:
    """One row of the published tables: a share of all scales, in percent, is pruned."""

    dataset: str
    network: str
    percent: int


TINY = ("model._target_=prunekit.models.DenseNet", "+model.layers=2", "+model.growth=4")
SCALES = {
    "paper": Extent("The published schedule.", (0, 1, 2), tuple(DATASETS), tuple(NETWORKS)),
    "short": Extent(
        "The 8,336 exact CIFAR-10 images, 8 + 4 epochs, a hundred times the published lam.",
        seeds=(0,),
        datasets=("CIFAR-10",),
        networks=tuple(NETWORKS),
        overrides=("schedule=slim_short", "dataset.only_exact=true", "dataset.val=836"),
        own=(
            ("VGG-19", ("regularizer.lam=0.01",)),
            ("DenseNet-40", ("regularizer.lam=0.001",)),
            ("ResNet-164", ("regularizer.lam=0.001",)),
        ),
    ),
    "smoke": Extent(
        "A narrow DenseNet on synthetic images: shows that everything runs, and nothing else.",
        seeds=(0,),
        datasets=("CIFAR-10",),
        networks=("DenseNet-40",),
        percents=(0, 40),
        penalties=("l1", "TL1"),
        overrides=(
            *("dataset=synthetic", "dataset.channels=3", "dataset.image_size=32", "schedule=smoke"),
            *("dataset.train=256", "diagnose=false", "latency.runs=5", "latency.batch=8"),
        ),
        own=(("DenseNet-40", TINY),),
    ),
}


def table1(extent: Extent) -> list[Job]:
    """Every run of the table: the dense networks, then every penalty with all its shares."""
    jobs: list[Job] = []
    for seed in extent.seeds:
        for cell in _cells(extent):
            jobs += [dense(extent, cell, seed)] if cell.percent == 0 else []
            make = sparse if cell.percent == 0 else pruned
            jobs += [make(extent, cell, seed, penalty) for penalty in extent.penalties]
    return jobs


def _cells(extent: Extent) -> list[Cell]:
    """The published cells that are run, the dense network of each before its shares."""
    return [cell for cell in published() if extent.runs(cell)]


def dense(extent: Extent, cell: Cell, seed: int) -> Job:
    """The network trained without a penalty."""
    settings = (*extent.settings(cell), f"seed={seed}")
    return Job(f"{_place(cell, seed)}/dense", settings, ("pretrain",))


def sparse(extent: Extent, cell: Cell, seed: int, penalty: str) -> Job:
    """The network trained from scratch under a penalty; all shares are pruned from it."""
    group, *more = PENALTIES[penalty]
    settings = (*extent.settings(cell), group, *more, f"seed={seed}")
    return Job(f"{_place(cell, seed)}/{folder(penalty)}", settings, ("sparsify",))


def pruned(extent: Extent, cell: Cell, seed: int, penalty: str) -> Job:
    """One cell: pruned, trained again, measured."""
    parent = sparse(extent, cell, seed, penalty)
    settings = (*parent.overrides, f"selection.ratio={cell.percent / 100:g}")
    return Job(f"{parent.name}/{cell.percent}", settings, TAIL, parent.name)


def _place(cell: Cell, seed: int) -> str:
    return f"ns_t1/{DATASETS[cell.dataset]}/{NETWORKS[cell.network]}/seed{seed}"


@cache
def published() -> dict[Cell, dict[str, Row]]:
    """Every published cell: a penalty to what Liu et al. and the PyTorch port report for it."""
    found: dict[Cell, dict[str, Row]] = {}
    for fact in _facts("ns_liu2017_table1"):
        cell = cell_of(fact)
        row = _of(found, cell, DENSE if cell.percent == 0 else "l1")
        row |= {"Liu error": fact["test_error_pct"]}
        row |= {"Liu params": fact["params"], "Liu FLOPs": fact["flops"]}
    for fact in _facts("ns_pytorch_readme"):
        column = "port error, pruned" if fact["stage"] == "pruned" else "port error"
        row = _of(found, cell_of(fact), DENSE if fact["stage"] == "baseline" else "l1")
        row |= {column: f"{100 - float(fact['top1_acc_pct']):.2f}"}
        row |= {"port params": fact["params"] or "-"}
    return {cell: found[cell] for cell in sorted(found, key=_order)}


def _facts(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def cell_of(fact: Mapping[str, str]) -> Cell:
    """The cell of a published row."""
    network = {"VGGNet": "VGG-19"}.get(fact["model"], fact["model"])
    return Cell(fact["dataset"], network, int(fact["pruned_channels_pct"]))


def _of(found: dict[Cell, dict[str, Row]], cell: Cell, penalty: str) -> Row:
    return found.setdefault(cell, {}).setdefault(penalty, {})


def _order(cell: Cell) -> tuple[int, int, int]:
    networks = [*NETWORKS, MASKED]
    return [*DATASETS].index(cell.dataset), networks.index(cell.network), cell.percent


def write_table1(root: Path, out: Path, extent: Extent) -> None:
    """The table and the verdicts as csv, markdown and on the screen."""
    rows = [row for cell in published() for row in _rows(root, extent, cell)]
    refuse_empty(rows)
    rows.append({**dict.fromkeys(rows[0], "-"), "penalty": BAYESIAN, "seeds": 0, "needs": UNKNOWN})
    title = "network slimming, table I: published beside measured"
    write_markdown(
        out / "ns_t1.md",
        f"{HEAD} Runs: {extent.said}\n",
        publish(out, "ns_t1", title, rows),
        publish(out, "ns_t1_verdicts", "against l1 at the same share", judge(root, extent)),
    )


def _rows(root: Path, extent: Extent, cell: Cell) -> list[Row]:
    """A cell with every penalty; the dense network has a row, the mask variant no runs."""
    known = published()[cell]
    built = cell.network in NETWORKS
    names = ([DENSE] * (cell.percent == 0) + [*PENALTIES]) if built else list(known)
    head = {"data": cell.dataset, "network": cell.network, "pruned %": cell.percent}
    rows = []
    for name in names:
        facts = dict.fromkeys(REPORTED, "-") | known.get(name, {})
        found = measured_cell(root, extent, cell, name) if built else blank()
        missing = "" if found["seeds"] else needs(cell)
        rows.append({**head, "penalty": name, **facts, **found, "needs": missing})
    return rows


def blank() -> Row:
    """The measured columns where nothing was run."""
    return {"seeds": 0, **dict.fromkeys(("error, pruned", "error", "params", "FLOPs"), NOT_RUN)}


def measured_cell(root: Path, extent: Extent, cell: Cell, penalty: str) -> Row:
    """What the runs of a cell found, over the seeds that have finished."""
    if not extent.runs(cell) or penalty not in (DENSE, *extent.penalties):
        return blank()
    names = [_job(extent, cell, seed, penalty).name for seed in extent.seeds]
    last = {DENSE: "pretrain"}.get(penalty, "sparsify" if cell.percent == 0 else "finetune")
    done = [(name, found) for name in names if (found := metrics(root, name, last))]
    if not done:
        return blank()
    before = [found for name, _ in done if (found := metrics(root, name, "prune"))]
    return {
        "seeds": len(done),
        "error, pruned": spread([100 - found["top1"] for found in before]) if before else "-",
        "error": spread([100 - found["top1"] for _, found in done]),
        "params": spread([found["params"] for _, found in done], "{:,.0f}"),
        "FLOPs": spread([_flops(root / name / last / "model.pt") for name, _ in done], "{:.3g}"),
    }


def _job(extent: Extent, cell: Cell, seed: int, penalty: str) -> Job:
    if penalty == DENSE:
        return dense(extent, cell, seed)
    return (sparse if cell.percent == 0 else pruned)(extent, cell, seed, penalty)


def _flops(file: Path) -> int:
    return slimming_flops(load_model(file).model, torch.zeros(1, 3, 32, 32))


def needs(cell: Cell) -> str:
    """What a run of the published schedule takes."""
    if cell.network == MASKED:
        return "the variant with masks in place of channel selections, which is not built"
    images, epochs = WORK[cell.dataset]
    epochs = epochs if cell.percent else epochs // 2
    return a_gpu(cell.dataset, MACS[cell.network], images * epochs)


def judge(root: Path, extent: Extent) -> list[Row]:
    """Every penalty against l1 in the same cell, paired over seeds and test images."""
    rows = []
    for cell in _cells(extent):
        for penalty in extent.penalties[1:] if cell.percent else ():
            pair = [
                [pruned(extent, cell, seed, name).name for seed in extent.seeds]
                for name in (penalty, extent.penalties[0])
            ]
            found = verdict(root, *pair, against="l1")
            if found:
                head = {"data": cell.dataset, "network": cell.network, "pruned %": cell.percent}
                rows.append({**head, "penalty": penalty, **found})
    return rows
