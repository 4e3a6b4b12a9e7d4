"""Selections by group: zeros are removed, a share is kept, or the widths are given."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch

from prunekit.errors import ArtifactError, ConfigError, listed, one_of
from prunekit.graph import ChannelMask
from prunekit.schema import SomeShare, Whole
from prunekit.selection.base import (
    SELECTIONS,
    Masks,
    Scored,
    Selected,
    Selection,
    mask_of_best,
    protect_units,
    validate_scores,
)
from prunekit.selection.candidates import (
    AdaptiveSelection,
    CandidateUnits,
    ResultFactory,
    values_by_group,
)

if TYPE_CHECKING:
    from torch import Tensor


@SELECTIONS.register("zeros")
@dataclass(frozen=True)
class Zeros(AdaptiveSelection):
    """Removes the units whose score is exactly zero, as solvers with a proximal map leave them.

    Of a group of zeros the first units are kept. With `round_to` some zeros are kept, and no unit
    that is not zero is removed.
    """

    @property
    def all_kept(self) -> str:
        """The reason why everything is kept."""
        return "no unit that may go scores exactly zero"

    def _decide(self, scored: Scored) -> tuple[Masks, ResultFactory]:
        sizes = {name: score.abs() for name, score in scored.scores.items()}
        pool = self._pool(replace(scored, scores=sizes))
        counts = pool.count((pool.scores != 0) | pool.protected)
        return pool.masks(pool.round_up(counts)), Selected


@SELECTIONS.register("per_layer")
@dataclass(frozen=True)
class PerLayer(AdaptiveSelection):
    """Keeps the same share of every group, rounded to the nearest count.

    `layers` gives other shares to the groups of layers that match a pattern, such as
    `{"layer1.*": 0.8}`; the first matching pattern counts.
    """

    keep: Annotated[SomeShare, "share of every group that is kept"] = 0.5
    layers: Annotated[
        Mapping[str, SomeShare], "other shares by pattern of layers, e.g. {layer1.*: 0.8}"
    ] = field(default_factory=dict)

    @property
    def reduction(self) -> str:
        """The share that is below 1, or the shares of layers."""
        if self.keep < 1:
            return f"selection.keep={self.keep}"
        return (
            f"selection.layers={dict(self.layers)}"
            if min(self.layers.values(), default=1) < 1
            else ""
        )

    @property
    def all_kept(self) -> str:
        """The reason why everything is kept."""
        return f"selection.keep={self.keep} keeps every unit"

    def _decide(self, scored: Scored) -> tuple[Masks, ResultFactory]:
        pool = self._pool(scored)
        counts = self._counts(pool, scored)
        notes = _too_narrow(pool, counts)
        return pool.masks(counts), lambda keep: Selected(keep, notes=notes)

    def _counts(self, pool: CandidateUnits, scored: Scored) -> Tensor:
        """Return the number of units that every group should keep; halves are rounded up."""
        shares = values_by_group(scored.graph, self.layers)
        keep = torch.tensor([shares.get(n, self.keep) for n in pool.names], dtype=torch.float64)
        return (keep * pool.widths + 0.5).floor().long()


def _too_narrow(pool: CandidateUnits, counts: Tensor) -> tuple[str, ...]:
    """Return a note on groups that keep their minimum because their share is below it."""
    below = (counts < pool.min_counts).tolist()
    names = [name for name, low in zip(pool.names, below, strict=True) if low]
    subject = "every group keeps" if len(names) == len(below) else f"{listed(names, 4)} keep"
    return (f"{subject} the least width: the share is below it",) if names else ()


@SELECTIONS.register("widths")
@dataclass(frozen=True)
class Widths(Selection):
    """Keeps a given number of units in each named group; other groups are kept whole."""

    widths: Annotated[Mapping[str, Whole], "units of each named group, e.g. {conv1: 2, fc1: 77}"]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, width in self.widths.items():
            if width < self.min_keep:
                raise ConfigError(
                    f"widths.{name}={width} is below min_keep={self.min_keep}; lower that too if "
                    "it is meant"
                )

    def select(self, scored: Scored) -> Selected:
        """Keep the best units; raises ConfigError for unknown groups and impossible widths."""
        graph, scores = scored.graph, validate_scores(scored.scores, scored.graph)
        self._check(scores)
        narrowed = {name: scores[name] for name, n in self.widths.items() if n < len(scores[name])}
        masks = {}
        for name, protected in protect_units(narrowed, graph, self.min_keep).items():
            width, least = self.widths[name], int(protected.sum())
            if width < least:
                raise ConfigError(
                    f"selection.widths.{name}={width} would leave a layer of the group without "
                    f"channels: these scores ask for {least}; give {least} or more"
                )
            masks[name] = mask_of_best(scores[name], width, protected)
        return Selected(ChannelMask.of(graph, masks))

    def _check(self, scores: Mapping[str, Tensor]) -> None:
        for name, width in self.widths.items():
            if name not in scores:
                raise ConfigError(
                    f"selection.widths: no scores of {name!r}; {one_of(name, scores)}"
                )
            if width > len(scores[name]):
                raise ConfigError(
                    f"selection.widths.{name}={width} is too many, it has {len(scores[name])} units"
                )


@SELECTIONS.register("like_run")
@dataclass(frozen=True)
class LikeRun(Selection):
    """Keeps as many units per group as another run did; scores only decide which ones.

    `path` is a run directory, its prune directory, or the plan.json in it. Baselines are compared
    in this way at equal widths (SSR, footnote 12).
    """

    path: Annotated[str | Path, "a run, its prune directory, or its plan.json"]

    def __post_init__(self) -> None:
        super().__post_init__()
        read_plan(self.path)

    def select(self, scored: Scored) -> Selected:
        """Apply the widths; raises ArtifactError if the other run had a network of other widths."""
        plan, scores = read_plan(self.path), scored.scores
        widths = {group.name: len(group.units) for group in scored.graph.groups}
        if {name: entry["of"] for name, entry in plan.items()} != widths:
            odd = next(n for n in (*widths, *plan) if widths.get(n) != plan.get(n, {}).get("of"))
            raise ArtifactError(
                f"{self.path} is the plan of another network: {odd} has "
                f"{plan.get(odd, {}).get('of', 0)} units there and {widths.get(odd, 0)} here"
            )
        pruned = {n: e["kept"] for n, e in plan.items() if n in scores or e["kept"] < e["of"]}
        lowest = min([self.min_keep, *pruned.values()])
        return Widths(pruned, min_keep=lowest).select(scored)

    def files(self) -> Mapping[str, Path]:
        """Return the plan of the other run."""
        return {"plan": _plan_file(Path(self.path))}


def read_plan(path: str | Path) -> dict[str, dict[str, int]]:
    """Return group name -> {"kept": n, "of": m} of a pruned run; raises ArtifactError without one.

    `path` is the run, its prune directory, or its plan.json.
    """
    file = _plan_file(Path(path))
    try:
        groups = json.loads(file.read_text(encoding="utf-8"))["groups"]
        return {
            name: {"kept": int(entry["kept"]), "of": int(entry["of"])}
            for name, entry in groups.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{file} is no plan of a pruned run; prune that run again") from error


def _plan_file(path: Path) -> Path:
    for file in (path, path / "plan.json", path / "prune" / "plan.json"):
        if file.is_file():
            return file
    raise ArtifactError(f"{path} has no prune/plan.json; give a run that has been pruned")
