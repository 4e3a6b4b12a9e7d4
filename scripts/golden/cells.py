"""Every criterion and every selection, asked for in Python and on the command line alike.

Scope and scale of scores are always given, since their defaults are no part of the corpus.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunekit
from prunekit import criteria
from prunekit import selection as selections
from prunekit.methods import gram_lasso as lasso
from prunekit.methods import hinge, slimming
from prunekit.selection import MeanNorm
from scripts.golden.cli import call
from scripts.golden.networks import IMAGES, Network

STILL = (  # training that moves nothing: it only leaves what sparsify leaves
    *("schedule=smoke", f"schedule.sparsify.batch={IMAGES}", "runtime=cpu", "runtime.threads=1"),
    *("schedule.sparsify.optimizer.lr=1e-30", "root=."),
)
QUIET = ("diagnose=false", "absorb=false", "runtime=cpu", "runtime.threads=1", "root=.")
MEAN = "selection.normalise={_target_: prunekit.selection.MeanNorm}"
CURVES = ("group", "share", "removed", "units", "val_top1", "macs", "params")
FEW = ("criterion.order.points=2", "criterion.order.least=0.4")


class Place:
    """A folder with the files that one network is pruned with, written at first need."""

    def __init__(self, network: Network, path: Path) -> None:
        self.network, self.path = network, path
        path.mkdir(parents=True, exist_ok=True)

    def source(self, kind: str = "dense") -> Path:
        """Return the model file: dense, with `stored` scores beside it, or a `matrix` per layer."""
        if kind == "dense":
            file = self.path / "dense.pt"
            if not file.is_file():
                prunekit.save_model(file, self.network.dense(), self.network.arch)
            return file
        file = self.path / kind / "sparsify" / "model.pt"
        if not file.is_file():
            chosen = {
                "stored": ("regularizer=l21", "solver=proximal", "regularizer.lam=1e-6"),
                "matrix": (
                    *("placement=low_rank", "regularizer=hinge_l1", "regularizer.lam=1e-30"),
                    "solver=proximal",
                ),
            }[kind]
            own = (f"source={self.source()}", f"name={kind}", *self.network.overrides())
            ended = call(self.path, "sparsify", *STILL, *own, *chosen)
            if ended.code:
                raise RuntimeError(f"{kind}: {ended.err}")
        return file

    def model(self, kind: str = "dense") -> nn.Module:
        """Return the network of that file."""
        return prunekit.load_model(self.source(kind), trust=[self.network.home]).model.eval()

    def groups(self) -> dict[str, int]:
        """Return the number of units of every group of the dense network."""
        shape = (1, self.network.channels, self.network.size, self.network.size)
        graph = prunekit.ChannelGraph.trace(self.network.dense(), torch.zeros(shape))
        return {group.name: len(group.units) for group in graph.groups}

    def widths(self) -> dict[str, int]:
        """Return widths of about two thirds of every other group."""
        return {name: max(1, 2 * n // 3) for name, n in list(self.groups().items())[::2]}

    def plan(self) -> Path:
        """Return a plan file, as a run leaves it, that keeps a little over half of most groups."""
        file = self.path / "other" / "prune" / "plan.json"
        if not file.is_file():
            groups = {}
            for number, (name, units) in enumerate(self.groups().items()):
                kept = units // 2 + 1 if number else units
                indices = {"indices": list(range(kept)), "producers": [name]}
                groups[name] = {"kept": kept, "of": units, **indices}
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps({"groups": groups, "notes": []}))
        return file

    def curves(self) -> Path:
        """Return a file of invented sensitivity curves, as a stage leaves it."""
        file = self.path / "curves.csv"
        if not file.is_file():
            with open(file, "w", encoding="utf-8", newline="") as lines:
                writer = csv.writer(lines)
                writer.writerow(
                    ("group", "share", "removed", "units", "val_top1", "macs", "params")
                )
                for number, (name, units) in enumerate(self.groups().items()):
                    for removed in sorted({0, units // 4, units // 2, units - 1}):
                        lost = (number % 5 + 1) * 8 * (removed / units) ** (1 + number % 3)
                        row = (name, removed / units, removed, units, 90 - lost, 0, 0)
                        writer.writerow(row)
        return file


@dataclass(frozen=True)
class Criterion:
    """One choice of configs/criterion: the object, and further words of the command line."""

    make: Callable[[Place], Any]
    overrides: tuple[str, ...] = ()
    source: str = "dense"


@dataclass(frozen=True)
class Selection:
    """A selection: the object, and its choice and settings on the command line."""

    make: Callable[[Place], Any]
    overrides: Callable[[Place], tuple[str, ...]]


def _tree(**settings: Any) -> Any:
    structure = lasso.Hierarchy(**settings)
    return lasso.StructuredLasso(structure=structure, solver=lasso.FISTA(), order=_order())


def _order() -> Any:
    return lasso.EntryOrder(points=2, least=0.4)


SAMPLES = ("criterion.samples=1000",)
CRITERIA = {
    "apib": Criterion(lambda _: lasso.APIB(solver=lasso.FISTA(), order=_order()), FEW),
    "apoz": Criterion(lambda _: criteria.APoZ(1000), ("criterion.samples=1000",)),
    "bn_scale": Criterion(lambda _: criteria.BatchNormScale()),
    "fpgm": Criterion(lambda _: criteria.FPGM()),
    "hessian": Criterion(
        lambda _: criteria.HessianDiagonal(samples=1000, probes=1, seed=0),
        ("criterion.samples=1000", "criterion.probes=1", "criterion.seed=0"),
    ),
    "hrank": Criterion(lambda _: criteria.HRank(500), ("criterion.samples=500",)),
    "l1_norm": Criterion(lambda _: criteria.L1Norm()),
    "l2_norm": Criterion(lambda _: criteria.L2Norm()),
    "lamp": Criterion(lambda _: criteria.LAMP()),
    "matrix": Criterion(lambda _: hinge.MatrixNorm(), source="matrix"),
    "max_cka": Criterion(lambda _: lasso.MaxCKA()),
    "random": Criterion(lambda _: criteria.Random(seed=0), ("criterion.seed=0",)),
    "representatives": Criterion(lambda _: lasso.Representatives()),
    "sglp": Criterion(
        lambda _: lasso.StructuredLasso(structure=lasso.Graph(kappa=0.03), order=_order()),
        ("criterion.structure.kappa=0.03", *FEW),
    ),
    "stlp": Criterion(lambda _: _tree(), FEW),
    "stlp_block": Criterion(lambda _: _tree(blocks=True), FEW),
    "stlp_mixed": Criterion(lambda _: _tree(mix=0.05), FEW),
    "stored": Criterion(
        lambda place: criteria.Stored(place.source("stored").with_name("scores.pt")),
        source="stored",
    ),
    "taylor": Criterion(lambda _: criteria.Taylor(1000), ("criterion.samples=1000",)),
    # at the end: the place of a criterion decides what it is asked on the command line
    "contribution_variance": Criterion(lambda _: criteria.ContributionVariance(1000), SAMPLES),
    "layer_obs": Criterion(lambda _: criteria.LayerOBS(1000), SAMPLES),
    "thinet": Criterion(lambda _: criteria.ThiNet(1000), SAMPLES),
    "unexplained_variance": Criterion(lambda _: criteria.UnexplainedVariance(1000), SAMPLES),
}


def _budget(kind: Any, choice: str, scope: str, mean: bool, **shares: float) -> Selection:
    """Return a budget that is missed where it has to be, so that there are units to compare."""
    words = (
        *(f"selection={choice}", f"selection.scope={scope}", "selection.on_miss=nearest"),
        MEAN if mean else "selection.normalise=null",
        *(f"selection.{key}={share}" for key, share in shares.items()),
    )
    scale = MeanNorm() if mean else None
    return Selection(
        lambda _: kind(**shares, scope=scope, normalise=scale, on_miss="nearest"), lambda _: words
    )


def _plain(kind: Any, choice: str, **settings: Any) -> Selection:
    """Return a selection whose settings are written alike in both places."""
    words = (
        f"selection={choice}",
        *(f"selection.{key}={_written(value)}" for key, value in settings.items()),
    )
    return Selection(lambda _: kind(**settings), lambda _: words)


def _written(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_written(one)}" for key, one in value.items()) + "}"
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _sensitivity() -> Selection:
    inside = ("scope=global", "keep=0.6", "on_miss=nearest")

    def make(place: Place) -> Any:
        budget = selections.MacsTarget(0.6, scope="global", on_miss="nearest")
        return selections.Sensitivity(budget, path=str(place.curves()))

    return Selection(
        make,
        lambda place: (
            *("selection=sensitivity", f"selection.path={place.curves()}"),
            *(f"selection.budget.{one}" for one in inside),
        ),
    )


LENET = {"conv1": 2, "conv2": 8, "fc1": 77}
SELECTIONS = {
    "per_layer": _plain(selections.PerLayer, "per_layer", keep=0.5),
    "per_layer_by_two": _plain(selections.PerLayer, "per_layer", keep=0.7, round_to=2, min_keep=3),
    "global": _plain(selections.Global, "global", keep=0.6, normalise=None, on_miss="nearest"),
    "macs_local": _budget(selections.MacsTarget, "macs", "local", False, keep=0.5),
    "macs_global": _budget(selections.MacsTarget, "macs", "global", True, keep=0.5),
    "params_local": _budget(selections.ParamsTarget, "params", "local", False, keep=0.5),
    "params_global": _budget(selections.ParamsTarget, "params", "global", False, keep=0.5),
    "budgets": _budget(selections.Budgets, "budgets", "global", True, macs=0.6, params=0.6),
    "slimming": _plain(slimming.Slimming, "slimming", ratio=0.5, on_empty="keep_best"),
    "slimming_published": _plain(slimming.Slimming, "slimming", ratio=0.2, rule="published"),
    "slimming_blocks": _plain(slimming.Slimming, "slimming", ratio=0.5, on_empty="skip_block"),
    "threshold": _plain(hinge.Threshold, "threshold", keep=0.5, floor=0.2),
    "zeros": _plain(selections.Zeros, "zeros"),
    "widths": Selection(
        lambda place: selections.Widths(place.widths()),
        lambda place: (
            "selection=widths",
            "selection.widths={" + ",".join(f"{k}:{n}" for k, n in place.widths().items()) + "}",
        ),
    ),
    "lenet_2_8_77": Selection(
        lambda _: selections.Widths(LENET), lambda _: ("selection=lenet_2_8_77",)
    ),
    "like_run": Selection(
        lambda place: selections.LikeRun(str(place.plan())),
        lambda place: ("selection=like_run", f"selection.path={place.plan()}"),
    ),
    "sensitivity": _sensitivity(),
}
