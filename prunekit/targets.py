"""Targets: which parameters of a network are the rows that a penalty acts on."""

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


@dataclass(frozen=True, kw_only=True)
class Target(Checked, ABC):
    """A choice of rows, made for one network by `rows`.

    `layers` maps patterns of block names (as in file names: * and ?) to penalty weights. A block
    gets the weight of the first pattern it matches, one that matches none is left out; without
    `layers` every block has weight 1. ConfigError names a pattern that matches no block.
    `balance` multiplies each weight by the mean norm of the block's rows as they are now (layer
    balancing, Li et al. 2020, section 3.6).
    """

    layers: Annotated[
        Mapping[str, Positive] | None, "weights by pattern of layers, others are left out; null: 1"
    ] = None
    balance: Annotated[bool, "weights times the mean row norm of the layer, as it starts"] = False

    def rows(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """The blocks of rows in `model`, in the order of its modules."""
        blocks = self.blocks(model, graph)
        blocks = blocks if self.layers is None else _weighted(blocks, self.layers)
        return [_balanced(block) for block in blocks] if self.balance else blocks

    @abstractmethod
    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """All blocks there are, with weight 1."""


TARGETS: Registry[Target] = Registry("target")


@TARGETS.register("filters")
@dataclass(frozen=True, kw_only=True)
class Filters(Target):
    """The filters of every convolution and linear layer whose outputs can all be removed.

    `bias=True` appends its bias to each filter, as the released SSR code does.
    """

    bias: Annotated[bool, "appends its bias to each filter"] = False

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """One block per layer, named after it."""
        return [
            Rows(name, _filters(module, self.bias), graph.outs[name])
            for name, module in _weighing(model, graph)
            if removable(graph.outs[name]) and _one_row_per_output(module)
        ]


@TARGETS.register("entries")
@dataclass(frozen=True, kw_only=True)
class Entries(Target):
    """Every single weight of every convolution and linear layer: unstructured sparsity."""

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """One block per layer; an entry has the unit of its filter, 0 in the classifier."""
        return [
            Rows(name, (Slice(module.weight, None),), _entry_units(module, graph.outs[name]))
            for name, module in _weighing(model, graph)
            if _one_row_per_output(module)
        ]


@TARGETS.register("inputs")
@dataclass(frozen=True, kw_only=True)
class Inputs(Target):
    """The input slices of every convolution and linear layer whose inputs can all be removed.

    A channel that was flattened owns several neighbouring columns, which form one row.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """One block per layer that reads removable channels; grouped convolutions are left out."""
        found = []
        for name, module in _weighing(model, graph):
            units = graph.ins[name]
            if removable(units) and getattr(module, "groups", 1) == 1:
                width = span(units)
                part = Slice(module.weight, _input_dim(module), width)
                found.append(Rows(name, (part,), units[::width]))
        return found


@TARGETS.register("scales")
@dataclass(frozen=True, kw_only=True)
class Scales(Target):
    """The scale of every batch norm channel, as in network slimming; shifts are never penalised.

    That is batch norm of any dimension, behind linear layers and synchronised too, but no group or
    layer norm: their channels share statistics, so that one scale says little about one channel.
    ConfigError where there is no batch norm with scales.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """One block per batch norm layer, with rows of width one."""
        found = [
            Rows(name, (Slice(module.weight),), graph.outs[name])
            for name, module in model.named_modules()
            if isinstance(module, _BatchNorm) and module.affine and name in graph.outs
        ]
        if not found:
            raise ConfigError(
                f"target=scales: {type(model).__name__} has no batch norm with scales; use "
                "target=filters (regularizer=l21), which needs none"
            )
        return found


@TARGETS.register("coupled")
@dataclass(frozen=True, kw_only=True)
class Coupled(Target):
    """The filters of all layers that produce the same channels, as one long row per channel.

    A layer that produces only some of a group's channels, or in another order, stays on its own.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """One block per group, named after its first layer, then the layers on their own."""
        alone = {block.name: block for block in Filters().blocks(model, graph)}
        coupled = []
        for group in graph.groups:
            names = [name for name in group.producers if _produces(graph, name, group.units)]
            parts = [alone.pop(name) for name in names if name in alone]
            if parts:
                slices = tuple(part for block in parts for part in block.slices)
                coupled.append(Rows(parts[0].name, slices, group.units))
        return coupled + list(alone.values())


def _weighted(blocks: Sequence[Rows], layers: Layers) -> list[Rows]:
    names = [block.name for block in blocks]
    for pattern in layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                f"layers.{pattern} matches no block of rows; {one_of(pattern, names)}"
            )
    chosen = []
    for block in blocks:
        weights = [weight for key, weight in layers.items() if fnmatchcase(block.name, key)]
        if weights:
            chosen.append(replace(block, weight=float(weights[0])))
    return chosen


def _balanced(block: Rows) -> Rows:
    """The block weighted by its mean row norm too; one of zeros keeps its weight."""
    mean = float(block.read().norm(dim=1).mean())
    return replace(block, weight=block.weight * mean) if mean > 0 else block


def _weighing(model: nn.Module, graph: ChannelGraph) -> list[tuple[str, nn.Module]]:
    """The convolutions and linear layers that the example went through."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear) and name in graph.outs
    ]


def removable(units: Tensor) -> bool:
    """Return whether every one of these channels may be removed (unit 0 is frozen)."""
    return bool((units != 0).all())


def _one_row_per_output(module: nn.Module) -> bool:
    """False where one slice of the weight serves several outputs: grouped transposed ones."""
    return not (isinstance(module, _ConvTransposeNd) and module.groups > 1)


def _produces(graph: ChannelGraph, name: str, units: Tensor) -> bool:
    return name in graph.outs and torch.equal(graph.outs[name], units)


def _output_dim(module: nn.Module) -> int:
    return 1 if isinstance(module, _ConvTransposeNd) else 0


def _input_dim(module: nn.Module) -> int:
    return 1 - _output_dim(module)


def _filters(module: nn.Module, bias: bool) -> tuple[Slice, ...]:
    weight = Slice(module.weight, _output_dim(module))
    return (weight, Slice(module.bias)) if bias and module.bias is not None else (weight,)


def _entry_units(module: nn.Module, units: Tensor) -> Tensor:
    """The filter's unit at every entry, in the order in which the weight is flattened."""
    shape = [1] * module.weight.dim()
    shape[_output_dim(module)] = -1
    return units.reshape(shape).expand(module.weight.shape).flatten()


def span(units: Tensor) -> int:
    """How many neighbouring columns always belong together: the divisor of all runs of one id."""
    _, runs = units.unique_consecutive(return_counts=True)
    return gcd(*runs.tolist())


def unit_scores(
    graph: ChannelGraph, blocks: Sequence[Rows], matrices: Sequence[Tensor]
) -> dict[str, Tensor]:
    """The 2-norm of all rows of each unit, for every channel group that the blocks reach.

    `matrices` are shaped like the blocks: the parameters, or a solver's solution, in which a zero
    means that the unit is gone.
    """
    norms = unit_norms(blocks, matrices, graph.count)
    reached = torch.cat([block.units.cpu() for block in blocks]).unique()
    units = {group.name: group.units.cpu() for group in graph.groups}
    return {name: norms[ids] for name, ids in units.items() if bool(torch.isin(ids, reached).all())}
