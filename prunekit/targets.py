"""Targets choose the parameters of a network that form the rows of a penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import gcd
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from prunekit.errors import ConfigError, one_of
from prunekit.graph.channels import ChannelGraph
from prunekit.registry import Registry
from prunekit.rows import Rows, Slice, unit_norms
from prunekit.schema import Checked, Positive

Layers = Mapping[str, float]
WeightedLayer = _ConvNd | nn.Linear


@dataclass(frozen=True, kw_only=True)
class Target(Checked, ABC):
    """A rule that chooses the rows of a network.

    `layers` maps patterns of block names (with * and ?, as for file names) to penalty weights. A
    block gets the weight of the first pattern that it matches, and is left out if it matches none;
    without `layers` every block has weight 1. A pattern that matches no block raises ConfigError.
    `balance` multiplies each weight by the mean norm of the block's rows (layer balancing, Li et
    al. 2020, section 3.6).
    """

    layers: Annotated[
        Mapping[str, Positive] | None,
        "penalty weights by layer pattern, other layers are left out; null: all 1",
    ] = None
    balance: Annotated[bool, "multiply weights by the mean row norm of the layer at the start"] = (
        False
    )

    def rows(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return the weighted blocks of rows of `model`, in the order of its modules."""
        blocks = self.blocks(model, graph)
        blocks = blocks if self.layers is None else _weighted(blocks, self.layers)
        return [_balanced(block) for block in blocks] if self.balance else blocks

    @abstractmethod
    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return all blocks of rows, with weight 1."""


TARGETS: Registry[Target] = Registry("target")


@TARGETS.register("filters")
@dataclass(frozen=True, kw_only=True)
class Filters(Target):
    """The filters of every convolution and linear layer whose outputs can all be removed.

    `bias=True` appends the bias to each filter, as the released SSR code does.
    """

    bias: Annotated[bool, "append the bias to each filter"] = False

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return one block per layer, named after it."""
        return [
            Rows(name, _filters(module, self.bias), graph.outs[name])
            for name, module in _weighted_layers(model, graph)
            if removable(graph.outs[name]) and _has_row_per_output(module)
        ]


@TARGETS.register("entries")
@dataclass(frozen=True, kw_only=True)
class Entries(Target):
    """Every single weight of every convolution and linear layer: unstructured sparsity."""

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return one block per layer; an entry has the unit of its filter, 0 in the classifier."""
        return [
            Rows(name, (Slice(module.weight, None),), _entry_units(module, graph.outs[name]))
            for name, module in _weighted_layers(model, graph)
            if _has_row_per_output(module)
        ]


@TARGETS.register("inputs")
@dataclass(frozen=True, kw_only=True)
class Inputs(Target):
    """The input slices of every convolution and linear layer whose inputs can all be removed.

    The neighbouring columns of a flattened channel form one row. Grouped convolutions are left out.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return one block per layer, named after it."""
        blocks = []
        for name, module in _weighted_layers(model, graph):
            units = graph.ins[name]
            if removable(units) and getattr(module, "groups", 1) == 1:
                width = span(units)
                part = Slice(module.weight, _input_dim(module), width)
                blocks.append(Rows(name, (part,), units[::width]))
        return blocks


@TARGETS.register("scales")
@dataclass(frozen=True, kw_only=True)
class Scales(Target):
    """The scale of every batch norm channel, as in network slimming; shifts are never penalised.

    This includes batch norm of any dimension and synchronised batch norm. Group and layer norms are
    left out, since their channels share statistics, so a scale says little about one channel.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return one block per batch norm, with rows of width one; raises ConfigError for none."""
        blocks = [
            Rows(name, (Slice(module.weight),), graph.outs[name])
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.affine and name in graph.outs
        ]
        if not blocks:
            raise ConfigError(
                f"target=scales: {type(model).__name__} has no batch norm with scales; use "
                "target=filters (regularizer=l21), which needs none"
            )
        return blocks


@TARGETS.register("coupled")
@dataclass(frozen=True, kw_only=True)
class Coupled(Target):
    """The filters of all layers that produce the same channels, joined to one row per channel.

    A layer that produces only some channels of a group, or in another order, is a separate block.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return one block per group, named after its first layer, then the separate layers."""
        separate = {block.name: block for block in Filters().blocks(model, graph)}
        coupled = []
        for group in graph.groups:
            names = [name for name in group.producers if _produces(graph, name, group.units)]
            parts = [separate.pop(name) for name in names if name in separate]
            if parts:
                slices = tuple(part for block in parts for part in block.slices)
                coupled.append(Rows(parts[0].name, slices, group.units))
        return coupled + list(separate.values())


def _weighted(blocks: Sequence[Rows], layers: Layers) -> list[Rows]:
    names = [block.name for block in blocks]
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"layers.{pattern} matches no block of rows; {one_of(pattern, names)}"
            )
    weighted = []
    for block in blocks:
        weights = [weight for key, weight in layers.items() if fnmatchcase(block.name, key)]
        if weights:
            weighted.append(replace(block, weight=float(weights[0])))
    return weighted


def _balanced(block: Rows) -> Rows:
    """Multiply the weight by the mean row norm; a block of zeros keeps its weight."""
    mean = float(block.read().norm(dim=1).mean())
    return replace(block, weight=block.weight * mean) if mean > 0 else block


def _weighted_layers(model: nn.Module, graph: ChannelGraph) -> list[tuple[str, WeightedLayer]]:
    """Return the convolutions and linear layers that the forward pass used."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear) and name in graph.outs
    ]


def removable(units: Tensor) -> bool:
    """Return whether all of these channels may be removed (unit 0 is frozen)."""
    return bool((units != 0).all())


def _has_row_per_output(module: nn.Module) -> bool:
    """Return False for grouped transposed convolutions, whose slices serve several outputs."""
    return not (isinstance(module, _ConvTransposeNd) and module.groups > 1)


def _produces(graph: ChannelGraph, name: str, units: Tensor) -> bool:
    return name in graph.outs and torch.equal(graph.outs[name], units)


def _output_dim(module: nn.Module) -> int:
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def _input_dim(module: nn.Module) -> int:
    return 1 - _output_dim(module)


def _filters(module: WeightedLayer, bias: bool) -> tuple[Slice, ...]:
    weight = Slice(module.weight, _output_dim(module))
    return (weight, Slice(module.bias)) if bias and module.bias is not None else (weight,)


def _entry_units(module: WeightedLayer, units: Tensor) -> Tensor:
    """Return the unit of every entry's filter, in the order in which the weight is flattened."""
    shape = [1] * module.weight.dim()
    shape[_output_dim(module)] = -1
    return units.reshape(shape).expand(module.weight.shape).flatten()


def span(units: Tensor) -> int:
    """Return how many neighbouring columns belong together: the common divisor of all runs."""
    _, lengths = torch.unique_consecutive(units, return_counts=True)
    return gcd(*lengths.tolist())


def unit_scores(
    graph: ChannelGraph, blocks: Sequence[Rows], matrices: Sequence[Tensor]
) -> dict[str, Tensor]:
    """Return the 2-norm of all rows of each unit, for every group whose units all have rows.

    `matrices` are shaped like the blocks: the parameters, or a solver's solution, in which a zero
    means that the unit can be removed.
    """
    norms = unit_norms(blocks, matrices, graph.count)
    covered = torch.unique(torch.cat([block.units.cpu() for block in blocks]))
    units = {group.name: group.units.cpu() for group in graph.groups}
    return {name: norms[ids] for name, ids in units.items() if bool(torch.isin(ids, covered).all())}
