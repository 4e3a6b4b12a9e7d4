"""Multiply-adds and parameters of a network, and of the network that removing units would leave."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.layers import TRANSPOSED, layer_named, weight_norm, widths
from prunekit.graph.recording.nests import tensors_within
from prunekit.graph.whole_groups import removes_whole_groups
from prunekit.modes import evaluating_unchanged

if TYPE_CHECKING:
    from prunekit.measure.latency import LatencyTest
    from prunekit.measure.latency_table import LatencySetup, TimedCost


class CostModel:
    """Count multiply-adds and parameters of the network that any choice of units would leave.

    `removed` is a bool mask over unit ids, as `ChannelGraph.drop` returns it; None is the full
    network. Multiply-adds are those of layers with weights and of products of matrices such as
    attention, for one example and over all calls, each counted as one. Parameters are those of the
    whole network. No cut changes `product_macs`, the multiply-adds of products and of recurrent
    layers. With a `latency` setup it can also predict milliseconds, see `timed`.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, latency: LatencySetup | None = None
    ) -> None:
        self._network, self._latency = (model, graph), latency
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
        self._whole = _column([removes_whole_groups(module) for module in self._modules]).bool()
        fan = [widths(module)[0] for module in self._modules]
        self._fan = _column(fan) // self._groups
        self._set_macs(graph)
        self._set_params(model, graph)

    def macs(self, removed: Tensor | None = None) -> int:
        """Return the multiply-adds of layers and products."""
        pairs = self._pairs(*self._kept(removed))
        return int((self._area * self._uses * pairs).sum()) + self._fixed + self.product_macs

    def macs_bias(self, removed: Tensor | None = None) -> int:
        """Return the multiply-adds plus one addition for each output that has a bias."""
        _, outs = self._kept(removed)
        return self.macs(removed) + int((self._biased * outs).sum())

    def params(self, removed: Tensor | None = None) -> int:
        """Return the parameters of the whole network, shared ones counted once."""
        layers = int(self._layer_params(*self._kept(removed)).sum())
        mask = torch.zeros(self._count, dtype=torch.bool) if removed is None else removed.cpu()
        bare = sum(width * int((~mask[units]).sum()) for width, units in self._bare)
        return layers + bare + self._rest

    def layer_table(self, removed: Tensor | None = None) -> list[dict[str, Any]]:
        """Return a record per layer with channels: name, kind, in, out, macs, params."""
        ins, outs = self._kept(removed)
        columns = {
            "name": self._names,
            "kind": [type(module).__name__ for module in self._modules],
            "in": ins.tolist(),
            "out": outs.tolist(),
            "macs": (self._area * self._uses * self._pairs(ins, outs)).tolist(),
            "params": self._layer_params(ins, outs).tolist(),
        }
        values = zip(*columns.values(), strict=True)
        return [dict(zip(columns, record, strict=True)) for record in values]

    def timed(self, timing: LatencyTest) -> TimedCost:
        """Return a cost model that also predicts milliseconds as `timing` measures them.

        The same `timing` returns the same model. Raises ConfigError without a latency setup.
        """
        if self._latency is None:
            raise ConfigError(
                "a selection by latency needs a cost model that measures: give it a LatencySetup"
            )
        for cost in self._timed:
            if cost.timing == timing:
                return cost
        self._timed.append(self._latency.cost(*self._network, timing))
        return self._timed[-1]

    def _kept(self, removed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the numbers of input and output channels that every layer keeps."""
        if removed is None:
            removed = torch.zeros(self._count, dtype=torch.bool)
        if removed.shape != (self._count,):
            raise SurgeryError(
                f"drop has shape {tuple(removed.shape)}, the graph has {self._count} unit ids"
            )
        kept = (~removed.cpu())[self._units].long()
        counts = torch.zeros(2 * len(self._names), dtype=torch.long)
        ins, outs = counts.index_add_(0, self._side, kept).view(2, -1)
        return ins, outs

    def _pairs(self, ins: Tensor, outs: Tensor) -> Tensor:
        """Return the pairs of channels that each layer connects.

        Layers that lose whole groups keep all inputs of the groups that remain.
        """
        return torch.where(self._whole, outs * self._fan, ins * outs // self._groups)

    def _layer_params(self, ins: Tensor, outs: Tensor) -> Tensor:
        weights = self._area * self._own * self._pairs(ins, outs)
        return weights + self._per_output * outs + self._per_input * ins

    def _set_macs(self, graph: ChannelGraph) -> None:
        self._fixed, self.product_macs = graph.fixed_macs, graph.product_macs
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
        """Assign parameters to layers; a shared one is counted at the first layer that has it."""
        counted: set[int] = set()
        own, per_output, per_input = [], [], []
        for module in self._modules:
            fresh = [p for p in _parameters(module) if id(p) not in counted]
            counted.update(map(id, fresh))
            full = [p for p in fresh if _area(module) and p.shape == module.weight.shape]
            own.append(bool(full))
            matrices = [p for p in fresh if p.ndim > 1]  # a weight norm adds one of lengths
            lengths = max(0, len(matrices) - 1) if _area(module) else 0
            per_input.append(lengths if isinstance(module, TRANSPOSED) else 0)
            per_output.append(len(fresh) - own[-1] - per_input[-1])
        self._own, self._per_output = _column(own), _column(per_output)
        self._per_input = _column(per_input)
        self._bare = [*_bare(model, graph)]
        self._rest = sum(p.numel() for p in model.parameters() if id(p) not in counted)
        self._rest -= sum(width * len(units) for width, units in self._bare)


_SPECIAL: list[tuple[type[nn.Module], type[CostModel]]] = []


def register_cost_model(kind: type[nn.Module]) -> Callable[[type[CostModel]], type[CostModel]]:
    """Return a decorator for the cost model of networks that contain modules of this kind."""

    def register(model: type[CostModel]) -> type[CostModel]:
        _SPECIAL.append((kind, model))
        return model

    return register


def make_cost_model(
    model: nn.Module, graph: ChannelGraph, latency: LatencySetup | None = None
) -> CostModel:
    """Return the cost model for a network; methods register theirs for their own modules."""
    modules = [*model.modules()]
    for kind, special in _SPECIAL:
        if any(isinstance(module, kind) for module in modules):
            return special(model, graph, latency)
    return CostModel(model, graph, latency)


def _bare(model: nn.Module, graph: ChannelGraph) -> Iterator[tuple[int, Tensor]]:
    """Yield entries per unit and the units of parameters that belong to no layer."""
    parameters = dict(model.named_parameters())
    for path, sides in graph.tensors.items():
        for units in sides:
            if units is not None and path in parameters:
                yield parameters[path].numel() // len(units), units


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """Return a layer's own parameters, including both of a normalised weight."""
    parameters = [*module.parameters(recurse=False)]
    norm = weight_norm(module) if _area(module) else None
    if norm is not None and norm is not module:
        parameters += module.get_submodule("parametrizations.weight").parameters()
    return parameters


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
    """Return the entries of the weight per pair of channels; 0 for layers without such a weight."""
    kernel: tuple[int, ...] | None = getattr(module, "kernel_size", None)
    return int(isinstance(module, nn.Linear)) if kernel is None else prod(kernel)


def _positions(module: nn.Module, shape: tuple[int, ...], uses: int) -> int:
    """Return the entries of one output channel over all calls, of one call if it is transposed.

    The `uses` of a transposed layer count input positions.
    """
    return prod(shape) // widths(module)[1] if isinstance(module, TRANSPOSED) else uses


def _column(numbers: list[int] | list[bool]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.long)


_COUNTED = ("conv", "linear", "addmm", "mm", "matmul", "bmm", "baddbmm", "einsum")


def fvcore_macs(model: nn.Module, example: Example) -> int:
    """Count the multiply-adds of layers and products in a forward pass with fvcore.

    fvcore's counts of normalisation and pooling are left out; it never counts biases, nor fused
    attention and recurrent layers.
    """
    operations = _count_operations(model, example)
    return int(sum(operations[name] for name in _COUNTED if name in operations))


class _OnTensors(nn.Module):
    """Wrap a network so that it takes and returns tensors only, as torch's tracing needs it."""

    def __init__(self, network: nn.Module, arguments: Arguments) -> None:
        super().__init__()
        self.network, self._arguments = network, arguments

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Call the network with these tensors in place of those in its arguments."""
        rest = iter(tensors)
        arguments = self._arguments.map_tensors(lambda _: next(rest))
        return tuple(tensors_within(arguments.call(self.network)))


def _count_operations(model: nn.Module, example: Example) -> dict[str, float]:
    """Return the counts by operation, without fvcore's log lines and tracing warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        arguments = Arguments.of(example)
        with evaluating_unchanged(model), torch.no_grad():
            analysis = FlopCountAnalysis(_OnTensors(model, arguments), tuple(arguments.tensors))
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.tracer_warnings("none")
            return dict(analysis.by_operator())
