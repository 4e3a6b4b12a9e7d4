"""Feature maps as statistics read them: channel by channel, one flattened map per example."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, eq=False)
class Maps:
    """`values` (channels, examples, entries), a view where possible, and the entries that count.

    `sizes` is how many entries of a channel are maps; the others are zeros that fill up.
    """

    values: Tensor
    sizes: Tensor

    @classmethod
    def of(cls, values: Tensor) -> Maps:
        """Maps of one size."""
        sizes = torch.full((len(values),), values.shape[2], device=values.device)
        return cls(values, sizes)

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: double where maps are, single otherwise."""
        return torch.float64 if self.values.dtype == torch.float64 else torch.float32


def channel_maps(layer: nn.Module, tensor: Tensor) -> Maps:
    """What enters or leaves a layer, by channel: dimension 1 of convolutions, the last of linears.

    Positions are entries of a map.
    """
    if isinstance(layer, nn.Linear):
        return Maps.of(tensor.reshape(len(tensor), -1, tensor.shape[-1]).permute(2, 0, 1))
    return Maps.of(tensor.flatten(2).transpose(0, 1))


def input_maps(layer: nn.Module, tensor: Tensor, units: Tensor) -> tuple[Maps, Tensor]:
    """What enters a layer, by channel, and the unit of each channel.

    `units` has one for every input (`ChannelGraph.ins`). Inputs of a linear layer that are one
    unit, as those of a flattened map, are one channel; inputs that are fixed (unit 0) are a
    channel each.
    """
    maps = channel_maps(layer, tensor)
    if not isinstance(layer, nn.Linear):
        return maps, units
    inputs, owners = members(units)
    if inputs.shape[1] == 1:
        return maps, owners
    filled = F.pad(tensor.reshape(len(tensor), -1, tensor.shape[-1]), (0, 1))
    gathered = filled[..., inputs.to(tensor.device)]  # index -1 is the zero that was added
    positions = filled.shape[1]
    values = gathered.permute(2, 0, 1, 3).flatten(2)
    sizes = (inputs >= 0).sum(1).to(tensor.device) * positions
    return Maps(values, sizes), owners


def members(units: Tensor) -> tuple[Tensor, Tensor]:
    """The inputs of every unit (units, most), filled up with -1, and the units' ids.

    Units are in the order of their first input; every fixed input is a unit of its own.
    """
    alone = torch.where(units == 0, -1 - torch.arange(len(units)), units)
    ids, owner, counts = alone.unique(return_inverse=True, return_counts=True)
    by_owner = owner.argsort(stable=True)
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(units)) - starts.repeat_interleave(counts)
    inputs = torch.full((len(ids), int(counts.max())), -1)
    inputs[owner[by_owner], place] = by_owner
    order = inputs[:, 0].argsort()
    return inputs[order], ids[order].clamp_min(0)


class Responses:
    """The output channels of a layer, a response each."""

    def __call__(self, maps: Maps) -> Maps:
        """The maps as they are."""
        return maps


class WholeOutput(Responses):
    """All that leaves a layer as one response, as APIB has it."""

    def __call__(self, maps: Maps) -> Maps:
        """One channel that holds the maps of all."""
        return Maps.of(maps.values.transpose(0, 1).flatten(1)[None])
