"""What removed channels still emit: shifts and biases, followed to the layers that would read them.

A removed channel keeps its bias, or the shift of its norm, when its filter or scale is zero. The
dense network is run with just that, and its layers are listened to.
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
from prunekit.graph.layers import channel_dim, layer_named, weighs
from prunekit.graph.readers import followers, lent_biases
from prunekit.graph.table import given, of_function, of_layer
from prunekit.modes import evaluating
from prunekit.surgery.equivalence import run_on, trained


@dataclass(frozen=True, eq=False)
class Heard:
    """What removed input channels add to a layer's output in one call.

    `offset` has the shape of the output without its batch dimension, over the outputs that stay;
    `dim` is the channel dimension in it. `varies` is by how much the emission differs between
    examples, relative to the largest emission.
    """

    offset: Tensor
    dim: int
    varies: float

    @property
    def by_channel(self) -> Tensor:
        """The offsets as a matrix (channels, positions)."""
        channels = self.offset.movedim(self.dim, 0)
        return channels.reshape(len(channels), -1)


@dataclass(frozen=True, eq=False)
class Emission:
    """What was heard at every layer that loses inputs, and the outputs of the network meanwhile.

    `follower` names, where there is one, the batch norm that is alone in reading a layer. `given`
    are, for layers whose weights go to a function, the paths of the biases that go with them.
    """

    heard: dict[str, list[Heard]]
    outputs: Any
    follower: dict[str, str]
    given: dict[str, str]


def listen(model: nn.Module, graph: ChannelGraph, drop: Tensor, given: Arguments) -> Emission:
    """Run the dense network on a batch, in eval mode, with removed channels emitting constants.

    Layers that run in train mode only, of auxiliary heads, are heard there.
    """
    ear = _Ear(graph, drop)
    with ear.open(model), emitting(model, graph, drop), evaluating(model):
        with ear.functions:
            outputs = run_on(model, given, "the dense network")
        if ear.deaf():
            ear.only = ear.deaf()
            with ear.functions:
                trained(model, given)
    runs = graph.recordings
    return Emission(ear.heard, outputs, followers(model, runs), lent_biases(model, runs))


def hear_ends(
    model: nn.Module,
    graph: ChannelGraph,
    drop: Tensor,
    makers: Mapping[str, str],
    given: Arguments,
) -> dict[str, Heard]:
    """What modules of the dense network put out meanwhile, over the channels that stay.

    `makers` maps each to the layer in it whose output channels these are.
    """
    heard: dict[str, Heard] = {}

    def listen(end: str, maker: str) -> Callable[..., None]:
        kept = (~drop.cpu()[graph.outs[maker]]).nonzero().flatten()

        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            dim, (usual, varies) = channel_dim(layer_named(model, maker), out.ndim), _usual(out)
            heard[end] = Heard(usual.index_select(dim, kept.to(out.device))[0], dim - 1, varies)

        return hook

    with ExitStack() as stack:
        for end, maker in makers.items():
            hook = model.get_submodule(end).register_forward_hook(listen(end, maker))
            stack.callback(hook.remove)
        stack.enter_context(emitting(model, graph, drop))
        stack.enter_context(evaluating(model))
        run_on(model, given, "the dense network")
    return heard


@contextmanager
def emitting(model: nn.Module, graph: ChannelGraph, drop: Tensor) -> Iterator[None]:
    """Inside it, removed channels of `model` carry no signal, but the constants they would emit.

    Convolutions and linear layers put out their bias for them, norms their shift, zero without one:
    the norm behind a channel selection too, whose scale then counts as zero.
    """
    drop, functions = drop.cpu(), _Constants()
    with ExitStack() as stack:
        for name, units in graph.outs.items():
            module, gone = layer_named(model, name), drop[units]
            entry = of_layer(module)
            shifts = (entry is not None and entry.shifts) or name in graph.inexact
            if not shifts or not bool(gone.any()):
                continue
            if name in graph.functional:
                functions.layers[_key(module)] = (module, gone)
            else:
                hook = module.register_forward_hook(_constant(gone), prepend=True)
                stack.callback(hook.remove)
        if functions.layers:
            stack.enter_context(functions)
        yield


class _Constants(TorchFunctionMode):
    """Functions put out constants for removed channels; `layers` go by the ids of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[int, tuple[nn.Module, Tensor]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        found = _given(func, args, kwargs)
        held = [found.get(name) for name in ("weight", "running_mean")] if found else []
        keys = [id(tensor) for tensor in held if id(tensor) in self.layers]
        if not keys:
            return out
        layer, gone = self.layers[keys[0]]
        return _shifted(out, gone, found.get("bias"), channel_dim(layer, out.ndim))


def _given(func: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments, by name, of a function that is given weights or statistics."""
    entry = of_function(func)
    return given(entry, args, kwargs or {}) if entry is not None and entry.takes else {}


def _weighed(func: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The same of a convolution or linear map; empty for others."""
    entry = of_function(func)
    return _given(func, args, kwargs) if entry is not None and entry.weighs else {}


def _key(module: nn.Module) -> int:
    """What a function is given of a layer, for sure."""
    return id(module.running_mean if module.weight is None else module.weight)


class _Functions(TorchFunctionMode):
    """Hears functions that are given the weights of layers; `heard` goes by the ids of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[int, Callable[..., None]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = _weighed(func, args, kwargs)
        listen = self.heard.get(id(found["weight"])) if found else None
        if listen is not None:
            listen(lambda x: func(x, *args[1:], **(kwargs or {})), found["input"])
        return func(*args, **(kwargs or {}))


@dataclass(eq=False)
class _Ear:
    """Hooks on the layers that lose inputs; `only` limits them to some."""

    graph: ChannelGraph
    drop: Tensor
    heard: dict[str, list[Heard]] = field(default_factory=dict)
    functions: _Functions = field(default_factory=_Functions)
    only: frozenset[str] | None = None

    def deaf(self) -> frozenset[str]:
        """Layers that lose inputs and were not called."""
        return frozenset(name for name, calls in self.heard.items() if not calls)

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for name, units in self.graph.ins.items():
                module = layer_named(model, name)
                gone = self.drop.cpu()[units]
                if not bool(gone.any()) or not weighs(module):
                    continue
                self.heard[name], listen = [], self._listen(name, module, gone)
                if name in self.graph.functional:
                    self.functions.heard[id(module.weight)] = listen
                    continue
                hook = module.register_forward_pre_hook(
                    lambda module, args, kwargs, listen=listen: listen(
                        module.forward, input_of(args, kwargs)
                    ),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
            yield

    def _listen(self, name: str, layer: nn.Module, gone: Tensor) -> Callable[..., None]:
        kept = ~self.drop.cpu()[self.graph.outs[name]]

        def listen(run: Callable[[Tensor], Tensor], x: Tensor) -> None:
            if self.only is None or name in self.only:
                self.heard[name].append(_heard(layer, run, x, gone, kept))

        return listen


def _heard(
    module: nn.Module, run: Callable[[Tensor], Tensor], x: Tensor, gone: Tensor, kept: Tensor
) -> Heard:
    """Send the removed channels alone through a layer."""
    if not isinstance(module, nn.Linear) and x.ndim < len(module.kernel_size) + 2:
        x = x.unsqueeze(0)  # without a batch dimension
    dim = channel_dim(module, x.ndim)
    first, varies = _usual(x.index_select(dim, gone.nonzero().flatten().to(x.device)))
    alone = torch.zeros_like(x[:1])
    alone.index_copy_(dim, gone.nonzero().flatten().to(x.device), first)
    offset = run(alone) - run(torch.zeros_like(alone))
    dim = channel_dim(module, offset.ndim)
    offset = offset.index_select(dim, kept.nonzero().flatten().to(x.device))
    return Heard(offset[0], dim - 1, varies)


def _usual(emitted: Tensor) -> tuple[Tensor, float]:
    """What is emitted for any example, and by how much examples differ; then the mean over them."""
    first = emitted[:1]
    size, spread = float(first.abs().max()), float((emitted - first).abs().max())
    varies = spread / max(size, spread) if spread else 0.0
    if varies > slack(emitted.dtype):
        return emitted.mean(0, keepdim=True), varies
    return first, 0.0


def slack(dtype: torch.dtype) -> float:
    """The relative difference that rounding may make: 1e-5 in float32, 1e-11 in float64."""
    return torch.finfo(dtype).eps ** 0.7


def _constant(gone: Tensor) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        return _shifted(out, gone, bias, channel_dim(module, out.ndim))

    return hook


def _shifted(out: Tensor, gone: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(out.ndim)]
    shift = out.new_zeros(()) if bias is None else bias.to(out).reshape(shape)
    return torch.where(gone.to(out.device).reshape(shape), shift, out)
