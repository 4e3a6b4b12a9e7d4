"""Channels that put out a constant which is known exactly, since it does not depend on the input.

A channel behind a filter of zeros puts out its bias, and one behind a norm scale of zero the shift.
A batch norm with running statistics turns the bias b of such a filter into the constant
shift + scale (b - mean) / sqrt(var + eps).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments
from prunekit.graph.layers import channel_dim, is_weighted, layer_named
from prunekit.graph.ops.weights import zero_filters
from prunekit.graph.whole_groups import removes_whole_groups
from prunekit.modes import evaluating
from prunekit.surgery.equivalence import compute_outputs, rounding, with_two_examples
from prunekit.surgery.layer_hooks import Forward, observing_inputs, replacing_outputs


@dataclass(frozen=True, eq=False)
class KnownConstants:
    """The removed channels whose constants are known, as masks over the channels of layers.

    `outs` are masks over output channels, `ins` over input channels; layers without such channels
    may be missing. `ends` are modules whose kept output channels depend on removed channels only,
    all of which are known.
    """

    outs: Mapping[str, Tensor] = field(default_factory=dict)
    ins: Mapping[str, Tensor] = field(default_factory=dict)
    ends: Collection[str] = ()

    def __bool__(self) -> bool:
        """Return whether any channel is known at a layer that would read it, or at an end."""
        return bool(self.ends) or any(bool(mask.any()) for mask in self.ins.values())


def find_known_constants(
    model: nn.Module,
    graph: ChannelGraph,
    removed: Tensor,
    inputs: Arguments,
    ends: Collection[str] = (),
) -> KnownConstants:
    """Return the `removed` channels that put out the same constant for every input in eval mode.

    Noise, other for each example, takes the place of every removed channel that a filter other than
    zero makes. What is equal for all examples behind it does not depend on the input. Nothing is
    known of networks that run on one example only.
    """
    if not any(_may_be_constant(model, graph, removed)):
        return KnownConstants()
    search = _Search(model, graph)
    with ExitStack() as stack:
        stack.enter_context(replacing_outputs(model, graph, removed, search.put_noise))
        stack.enter_context(observing_inputs(model, graph, removed, search.observe_input))
        stack.enter_context(_observing_ends(model, ends, search))
        stack.enter_context(evaluating(model))
        try:
            compute_outputs(model, with_two_examples(inputs), "the dense network")
        except SurgeryError:
            return KnownConstants()
    return KnownConstants(search.outs, search.ins, [n for n, same in search.ends.items() if same])


def _may_be_constant(model: nn.Module, graph: ChannelGraph, removed: Tensor) -> Iterator[bool]:
    """Yield, for every layer, whether it has a filter or scale of zeros for a removed channel."""
    for name, units in graph.outs.items():
        module, mask = layer_named(model, name), removed.cpu()[units]
        if bool(mask.any()):
            yield bool((_zeros(module, len(mask)) & mask).any())


def _zeros(module: nn.Module, width: int) -> Tensor:
    """Return a mask of the output channels that are behind weights of zeros."""
    if is_weighted(module):
        return zero_filters(module).cpu()
    scale = getattr(module, "weight", None)
    if not isinstance(scale, Tensor) or scale.shape != (width,):
        return torch.zeros(width, dtype=torch.bool)
    return (scale.detach() == 0).cpu()


@dataclass(eq=False)
class _Search:
    """What one run with noise shows; layers that are called more than once must agree."""

    model: nn.Module
    graph: ChannelGraph
    outs: dict[str, Tensor] = field(default_factory=dict)
    ins: dict[str, Tensor] = field(default_factory=dict)
    ends: dict[str, bool] = field(default_factory=dict)

    def put_noise(
        self, name: str, mask: Tensor, out: Tensor, dim: int, bias: Tensor | None
    ) -> Tensor:
        """Replace removed channels that are made of others, and note which are constant."""
        module = layer_named(self.model, name)
        if is_weighted(module) and not removes_whole_groups(module):
            zeros = zero_filters(module).cpu()
            self.outs[name] = mask & zeros
            return torch.where(_along(mask & ~zeros, dim, out), _noise(out, dim), out)
        self._note(self.outs, name, mask & _equal(out, dim))
        return out

    def observe_input(
        self, name: str, layer: nn.Module, mask: Tensor, forward: Forward, x: Tensor
    ) -> None:
        """Note which of the removed inputs of a layer are constant."""
        self._note(self.ins, name, mask & _equal(x, channel_dim(layer, x.ndim)))

    def observe_end(self, name: str, out: Tensor) -> None:
        """Note whether all channels that a module puts out are constant."""
        self.ends[name] = self.ends.get(name, True) and bool(_equal(out, 1).all())

    def _note(self, masks: dict[str, Tensor], name: str, known: Tensor) -> None:
        masks[name] = known & masks.get(name, known)


@contextmanager
def _observing_ends(model: nn.Module, ends: Collection[str], search: _Search) -> Iterator[None]:
    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, out: search.observe_end(name, out)

    with ExitStack() as stack:
        for name in ends:
            handle = model.get_submodule(name).register_forward_hook(hook(name))
            stack.callback(handle.remove)
        yield


def _along(mask: Tensor, dim: int, like: Tensor) -> Tensor:
    return mask.to(like.device).reshape([-1 if d == dim else 1 for d in range(like.ndim)])


def _noise(like: Tensor, dim: int) -> Tensor:
    """Return noise whose sign differs between examples, so that no ReLU makes them equal."""
    size = torch.rand(like.shape, device="cpu").to(like) + 0.5
    signs = 1 - 2 * (torch.arange(len(like)) % 2)
    return size * _along(signs, 0, like).to(like) if dim else size


def _equal(values: Tensor, dim: int) -> Tensor:
    """Return which channels are equal for all examples, of which there must be two."""
    if dim == 0 or len(values) < 2:
        return torch.zeros(values.shape[dim], dtype=torch.bool)
    channels = values.detach().movedim(dim, -1).reshape(len(values), -1, values.shape[dim])
    spread = (channels - channels[:1]).abs().amax((0, 1))
    known: Tensor = spread <= rounding(values.dtype) * channels.abs().amax((0, 1))
    return known.cpu()
