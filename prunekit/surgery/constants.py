"""Constants that removed channels still put out, measured at the layers that would read them.

A channel whose filter or norm scale is zero still puts out its bias or the shift of its norm. The
dense network is run with exactly these constants in place of the removed channels, and every layer
that loses inputs records what they add to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, input_of
from prunekit.graph.dataflow import followers, lent_biases
from prunekit.graph.layers import channel_dim, is_weighted, layer_named
from prunekit.graph.table import function_operation, layer_operation, named_arguments
from prunekit.modes import evaluating
from prunekit.surgery.equivalence import compute_outputs, rounding, train_mode_outputs

Function = Callable[..., Any]
Record = Callable[[Callable[[Tensor], Tensor], Tensor], None]


@dataclass(frozen=True, eq=False)
class ObservedOffset:
    """The offset that removed input channels add to a layer's output in one call.

    `offset` has the shape of the output without its batch dimension and with the kept output
    channels only; `dim` is its channel dimension. `varies` is the difference of the constants
    between examples, relative to the largest constant.
    """

    offset: Tensor
    dim: int
    varies: float

    @property
    def by_channel(self) -> Tensor:
        """The offset as a matrix (channels, positions)."""
        channels = self.offset.movedim(self.dim, 0)
        return channels.reshape(len(channels), -1)


@dataclass(frozen=True, eq=False)
class EmittedConstants:
    """The offsets at every layer that loses inputs, one per call, and the outputs of that run.

    `following_norms` maps a layer to the batch norm that alone reads it. `function_biases` maps a
    layer whose weight is passed to a function to the path of the bias that is passed along.
    """

    offsets: dict[str, list[ObservedOffset]]
    outputs: Any
    following_norms: dict[str, str]
    function_biases: dict[str, str]


def record_offsets(
    model: nn.Module, graph: ChannelGraph, removed: Tensor, inputs: Arguments
) -> EmittedConstants:
    """Run the dense network in eval mode with removed channels set to their constants.

    Layers that run in train mode only, such as those of auxiliary heads, are recorded in a second
    run in train mode.
    """
    probe = _OffsetProbe(graph, removed)
    with probe.attached(model), emitting_constants(model, graph, removed), evaluating(model):
        with probe.functions:
            outputs = compute_outputs(model, inputs, "the dense network")
        if probe.unreached():
            probe.only = probe.unreached()
            with probe.functions:
                train_mode_outputs(model, inputs)
    recordings = graph.recordings
    norms, biases = followers(model, recordings), lent_biases(model, recordings)
    return EmittedConstants(probe.offsets, outputs, norms, biases)


def record_block_ends(
    model: nn.Module,
    graph: ChannelGraph,
    removed: Tensor,
    end_layers: Mapping[str, str],
    inputs: Arguments,
) -> dict[str, ObservedOffset]:
    """Record what modules of the dense network put out when removed channels are constant.

    `end_layers` maps each module to the layer in it that determines its output channels. The result
    has the kept channels only.
    """
    outputs: dict[str, ObservedOffset] = {}

    def recorder(end: str, layer: str) -> Callable[..., None]:
        kept = (~removed.cpu()[graph.outs[layer]]).nonzero().flatten()

        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            dim = channel_dim(layer_named(model, layer), out.ndim)
            constant, varies = _common_value(out)
            values = constant.index_select(dim, kept.to(out.device))[0]
            outputs[end] = ObservedOffset(values, dim - 1, varies)

        return hook

    with ExitStack() as stack:
        for end, layer in end_layers.items():
            hook = model.get_submodule(end).register_forward_hook(recorder(end, layer))
            stack.callback(hook.remove)
        stack.enter_context(emitting_constants(model, graph, removed))
        stack.enter_context(evaluating(model))
        compute_outputs(model, inputs, "the dense network")
    return outputs


@contextmanager
def emitting_constants(model: nn.Module, graph: ChannelGraph, removed: Tensor) -> Iterator[None]:
    """Let removed channels of `model` put out only their constants inside the context.

    For convolutions and linear layers this is the bias, for norms the shift, and zero if there is
    none. A norm behind a channel selector is treated alike, as if its scale were zero.
    """
    removed, functions = removed.cpu(), _ConstantFunctions()
    with ExitStack() as stack:
        for name, units in graph.outs.items():
            module, mask = layer_named(model, name), removed[units]
            entry = layer_operation(module)
            shifts = (entry is not None and entry.emits_bias) or name in graph.inexact
            if not shifts or not bool(mask.any()):
                continue
            if name in graph.functional:
                functions.layers[_argument_id(module)] = (module, mask)
            else:
                hook = module.register_forward_hook(_constant_hook(mask), prepend=True)
                stack.callback(hook.remove)
        if functions.layers:
            stack.enter_context(functions)
        yield


class _ConstantFunctions(TorchFunctionMode):
    """Let functions put out constants for removed channels; `layers` is keyed by tensor ids."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[int, tuple[nn.Module, Tensor]] = {}

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        arguments = _layer_arguments(func, args, kwargs)
        tensors = [arguments.get(name) for name in ("weight", "running_mean")]
        keys = [id(tensor) for tensor in tensors if id(tensor) in self.layers]
        if not keys:
            return out
        layer, mask = self.layers[keys[0]]
        return _with_constants(out, mask, arguments.get("bias"), channel_dim(layer, out.ndim))


def _layer_arguments(func: Function, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the arguments, by name, of a function that takes weights or statistics."""
    entry = function_operation(func)
    return (
        named_arguments(entry, args, kwargs or {})
        if entry is not None and entry.argument_names
        else {}
    )


def _argument_id(module: nn.Module) -> int:
    """Return the id of the tensor by which a function's call is recognised as this layer's."""
    return id(module.running_mean if module.weight is None else module.weight)


class _FunctionProbe(TorchFunctionMode):
    """Observe functions that take the weights of layers; `records` is keyed by ids of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.records: dict[int, Record] = {}

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        entry = function_operation(func)
        if entry is not None and entry.weighted:
            arguments = _layer_arguments(func, args, kwargs)
            record = self.records.get(id(arguments["weight"])) if arguments else None
            if record is not None:
                record(lambda x: func(x, *args[1:], **(kwargs or {})), arguments["input"])
        return func(*args, **(kwargs or {}))


@dataclass(eq=False)
class _OffsetProbe:
    """Record offsets at the layers that lose inputs; `only` limits it to some of them."""

    graph: ChannelGraph
    removed: Tensor
    offsets: dict[str, list[ObservedOffset]] = field(default_factory=dict)
    functions: _FunctionProbe = field(default_factory=_FunctionProbe)
    only: frozenset[str] | None = None

    def unreached(self) -> frozenset[str]:
        """Return the layers that lose inputs and were not called."""
        return frozenset(name for name, calls in self.offsets.items() if not calls)

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, units in self.graph.ins.items():
                module = layer_named(model, name)
                mask = self.removed.cpu()[units]
                if not bool(mask.any()) or not is_weighted(module):
                    continue
                self.offsets[name], record = [], self._record(name, module, mask)
                if name in self.graph.functional:
                    self.functions.records[id(module.weight)] = record
                    continue
                hook = module.register_forward_pre_hook(_pre_hook(record), with_kwargs=True)
                stack.callback(hook.remove)
            yield

    def _record(self, name: str, layer: nn.Module, mask: Tensor) -> Record:
        kept = ~self.removed.cpu()[self.graph.outs[name]]

        def record(forward: Callable[[Tensor], Tensor], x: Tensor) -> None:
            if self.only is None or name in self.only:
                self.offsets[name].append(_offset(layer, forward, x, mask, kept))

        return record


def _pre_hook(record: Record) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        record(module.forward, input_of(args, kwargs))

    return hook


def _offset(
    layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, mask: Tensor, kept: Tensor
) -> ObservedOffset:
    """Return what the input channels in `mask` alone add to a layer's output."""
    kernel: tuple[int, ...] = getattr(layer, "kernel_size", ())
    if kernel and x.ndim < len(kernel) + 2:
        x = x.unsqueeze(0)  # without a batch dimension
    dim, indices = channel_dim(layer, x.ndim), mask.nonzero().flatten().to(x.device)
    constant, varies = _common_value(x.index_select(dim, indices))
    alone = torch.zeros_like(x[:1])
    alone.index_copy_(dim, indices, constant)
    offset = forward(alone) - forward(torch.zeros_like(alone))
    dim = channel_dim(layer, offset.ndim)
    offset = offset.index_select(dim, kept.nonzero().flatten().to(x.device))
    return ObservedOffset(offset[0], dim - 1, varies)


def _common_value(values: Tensor) -> tuple[Tensor, float]:
    """Return the value that all examples share, and 0; or their mean, and how much they differ."""
    first = values[:1]
    size, spread = float(first.abs().max()), float((values - first).abs().max())
    varies = spread / max(size, spread) if spread else 0.0
    if varies > rounding(values.dtype):
        return values.mean(0, keepdim=True), varies
    return first, 0.0


def _constant_hook(mask: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        return _with_constants(out, mask, bias, channel_dim(module, out.ndim))

    return hook


def _with_constants(out: Tensor, mask: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(out.ndim)]
    shift = out.new_zeros(()) if bias is None else bias.to(out).reshape(shape)
    return torch.where(mask.to(out.device).reshape(shape), shift, out)
