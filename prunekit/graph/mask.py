"""The units that a pruned network keeps, by group and by unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from prunekit.errors import SurgeryError, one_of


class Group(Protocol):
    """A named group of units."""

    @property
    def name(self) -> str:
        """The name of the first layer that produces the units."""

    @property
    def units(self) -> Tensor:
        """The ids of the units."""


class Grouped(Protocol):
    """A channel graph, or another object with groups of units."""

    @property
    def groups(self) -> Sequence[Group]:
        """All groups."""

    @property
    def count(self) -> int:
        """One more than the largest unit id; ids start at 1."""


def flags(graph: Grouped, masks: Mapping[str, Tensor | bool]) -> Tensor:
    """Return a bool vector over unit ids from masks by group; one bool counts for a whole group.

    Raises SurgeryError for an unknown group, and for a mask of another type or length.
    """
    groups = {group.name: group.units for group in graph.groups}
    vector = torch.zeros(graph.count, dtype=torch.bool)
    for name, mask in masks.items():
        if name not in groups:
            raise SurgeryError(f"no group is called {name!r}; {one_of(name, groups)}")
        units = groups[name]
        if not isinstance(mask, bool) and (mask.dtype != torch.bool or mask.shape != units.shape):
            raise SurgeryError(
                f"the mask of group {name!r} is {mask.dtype} of shape {tuple(mask.shape)}; "
                f"it must be torch.bool of shape ({len(units)},)"
            )
        vector[units] = mask if isinstance(mask, bool) else mask.cpu()
    return vector


@dataclass(frozen=True, eq=False)
class ChannelMask(Mapping[str, Tensor]):
    """Tells which units of a channel graph are kept.

    As a mapping it has a bool vector over the units of every group, True = kept. `removed` is one
    bool vector over unit ids, True = removed: cost models, edits and checks take it in this form.
    """

    units: Mapping[str, Tensor]
    removed: Tensor

    @classmethod
    def of(cls, graph: Grouped, keep: Mapping[str, Tensor]) -> ChannelMask:
        """Return the mask for masks by group (True = kept); groups without a mask are kept.

        Raises SurgeryError for an unknown group, and for a mask of another type or length.
        """
        if isinstance(keep, ChannelMask):
            return keep
        masked = flags(graph, dict.fromkeys(keep, True))
        return cls(
            {group.name: group.units for group in graph.groups}, masked & ~flags(graph, keep)
        )

    @classmethod
    def all(cls, graph: Grouped) -> ChannelMask:
        """Return the mask that keeps every unit."""
        return cls.of(graph, {})

    def __getitem__(self, group: str) -> Tensor:
        return ~self.removed[self.units[group]]

    def __iter__(self) -> Iterator[str]:
        return iter(self.units)

    def __len__(self) -> int:
        return len(self.units)

    @property
    def counts(self) -> dict[str, int]:
        """The number of units that every group keeps."""
        return {name: int(mask.sum()) for name, mask in self.items()}

    @property
    def indices(self) -> dict[str, Tensor]:
        """The indices of the units that every group keeps, in order."""
        return {name: mask.nonzero().flatten() for name, mask in self.items()}
