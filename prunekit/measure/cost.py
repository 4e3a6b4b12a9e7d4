"""Multiply-adds and parameters of the network that would remain, without making it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import TRANSPOSED, layer_named, weight_norm, widths
from prunekit.graph.whole_groups import goes_whole

if TYPE_CHECKING:
    from prunekit.measure.latency import LatencyTest
    from prunekit.measure.latency_table import Clock, TimedCost


class CostModel:
    """Counts for any choice of dropped units, of convolutions and linear layers as they are called.

    `drop` is a mask over unit ids, as `ChannelGraph.drop` returns it; None is the full network.
    A multiply-add counts as one, for one example. Parameters are all that the network has.
    With a `clock` it can also measure, which it does when it is first asked for milliseconds.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, clock: Clock | None = None) -> None:
        self._network, self._clock = (model, graph), clock
        self._timed: list[TimedCost] = []
        self._names = [*graph.ins]
        self._modules = [_layer(model, name, graph) for name in self._names]
        self._count = graph.count
        sides = [graph.ins[name] for name in self._names]
        sides += [graph.outs[name] for name in self._names]
        self._units = torch.cat(sides) if sides else torch.zeros(0, dtype=torch.long)
        lengths = torch.tensor([len(side) for side in sides], dtype=torch.long)
        self._side = torch.arange(len(sides)).repeat_interleave(lengths)
        self._groups = _column([getattr(module, "groups", 1) for module in self._modules])
        self._whole = _column([goes_whole(module) for module in self._modules]).bool()
        fan = [widths(module)[0] for module in self._modules]
        self._fan = _column(fan) // self._groups
        self._set_macs(graph)
        self._set_params(model, graph)

    def macs(self, drop: Tensor | None = None) -> int:
        """Multiply-adds of convolutions and linear layers."""
        pairs = self._pairs(*self._kept(drop))
        return int((self._area * self._uses * pairs).sum()) + self._fixed

    def macs_bias(self, drop: Tensor | None = None) -> int:
        """Multiply-adds, and one addition for each output that has a bias."""
        _, outs = self._kept(drop)
        return self.macs(drop) + int((self._biased * outs).sum())

    def params(self, drop: Tensor | None = None) -> int:
        """Parameters of the whole network, shared ones once."""
        layers = int(self._layer_params(*self._kept(drop)).sum())
        gone = torch.zeros(self._count, dtype=torch.bool) if drop is None else drop.cpu()
        bare = sum(width * int((~gone[units]).sum()) for width, units in self._bare)
        return layers + bare + self._rest

    def layer_table(self, drop: Tensor | None = None) -> list[dict[str, Any]]:
        """One row for each layer with channels: name, kind, in, out, macs, params."""
        ins, outs = self._kept(drop)
        columns = {
            "name": self._names,
            "kind": [type(module).__name__ for module in self._modules],
            "in": ins.tolist(),
            "out": outs.tolist(),
            "macs": (self._area * self._uses * self._pairs(ins, outs)).tolist(),
            "params": self._layer_params(ins, outs).tolist(),
        }
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def timed(self, timing: LatencyTest) -> TimedCost:
        """Return a cost model that also predicts milliseconds as `timing` measures them.

        The same `timing` returns the same model. Raises ConfigError without a clock.
        """
        if self._clock is None:
            raise ConfigError(
                "a selection by latency needs a cost model that measures: give it a Clock"
            )
        for cost in self._timed:
            if cost.timing == timing:
                return cost
        self._timed.append(self._clock.cost(*self._network, timing))
        return self._timed[-1]

    def _kept(self, drop: Tensor | None) -> tuple[Tensor, Tensor]:
        """How many input and output channels every layer keeps."""
        if drop is None:
            drop = torch.zeros(self._count, dtype=torch.bool)
        if drop.shape != (self._count,):
            raise SurgeryError(
                f"drop has shape {tuple(drop.shape)}, the graph has {self._count} unit ids"
            )
        kept = (~drop.cpu())[self._units].long()
        counts = torch.zeros(2 * len(self._names), dtype=torch.long)
        ins, outs = counts.index_add_(0, self._side, kept).view(2, -1)
        return ins, outs

    def _pairs(self, ins: Tensor, outs: Tensor) -> Tensor:
        """Pairs of channels that a layer connects; in groups that go whole all inputs are left."""
        return torch.where(self._whole, outs * self._fan, ins * outs // self._groups)

    def _layer_params(self, ins: Tensor, outs: Tensor) -> Tensor:
        weights = self._area * self._own * self._pairs(ins, outs)
        return weights + self._per_output * outs + self._per_input * ins

    def _set_macs(self, graph: ChannelGraph) -> None:
        self._fixed = graph.fixed_macs
        uses = [graph.uses.get(name, 0) for name in self._names]
        shapes = [graph.shapes[name] for name in self._names]
        self._uses = _column(uses)
        self._area = _column([_area(module) for module in self._modules])
        self._biased = _column(
            [
                _positions(module, shape, use) if use and module.bias is not None else 0
                for module, shape, use in zip(self._modules, shapes, uses, strict=True)
            ]
        )

    def _set_params(self, model: nn.Module, graph: ChannelGraph) -> None:
        """Which layer counts which parameters; shared ones belong to the layer that is first."""
        seen: set[int] = set()
        own, per_output, per_input = [], [], []
        for module in self._modules:
            fresh = [p for p in _parameters(module) if id(p) not in seen]
            seen.update(map(id, fresh))
            full = [p for p in fresh if _area(module) and p.shape == module.weight.shape]
            own.append(bool(full))
            matrices = [p for p in fresh if p.ndim > 1]  # a weight norm adds one of lengths
            lengths = max(0, len(matrices) - 1) if _area(module) else 0
            per_input.append(lengths if isinstance(module, TRANSPOSED) else 0)
            per_output.append(len(fresh) - own[-1] - per_input[-1])
        self._own, self._per_output = _column(own), _column(per_output)
        self._per_input = _column(per_input)
        self._bare = [*_bare(model, graph)]
        self._rest = sum(p.numel() for p in model.parameters() if id(p) not in seen)
        self._rest -= sum(width * len(units) for width, units in self._bare)


_SPECIAL: list[tuple[type[nn.Module], type[CostModel]]] = []


def counts(kind: type[nn.Module]) -> Callable[[type[CostModel]], type[CostModel]]:
    """Return a decorator for the cost model of networks that contain modules of this kind."""

    def keep(model: type[CostModel]) -> type[CostModel]:
        _SPECIAL.append((kind, model))
        return model

    return keep


def cost_of(model: nn.Module, graph: ChannelGraph, clock: Clock | None = None) -> CostModel:
    """Return the cost model that counts a network's modules as they will be when it is finished."""
    modules = [*model.modules()]
    for kind, special in _SPECIAL:
        if any(isinstance(module, kind) for module in modules):
            return special(model, graph, clock)
    return CostModel(model, graph, clock)


def _bare(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[int, Tensor]]:
    """Parameters that belong to no layer: entries per unit, and the units."""
    parameters = dict(model.named_parameters())
    for path, sides in graph.tensors.items():
        for units in sides:
            if units is not None and path in parameters:
                yield parameters[path].numel() // len(units), units


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """A layer's own parameters; a normalised weight has two."""
    norm = weight_norm(module) if _area(module) else None
    inner = [] if norm is None or norm is module else module.parametrizations.weight.parameters()
    return [*module.parameters(recurse=False), *inner]


def _layer(model: nn.Module, name: str, graph: ChannelGraph) -> nn.Module:
    module = layer_named(model, name)
    _, width = widths(module)
    if width != len(graph.outs[name]):
        raise SurgeryError(
            f"{name} has {width} output channels, the graph {len(graph.outs[name])}; "
            "trace the graph on this network"
        )
    return module


def _area(module: nn.Module) -> int:
    """Entries of the weight for one pair of channels; 0 for layers without such a weight."""
    if hasattr(module, "kernel_size"):
        return prod(module.kernel_size)
    return int(isinstance(module, nn.Linear))


def _positions(module: nn.Module, shape: tuple[int, ...], uses: int) -> int:
    """Entries of one output channel, over all calls; a transposed layer is counted by inputs."""
    if not getattr(module, "transposed", False):
        return uses
    return prod(shape) // module.out_channels


def _column(numbers: list[int] | list[bool]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)
