"""Constants that removed channels still put out, measured at the layers that would read them.

A channel whose filter or norm scale is zero still puts out its bias or the shift of its norm
(`known_constants`), and any other one is taken to. The dense network is run with exactly these
constants in place of the removed channels, and every layer that loses inputs records what they add
to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments
from prunekit.graph.dataflow import followers, lent_biases
from prunekit.graph.layers import channel_dim, layer_named
from prunekit.modes import evaluating
from prunekit.surgery.equivalence import compute_outputs, rounding, train_mode_outputs
from prunekit.surgery.known_constants import KnownConstants
from prunekit.surgery.layer_hooks import (
    Forward,
    observing_inputs,
    reading_layers,
    replacing_outputs,
)


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
    model: nn.Module,
    graph: ChannelGraph,
    removed: Tensor,
    inputs: Arguments,
    known: KnownConstants | None = None,
    only_known: bool = False,
) -> EmittedConstants:
    """Run the dense network in eval mode with removed channels set to their constants.

    With `only_known` removed channels whose constants are not `known` add nothing to an offset.
    Layers that run in train mode only, such as those of auxiliary heads, are recorded in a second
    run in train mode.
    """
    known = known or KnownConstants()
    offsets: dict[str, list[ObservedOffset]] = {
        name: [] for name, _, _ in reading_layers(model, graph, removed)
    }
    probe = _OffsetProbe(graph, removed.cpu(), offsets, known.ins if only_known else None)
    with (
        emitting_constants(model, graph, removed, known),
        observing_inputs(model, graph, removed, probe.record),
        evaluating(model),
    ):
        outputs = compute_outputs(model, inputs, "the dense network")
        unreached = probe.unreached()
        if unreached:
            probe.only = unreached
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
    known: KnownConstants | None = None,
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
        stack.enter_context(emitting_constants(model, graph, removed, known))
        stack.enter_context(evaluating(model))
        compute_outputs(model, inputs, "the dense network")
    return outputs


@contextmanager
def emitting_constants(
    model: nn.Module, graph: ChannelGraph, removed: Tensor, known: KnownConstants | None = None
) -> Iterator[None]:
    """Let removed channels of `model` put out only their constants inside the context.

    Channels that are `known` to be constant put out what they do. For others this is the bias of
    convolutions and linear layers, and the shift of norms, as if weights or scale were zero and
    statistics those of the batch; it is zero if there is none. A norm behind a channel selector is
    treated alike.
    """
    constant = {} if known is None else known.outs

    def emit(name: str, mask: Tensor, out: Tensor, dim: int, bias: Tensor | None) -> Tensor:
        if name in constant:
            mask = mask & ~constant[name]
        return _with_constants(out, mask, bias, dim)

    with replacing_outputs(model, graph, removed, emit):
        yield


@dataclass(eq=False)
class _OffsetProbe:
    """Record offsets at the layers that lose inputs.

    `known` limits them to these inputs of every layer, and `only` to some layers.
    """

    graph: ChannelGraph
    removed: Tensor
    offsets: dict[str, list[ObservedOffset]]
    known: Mapping[str, Tensor] | None = None
    only: frozenset[str] | None = None

    def unreached(self) -> frozenset[str]:
        """Return the layers that lose inputs and were not called."""
        return frozenset(name for name, calls in self.offsets.items() if not calls)

    def record(
        self, name: str, layer: nn.Module, mask: Tensor, forward: Forward, x: Tensor
    ) -> None:
        """Add the offset of one call."""
        if self.only is not None and name not in self.only:
            return
        if self.known is not None:
            mask = mask & self.known.get(name, torch.zeros_like(mask))
        kept = ~self.removed[self.graph.outs[name]]
        self.offsets[name].append(_offset(layer, forward, x, mask, kept))


def _offset(
    layer: nn.Module, forward: Forward, x: Tensor, mask: Tensor, kept: Tensor
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


def _with_constants(out: Tensor, mask: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(out.ndim)]
    shift = out.new_zeros(()) if bias is None else bias.to(out).reshape(shape)
    return torch.where(mask.to(out.device).reshape(shape), shift, out)
