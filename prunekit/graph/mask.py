"""What a pruned network keeps, as one value that is read by group and by unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunekit.errors import SurgeryError, one_of


class Group(Protocol):
    """Units with a name."""

    @property
    def name(self) -> str:
        """The name of the first layer that makes them."""

    @property
    def units(self) -> Tensor:
        """Their ids."""


class Grouped(Protocol):
    """What has groups of units: a channel graph."""

    @property
    def groups(self) -> Sequence[Group]:
        """All groups."""

    @property
    def count(self) -> int:
        """Unit ids run from 1 to one below it."""


def flags(graph: Grouped, masks: Mapping[str, Tensor | bool]) -> Tensor:
    """A bool vector over unit ids, True where the mask of a group is; one bool means all its units.

    Raises SurgeryError for an unknown group, and for a mask of another type or length.
    """
    groups = {group.name: group.units for group in graph.groups}
    found = torch.zeros(graph.count, dtype=torch.bool)
    for name, mask in masks.items():
        if name not in groups:
            raise SurgeryError(f"no group is called {name!r}; {one_of(name, groups)}")
        units = groups[name]
        if not isinstance(mask, bool) and (mask.dtype != torch.bool or mask.shape != units.shape):
            raise SurgeryError(
                f"the mask of group {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; "
                f"it must be torch.bool of shape ({len(units)},)"
            )
        found[units] = mask if isinstance(mask, bool) else mask.cpu()
    return found


@dataclass(frozen=True, eq=False)
class ChannelMask(Mapping[str, Tensor]):
    """Which units of a channel graph are kept.

    As a mapping it gives for the name of every group a bool vector over its units, True = kept.
    `removed` says the same as one bool vector over unit ids, True = removed: the form in which cost
    models, edits and checks take it.
    """

    units: Mapping[str, Tensor]
    removed: Tensor

    @classmethod
    def of(cls, graph: Grouped, keep: Mapping[str, Tensor]) -> ChannelMask:
        """Make it of masks by group (True = kept); a group that is not named is kept whole.

        Raises SurgeryError for an unknown group, and for a mask of another type or length.
        """
        if isinstance(keep, ChannelMask):
            return keep
        named = flags(graph, dict.fromkeys(keep, True))
        return cls({group.name: group.units for group in graph.groups}, named & ~flags(graph, keep))

    @classmethod
    def all(cls, graph: Grouped) -> ChannelMask:
        """Make the mask that keeps every unit."""
        return cls.of(graph, {})

    def __getitem__(self, group: str) -> Tensor:
        return ~self.removed[self.units[group]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    @property
    def counts(self) -> dict[str, int]:
        """How many units every group keeps."""
        return {name: int(mask.sum()) for name, mask in self.items()}

    @property
    def indices(self) -> dict[str, Tensor]:
        """The indices of the units that every group keeps, in the order of its units."""
        return {name: mask.nonzero().flatten() for name, mask in self.items()}
