"""ResNets on the exact CIFAR-10 images at half of the MACs: Hinge, its parts, and others, as jobs.

All start from published weights, and all are tuned for the same five epochs, decomposed networks
and others each at the rate that did best on the validation images (first seed; of 0.05, 0.01 and
0.003). The strength of a penalty sets the pace of the search: it was chosen so that the search ends
within its epochs.
"""

from __future__ import annotations

from pathlib import Path

from exact_resnets import Extent, start
from tables import TAIL, Job

TABLE = "hinge_resnet20"
EXPERIMENT = ("experiment=hinge_resnet20_exact",)
STRENGTHS = {"l1": 0.8, "l1/2": 1.2, "l1-2": 0.6, "log-sum": 0.5}
FILES = {"l1": "hinge_l1", "l1/2": "hinge_lp", "l1-2": "hinge_l1ml2", "log-sum": "hinge_logsum"}
ROWS, COLUMNS = "rows, rows", "columns, rows"
PLACES = {ROWS: "rows_rows", COLUMNS: "columns_rows"}
BASE = f"Hinge, {ROWS}, l1/2"
MEAN_NORM = 1.66  # of the rows of all matrices in the beginning: what balancing weighs by
WITHOUT = {  # the ablation: overrides of BASE
    "annealing": ("solver.annealing=null",),
    "balancing": (
        "regularizer.target.balance=false",
        f"regularizer.lam={STRENGTHS['l1/2'] * MEAN_NORM}",
    ),
    "rate adjustment": ("solver.exponent=0",),
    "separate rates": ("order.others=1.0",),
}
SLOWER = ("regularizer.lam=0.6", "schedule.sparsify.epochs=12")
NARROW = ("schedule.finetune.optimizer.lr=0.01",)  # the schedule's own is for decomposed networks
_HALF = ("selection=macs", "selection.keep=0.5", "~selection.same_ratio")
_CUT = ("placement=none", "regularizer=none", "order=joint", *_HALF, *NARROW)
_SVD = ("placement=low_rank", "regularizer=none", "order=joint", "criterion=matrix")
OTHERS = {  # methods without a search: cut, then tune
    "SVD, one threshold": _SVD,
    "SVD, the same share": (*_SVD, *_HALF, "selection.scope=local"),
    "L1 norm": (*_CUT, "criterion=l1_norm", "selection.scope=global"),
    "L1 norm, the same share": (*_CUT, "criterion=l1_norm", "selection.scope=local"),
    "random channels": (*_CUT, "criterion=random", "selection.scope=local"),
}
SLIMMING = (  # three epochs of l1 on batch-norm scales, at the strength of the slimming table
    *("placement=none", "regularizer=slim_l1", "regularizer.lam=0.012", "solver=slimming"),
    *("order=joint", "criterion=bn_scale", *_HALF, *NARROW),
    *("selection.scope=global", "selection.normalise=null"),
    *("schedule.sparsify.epochs=3", "schedule.sparsify.batch=128"),
    "schedule.sparsify.optimizer.lr=0.05",
)
SCRATCH = (
    *(*_CUT, "criterion=random", "selection.scope=local", "schedule.finetune.epochs=9"),
    "schedule.finetune.optimizer.lr=0.05",
)
DISTILLED = ("distill=standard",)
TAUGHT = (BASE, "SVD, one threshold", "L1 norm")  # tuned with distillation too
LONGER = ("SVD, one threshold", "L1 norm")  # tuned for as long as search and tuning of Hinge


def hinge_name(place: str, penalty: str) -> str:
    """What a row of the table calls a variant."""
    return f"Hinge, {place}, {penalty}"


def hinge(place: str, penalty: str) -> tuple[str, ...]:
    """The settings of a variant."""
    return (
        f"placement={PLACES[place]}",
        f"regularizer={FILES[penalty]}",
        f"regularizer.lam={STRENGTHS[penalty]}",
    )


HINGE = {hinge_name(place, penalty): hinge(place, penalty) for penalty in FILES for place in PLACES}
ABLATION = {
    **{f"{BASE}, without {part}": (*HINGE[BASE], *change) for part, change in WITHOUT.items()},
    f"{BASE}, with the same ratio": (*HINGE[BASE], "selection.same_ratio=true"),
    f"{BASE}, half the strength": (*HINGE[BASE], *SLOWER),
}
SEARCHED = {**HINGE, **ABLATION, "network slimming": SLIMMING}


def folder(method: str) -> str:
    """A method's name as a directory."""
    return method.replace("/", "_").replace(", ", "_").replace(" ", "-")


def named(method: str, seed: int, model: str = "resnet20") -> str:
    """The run of a method and a seed."""
    return f"{TABLE}/{model}/seed{seed}/{folder(method)}"


def given(extent: Extent, data: str, model: str = "resnet20") -> Job:
    """The published weights, not trained any further."""
    return start(f"{TABLE}/{model}/given", _of(extent, model), extent.weights, data, model)


def cell(extent: Extent, method: str, seed: int, model: str = "resnet20") -> Job:
    """One method with one seed, from the given weights, or from nothing."""
    name, shared = named(method, seed, model), (*_of(extent, model), f"seed={seed}")
    if method == "from scratch":
        return Job(name, (*shared, *SCRATCH), TAIL)
    source = f"{TABLE}/{model}/given"
    if method in SEARCHED:
        return Job(name, (*shared, *SEARCHED[method]), ("sparsify", *TAIL), source)
    return Job(name, (*shared, *OTHERS[method]), TAIL, source)


def retuned(extent: Extent, method: str, seed: int, how: str, change: tuple[str, ...]) -> Job:
    """The pruned network of another run, tuned in another way."""
    parent = cell(extent, method, seed)
    name, settings = named(f"{method}, {how}", seed), (*parent.overrides, *change)
    return Job(name, settings, ("finetune", "measure"), parent.name, "prune")


def of_seed(extent: Extent, seed: int) -> list[Job]:
    """Every run on ResNet-20 of a seed that starts from weights, the most wanted ones first."""
    methods = (BASE, *OTHERS, "network slimming", *HINGE, *ABLATION)
    jobs = [cell(extent, method, seed) for method in dict.fromkeys(methods)]
    jobs += [retuned(extent, method, seed, "distilled", DISTILLED) for method in TAUGHT]
    longer = ("schedule.finetune.epochs=9",)
    jobs += [retuned(extent, method, seed, "tuned longer", longer) for method in LONGER]
    return jobs


def from_scratch(extent: Extent) -> list[Job]:
    """The small network without the weights, for every seed."""
    return [cell(extent, "from scratch", seed) for seed in extent.seeds]


def from_weights(extent: Extent, root: Path, data: str) -> list[Job]:
    """Everything else, seed by seed; ResNet-56 after the first."""
    first, *rest = ([*of_seed(extent, seed)] for seed in extent.seeds)
    larger = [cell(extent, m, extent.seeds[0], "resnet56") for m in LARGER] if extent.larger else []
    models = ("resnet20", "resnet56") if extent.larger else ("resnet20",)
    dense = [given(extent, data, model) for model in models]
    return [*dense, *first, *larger, *(job for jobs in rest for job in jobs)]


LARGER = (BASE, "SVD, one threshold", "L1 norm")  # on ResNet-56


def _of(extent: Extent, model: str) -> tuple[str, ...]:
    return (*EXPERIMENT, f"model={model}", *extent.overrides)
