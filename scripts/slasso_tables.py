"""sGLP-IB and sTLP-IB: what Liu et al. 2025 report, row by row, beside runs here.

The swapped base cells of ResNet-56 are put right; the other slips of the paper are in the heads of
the tables and in the comments of the experiment files.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from every_experiment import Experiment
from measured import IMAGENET, Row, a_gpu, metrics, publish, refuse_empty, spread, write_markdown
from tables import TAIL, Job

PUBLISHED = Path(__file__).parent / "published"
DATASETS = {"CIFAR-10": "cifar10", "CIFAR-100": "cifar100", "ImageNet": "imagenet"}
NETWORKS = {
    "VGGNet-16": "vgg16",
    "ResNet-56": "resnet56",
    "ResNet-110": "resnet110",
    "GoogleNet": "googlenet",
    "ResNet-50": "resnet50",
}
METHODS = {"sGLP-IB": "sglp", "sTLP-IB": "stlp"}
DENSE = "dense"
BASE = ("CIFAR-10", "VGGNet-16")  # of all tables but the first
KERNEL = ("kernel", "criterion/similarity", "laplacian")
KERNELS, BEFORE = ("slasso_kernels", *KERNEL), ("slasso_before_finetune", *KERNEL)
BATCHES = ("slasso_batch_size", "batch_size", "criterion.similarity.calibration.count", "128")
SPARED = {  # what the paper calls it: the first layers that stay whole
    "no Gram matrix": ("no-gram", ("criterion/similarity=raw_maps",)),
    "no initial layer": ("spared-0", ("selection.ignore=[classifier.*]",)),
    "first two layers": ("spared-2", ("selection.ignore=[features.conv1_*,classifier.*]",)),
    "first four layers": ("", ()),
}
WHOLE = 0.307  # of the MACs of VGG-16: what its first four layers are, and a channel of the others
OUT_OF_REACH = "out of reach: with four layers whole 30.7 % of the MACs are left"
NARROWER = "91"  # percent of parameters: the row of VGG-16 that is not its experiment's
IMAGES, EPOCHS = 45_000, (200, 400)  # for training; of the dense network, and of tuning
TUNING = 150  # epochs on ImageNet
HEAD = (
    "Published figures are those of Liu et al. 2025: top-1 accuracy, and what is removed of FLOPs "
    "and parameters, in percent. FLOPs as published count norms too (VGG-16 314.57M, here "
    "313.46M), MACs here convolutions and linear layers. The paper gives single runs, and rows of "
    "its two methods differ by 0.02 to 0.11 points: nothing can be said from them about which is "
    "better. Its learning rate lost an exponent in print; the rate here is ours. Measured: mean "
    "and standard deviation over seeds. Hours that a run needs are computed, not timed."
)
OTHERS = "Rows of other methods are quoted; `slasso_resnet20` has some of them at equal widths."


@dataclass(frozen=True, eq=False)
class Cell:
    """One published row. `settings` are overrides of its method's experiment; None: it is not run.

    `tag` tells its runs from others; `varied` is what the table varies, as printed.
    """

    data: str
    network: str
    method: str
    paper: Row
    settings: tuple[str, ...] | None = ()
    tag: str = ""
    varied: str = ""

    def experiment(self) -> str:
        """The file that runs it."""
        method = METHODS.get(self.method, "sglp")
        return f"experiment={method}_{NETWORKS[self.network]}_{DATASETS[self.data]}"


@dataclass(frozen=True)
class Extent:
    """Which rows are run, and how: overrides of all jobs, and those of one network."""

    said: str
    seeds: tuple[int, ...]
    places: tuple[tuple[str, str], ...]
    overrides: tuple[str, ...] = ()
    own: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def runs(self, cell: Cell) -> bool:
        """Whether a published row is run."""
        return (cell.data, cell.network) in self.places and cell.settings is not None

    def shared(self, cell: Cell, seed: int) -> tuple[str, ...]:
        """The overrides of a row's network, whatever the row."""
        return (*self.overrides, *dict(self.own).get(cell.network, ()), f"seed={seed}")


SMALL = {  # narrow networks whose layers are named as in the full ones
    "VGGNet-16": (
        *("model._target_=prunekit.models.VGG", "+model.hidden=[16]"),
        "+model.blocks=[[4,4],[8,8],[24,24,24],[32,32,32],[32,32,32]]",
    ),
    "ResNet-56": ("model._target_=prunekit.models.ResNet", "+model.blocks=1"),
    "GoogleNet": (
        *("model._target_=prunekit.models.GoogLeNet", "+model.stem=8"),
        "+model.stages=[[[4,8,8,8,8,4]],[[4,8,8,8,8,4]]]",
    ),
}
SCALES = {
    "paper": Extent(
        "The published epochs and batch.",
        seeds=(0, 1, 2),
        places=(
            *(("CIFAR-10", network) for network in (*NETWORKS,)[:-1]),
            ("CIFAR-100", "VGGNet-16"),
        ),
    ),
    "short": Extent(
        "The 8,336 exact CIFAR-10 images, 8 + 4 epochs.",
        seeds=(0,),
        places=(BASE, ("CIFAR-10", "ResNet-56")),
        overrides=("schedule=slasso_short", "dataset.only_exact=true", "dataset.val=836"),
    ),
    "smoke": Extent(
        "Narrow networks on synthetic images: shows that all runs, and nothing else.",
        seeds=(0,),
        places=tuple(("CIFAR-10", network) for network in SMALL),
        overrides=(
            *("dataset=synthetic", "dataset.channels=3", "dataset.image_size=32", "schedule=smoke"),
            *("dataset.train=160", "dataset.val=32", "dataset.test=50"),
            *("latency.runs=5", "latency.batch=8"),
        ),
        own=tuple(SMALL.items()),
    ),
}

_FULL = (("ImageNet", "ResNet-50"),)
IMAGENET_SCALES = {  # its images lie elsewhere than those of the other tables
    "paper": replace(
        SCALES["paper"],
        places=_FULL,
        own=(("ResNet-50", ("model.weights=IMAGENET1K_V1",)),),
    ),
    "smoke": replace(
        SCALES["smoke"],
        places=_FULL,
        overrides=Experiment.read("sglp_resnet50_imagenet").small().overrides[1:],
    ),
}


def rows_of_table1() -> list[Cell]:
    """The comparisons on CIFAR-10, CIFAR-100 and ImageNet."""
    return [
        _compared(data, fact)
        for data, name in DATASETS.items()
        for fact in _facts(f"slasso_{name}")
    ]


def _compared(data: str, fact: dict[str, str]) -> Cell:
    paper = _paper(fact, fact["flops_reduction_pct"], fact["params_reduction_pct"])
    place = (data, fact["model"])
    if fact["kind"] == "baseline":
        return Cell(*place, DENSE, paper)
    if fact["kind"] == "compared":
        return Cell(*place, fact["method"], paper, None)
    if fact["params_reduction_pct"] != NARROWER:
        return Cell(*place, fact["method"], paper)
    keep = round(1 - float(fact["flops_reduction_pct"]) / 100, 4)
    return Cell(*place, fact["method"], paper, (f"selection.keep={keep}",), f"macs-{keep}")


def rows_of_setting(name: str, column: str, setting: str, default: str) -> list[Cell]:
    """Rows that change one setting; at its default a row is the first table's run."""
    found = []
    for fact in _facts(name):
        value = fact[column]
        settings, tag = ((f"{setting}={value}",), f"{column}-{value}")
        changed = (settings, tag) if value != default else ((), "")
        found.append(Cell(*BASE, fact["method"], _paper(fact), *changed, value))
    return found


def rows_of_ratios() -> list[Cell]:
    """How much is removed, of the parameters and of the FLOPs."""
    found = []
    for fact in _facts("slasso_ratio_params"):
        asked, other = fact["params_pruned_ratio_pct"], fact["flops_reduction_pct_in_brackets"]
        keep, paper = round(1 - float(asked) / 100, 4), _paper(fact, other, asked)
        how = (("selection=params", f"selection.keep={keep}"), f"params-{keep}")
        found.append(Cell(*BASE, fact["method"], paper, *how, f"params {asked} %"))
    for fact in _facts("slasso_ratio_flops"):
        asked, other = fact["flops_pruned_ratio_pct"], fact["params_reduction_pct_in_brackets"]
        keep, paper = round(1 - float(asked) / 100, 4), _paper(fact, asked, other)
        how = ((f"selection.keep={keep}",), f"macs-{keep}") if keep > WHOLE else (None, "")
        found.append(Cell(*BASE, fact["method"], paper, *how, f"FLOPs {asked} %"))
    return found


def rows_of_layers() -> list[Cell]:
    """Which layers stay whole, and the regression of raw maps; from the text."""
    return [
        Cell(*BASE, fact["method"], _paper({"top1_pct": fact["value"]}), settings, tag, said)
        for fact in _facts("slasso_text_figures")
        for said, (tag, settings) in SPARED.items()
        if said in fact["quantity"]
    ]


def _paper(fact: dict[str, str], flops: str = "-", params: str = "-") -> Row:
    removed = {"paper FLOPs removed": flops or "-", "paper params removed": params or "-"}
    return {"paper top-1": fact["top1_pct"], **removed}


@cache
def _facts(name: str) -> list[dict[str, str]]:
    with (PUBLISHED / f"{name}.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@dataclass(frozen=True)
class Sheet:
    """One table: its published rows, the title of what they vary, and the stages behind a row."""

    name: str
    title: str
    cells: Callable[[], Sequence[Cell]]
    varied: str = ""
    stages: tuple[str, ...] = TAIL

    def jobs(self, extent: Extent) -> list[Job]:
        """Every run of the table: the dense networks, and what each row makes of them."""
        cells = [cell for cell in self.cells() if extent.runs(cell)]
        jobs = [dense(extent, cell, seed) for seed in extent.seeds for cell in cells]
        jobs += [
            self.pruned(extent, cell, seed)
            for seed in extent.seeds
            for cell in cells
            if cell.method in METHODS
        ]
        return list({job.name: job for job in jobs}.values())

    def pruned(self, extent: Extent, cell: Cell, seed: int) -> Job:
        """One row: scored and pruned, tuned and measured where the table is about that."""
        start = dense(extent, cell, seed).name
        kind = "slasso" if self.stages == TAIL else self.name
        name = f"{_place(cell, seed, kind)}/{cell.method}{f'_{cell.tag}' if cell.tag else ''}"
        settings = (cell.experiment(), *extent.shared(cell, seed), *(cell.settings or ()))
        return Job(name, settings, self.stages, start)

    def write(self, root: Path, out: Path, extent: Extent) -> None:
        """The published rows with what was measured."""
        rows = [self._row(root, extent, cell) for cell in self.cells()]
        refuse_empty(rows)
        text = f"{HEAD} {OTHERS if not self.varied else ''}".strip()
        title = f"sGLP-IB and sTLP-IB, {self.title}: published beside measured"
        body = publish(out, self.name, title, rows)
        write_markdown(out / f"{self.name}.md", f"{text} Runs: {extent.said}\n", body)

    def _row(self, root: Path, extent: Extent, cell: Cell) -> Row:
        head = {"data": cell.data, "network": cell.network, "method": cell.method}
        head |= {self.varied: cell.varied} if self.varied else {}
        return {**head, **cell.paper, **self.measured(root, extent, cell)}

    def measured(self, root: Path, extent: Extent, cell: Cell) -> Row:
        """What the runs of a row found, over the seeds that have finished; else what it needs."""
        seeds = extent.seeds if extent.runs(cell) else ()
        done = [found for seed in seeds if (found := self._of_seed(root, extent, cell, seed))]
        measured = {title: spread([one[title] for one in done]) for title in self.titles()}
        measured |= dict.fromkeys(self.titles()[1:], "-") if cell.method == DENSE else {}
        return {"seeds": len(done), **measured, "needs": "" if done else _needs(cell)}

    def titles(self) -> tuple[str, ...]:
        """The columns of measured figures."""
        tuned = "top-1" if "finetune" in self.stages else "top-1, statistics recomputed"
        return ("top-1, dense", "top-1, pruned", tuned, "MACs removed", "params removed")

    def _of_seed(self, root: Path, extent: Extent, cell: Cell, seed: int) -> Row | None:
        """What the runs of a row and a seed found; of a dense network, its accuracy alone."""
        before = metrics(root, dense(extent, cell, seed).name, "pretrain")
        if before is None or cell.method == DENSE:
            return before and dict.fromkeys(self.titles(), before["top1"])
        run = self.pruned(extent, cell, seed).name
        if metrics(root, run, self.stages[-1]) is None:
            return None
        cut, tuned = metrics(root, run, "prune"), metrics(root, run, "finetune")
        last = tuned["top1"] if tuned else cut["after/dropped_recomputed"]
        removed = (100 - 100 * cut[key] / before[key] for key in ("macs", "params"))
        return dict(zip(self.titles(), (before["top1"], cut["top1"], last, *removed), strict=True))


def dense(extent: Extent, cell: Cell, seed: int) -> Job:
    """The network that all rows of it start from, in all tables."""
    plain = Cell(cell.data, cell.network, DENSE, {})
    settings = (plain.experiment(), *extent.shared(cell, seed))
    return Job(f"{_place(cell, seed, 'slasso')}/dense", settings, ("pretrain",))


def _place(cell: Cell, seed: int, kind: str) -> str:
    return f"{kind}/{DATASETS[cell.data]}/{NETWORKS[cell.network]}/seed{seed}"


def _needs(cell: Cell) -> str:
    """What a run of the published epochs takes."""
    if cell.settings is None:
        return OUT_OF_REACH if cell.method in METHODS else "-"
    base = next(f for f in _facts(f"slasso_{DATASETS[cell.data]}") if f["model"] == cell.network)
    macs = float(base["base_flops"].rstrip("M")) * 1e6
    if cell.data == "ImageNet":  # tuned from the weights of torchvision
        return f"{a_gpu(cell.data, macs / 2, IMAGENET * TUNING)}, {cell.experiment()}"
    epochs = EPOCHS[0] + (0 if cell.method == DENSE else EPOCHS[1] / 2)  # half of the MACs, about
    return a_gpu(cell.data, macs, IMAGES * epochs)


SHEETS = (
    Sheet("slasso_t1", "table 1 and those of CIFAR-100 and ImageNet", rows_of_table1),
    Sheet("slasso_kernels", "kernels", partial(rows_of_setting, *KERNELS), "kernel"),
    Sheet("slasso_batch", "sizes of the batch", partial(rows_of_setting, *BATCHES), "images"),
    Sheet("slasso_ratio", "shares removed", rows_of_ratios, "removed"),
    Sheet("slasso_layers", "layers that stay, and no Gram matrix", rows_of_layers, "variant"),
    Sheet(
        "slasso_before", "before tuning", partial(rows_of_setting, *BEFORE), "kernel", ("prune",)
    ),
)
