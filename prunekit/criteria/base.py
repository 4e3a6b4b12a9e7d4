"""The interface of criteria, and functions that turn channel values into scores of units."""

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
_BATCH = 32  # results do not depend on it


class Criterion(Checked, ABC):
    """A measure of how important every removable unit of a network is.

    `comparable` is True for scores that compare between groups as they are, so that a selection
    must not scale them by group. `rescorable` is False for a criterion that cannot score a network
    that was narrowed and trained.
    """

    comparable: ClassVar[bool] = False
    rescorable: ClassVar[bool] = True

    @abstractmethod
    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return one finite score per unit of every group, by group name; larger means keep.

        `data` may be None for criteria that only read weights. `device` is that of the network and
        of the examples; scores are double vectors on the CPU.
        """

    def for_cut(self, absorbs: bool) -> Criterion:
        """Return the criterion for a cut that absorbs constants of removed channels, or not."""
        return self

    @property
    def resolved(self) -> bool:
        """Return whether the paths of all files that the criterion reads are set."""
        return True

    def resolve_beside(self, model: Path | None) -> Criterion:
        """Return the criterion with unset paths pointing to the folder of the model file."""
        return self

    def files(self) -> Mapping[str, Path]:
        """Return the files that the criterion reads, by their names in `settings.json`.

        Their content, instead of the setting `path`, is part of the identity of a run.
        """
        return {}


Samples = Annotated[Count, "training examples that are read, not augmented"]


@dataclass(frozen=True)
class OnExamples(Criterion):
    """A criterion that reads `samples` training examples, not augmented."""

    samples: Samples = 1000


CRITERIA: Registry[Criterion] = Registry("criterion")


def sum_by_unit(graph: ChannelGraph, values: Mapping[str, Tensor]) -> Tensor:
    """Sum the values of channels over all layers, as a double vector over unit ids.

    `values` maps a layer's name to one number per output channel, in the order of `graph.outs`.
    """
    total = torch.zeros(graph.count, dtype=torch.float64)
    for name, channel in values.items():
        total.index_add_(0, graph.outs[name].cpu(), channel.detach().double().cpu())
    return total


def split_by_group(graph: ChannelGraph, total: Tensor) -> Scores:
    """Split a vector over unit ids into the scores of every group.

    Raises ConfigError for numbers that are not finite.
    """
    scores = {group.name: total[group.units.cpu()] for group in graph.groups}
    for name, score in scores.items():
        if not bool(score.isfinite().all()):
            raise ConfigError(
                f"the scores of {name} are not finite; look for nan or inf in the weights "
                "of the source model"
            )
    return scores


def scores_of_complete_groups(
    graph: ChannelGraph, total: Tensor, counts: Tensor, need: str
) -> Scores:
    """Return the scores of the groups in which every unit has a count above zero.

    `total` and `counts` are vectors over unit ids; a count says how many values a total has.
    Selections keep the other groups whole and name them. Raises ConfigError where no group is
    complete; `need` completes "none of the channel groups ..." and says what to do.
    """
    complete = {g.name for g in graph.groups if bool((counts[g.units.cpu()] != 0).all())}
    if graph.groups and not complete:
        raise ConfigError(f"none of the {len(graph.groups)} channel groups {need}")
    scores = split_by_group(graph, total)
    return {name: score for name, score in scores.items() if name in complete}


def examples(
    batches: Batches, samples: int, device: str, batch: int = _BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of a fixed random sample of examples, not augmented, on `device`."""
    for x, y in batches.sample(samples, batch):
        yield x.to(device), y.to(device)


def require_data(data: Data | None, criterion: str) -> Data:
    """Return the data; raises ConfigError that names the criterion when there is none."""
    if data is None:
        raise ConfigError(f"{criterion} scores units on training examples; give it a data set")
    return data
