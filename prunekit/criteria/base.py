"""What a criterion is, and how channel values become scores of removable units."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError
from prunekit.registry import Registry
from prunekit.schema import Checked, Count

if TYPE_CHECKING:
    from prunekit.data import Batches, Data
    from prunekit.graph import ChannelGraph

Scores = dict[str, Tensor]
_BATCH = 32  # the result does not depend on it


class Criterion(Checked, ABC):
    """Says how much every removable unit of a network is worth.

    `comparable` scores are made to be compared between groups as they are; a selection that scales
    them by group would undo that. `rescorable` says whether a network that was narrowed and trained
    can be scored anew.
    """

    comparable: ClassVar[bool] = False
    rescorable: ClassVar[bool] = True

    @abstractmethod
    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Group name -> one finite score per unit of `group.units`; larger means keep.

        `data` may be None for criteria that read weights only. `device` is where the network and
        the examples are; scores come back on the CPU in double precision.
        """

    @property
    def resolved(self) -> bool:
        """Whether everything that it reads has been named."""
        return True

    def resolve_beside(self, model: Path | None) -> Criterion:
        """Itself, with what it reads from a file and was not given taken from beside a model's."""
        return self

    def files(self) -> Mapping[str, Path]:
        """The files that it reads, by what they are called in `settings.json`.

        What they hold is then part of what a run is, and the setting `path` no more.
        """
        return {}


Samples = Annotated[Count, "training examples that are read, not augmented"]


@dataclass(frozen=True)
class OnExamples(Criterion):
    """A criterion that reads `samples` training examples, not augmented."""

    samples: Samples = 1000


CRITERIA: Registry[Criterion] = Registry("criterion")


def unit_sums(graph: ChannelGraph, values: Mapping[str, Tensor]) -> Tensor:
    """Add per-channel `values` of modules up per unit id, a double vector of length `graph.count`.

    `values` maps a module name to one number per output channel, in the order of `graph.outs`.
    """
    total = torch.zeros(graph.count, dtype=torch.float64)
    for name, channel in values.items():
        total.index_add_(0, graph.outs[name].cpu(), channel.detach().double().cpu())
    return total


def by_group(graph: ChannelGraph, total: Tensor) -> Scores:
    """Cut a vector over unit ids into the scores of every group; refuses numbers not finite."""
    scores = {group.name: total[group.units.cpu()] for group in graph.groups}
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise ConfigError(
                f"the scores of {name} are not finite; look for nan or inf in the weights "
                "of the source model"
            )
    return scores


def seen_groups(graph: ChannelGraph, total: Tensor, seen: Tensor, need: str) -> Scores:
    """`by_group` for the groups all of whose units were met; `seen` is not zero where one was.

    Selections keep the other groups whole, and say so. ConfigError where none is left: no group
    "has what it needs", and what to do.
    """
    met = {g.name for g in graph.groups if bool((seen[g.units.cpu()] != 0).all())}
    if graph.groups and not met:
        raise ConfigError(f"none of the {len(graph.groups)} channel groups {need}")
    return {name: score for name, score in by_group(graph, total).items() if name in met}


def examples(
    batches: Batches, samples: int, device: str, batch: int = _BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """A fixed random mixture of `samples` examples, not augmented, on `device`."""
    for x, y in batches.sample(samples, batch):
        yield x.to(device), y.to(device)


def training_data(data: Data | None, criterion: str) -> Data:
    """The data that a criterion asked for; ConfigError when there is none."""
    if data is None:
        raise ConfigError(f"{criterion} scores units on training examples; give it a data set")
    return data
