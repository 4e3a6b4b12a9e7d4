"""Selections whose widths are given: by hand, or by another run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from prunekit.errors import ArtifactError, ConfigError, one_of
from prunekit.graph import ChannelMask
from prunekit.schema import Whole
from prunekit.selection.base import (
    SELECTIONS,
    Scored,
    Selected,
    Selection,
    best,
    checked,
    protected,
)

if TYPE_CHECKING:
    from torch import Tensor


@SELECTIONS.register("widths")
@dataclass(frozen=True)
class Widths(Selection):
    """Keeps a given number of units in each named group; other groups stay whole."""

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
        """Raises ConfigError for a group that the network or the scores lack, or a wider width."""
        graph, scores = scored.graph, checked(scored.scores, scored.graph)
        self._check(scores)
        shrunk = {name: scores[name] for name, n in self.widths.items() if n < len(scores[name])}
        masks = {}
        for name, stays in protected(shrunk, graph, self.min_keep).items():
            width, least = self.widths[name], int(stays.sum())
            if width < least:
                raise ConfigError(
                    f"selection.widths.{name}={width} would leave a layer of the group without "
                    f"channels: these scores ask for {least}; give {least} or more"
                )
            masks[name] = best(scores[name], width, stays)
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
    """Keeps as many units per group as another run did: the scores decide only which.

    `path` is a run directory, its prune directory, or the plan.json in it. Baselines are compared
    in this way at equal widths (SSR, footnote 12).
    """

    path: Annotated[str | Path, "a run, its prune directory, or its plan.json"]

    def __post_init__(self) -> None:
        super().__post_init__()
        read_plan(self.path)

    def select(self, scored: Scored) -> Selected:
        """Raises ArtifactError when the other run pruned a network of other widths."""
        plan, scores = read_plan(self.path), scored.scores
        found = {group.name: len(group.units) for group in scored.graph.groups}
        if {name: entry["of"] for name, entry in plan.items()} != found:
            odd = next(n for n in (*found, *plan) if found.get(n) != plan.get(n, {}).get("of"))
            raise ArtifactError(
                f"{self.path} is the plan of another network: {odd} has "
                f"{plan.get(odd, {}).get('of', 0)} units there and {found.get(odd, 0)} here"
            )
        pruned = {n: e["kept"] for n, e in plan.items() if n in scores or e["kept"] < e["of"]}
        lowest = min([self.min_keep, *pruned.values()])
        return Widths(pruned, min_keep=lowest).select(scored)

    def files(self) -> Mapping[str, Path]:
        """The plan, whose widths decide."""
        return {"plan": _plan_file(Path(self.path))}


def read_plan(path: str | Path) -> dict[str, dict[str, int]]:
    """Group name -> {"kept": n, "of": m} of a pruned run; ArtifactError when it has none."""
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
    for place in (path, path / "plan.json", path / "prune" / "plan.json"):
        if place.is_file():
            return place
    raise ArtifactError(f"{path} has no prune/plan.json; give a run that has been pruned")
