"""What removed channels still emit: shifts and biases, followed to the layers that would read them.

A removed channel keeps its bias, or the shift of its norm, when its filter or scale is zero. The
dense network is run with just that, and its layers are listened to.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.graph import ChannelGraph, ChannelSelection
from prunekit.graph.arguments import Arguments, input_of
from prunekit.graph.layers import BATCH_NORMS, CONSUMERS, INSTANCE_NORMS, channel_dim, layer_named
from prunekit.modes import evaluating
from prunekit.surgery.check import floats_in, run_on, trained

_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, nn.GroupNorm)


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
        with ear.followers:
            outputs = run_on(model, given, "the dense network")
        ear.followers.leaves(outputs)
        if ear.deaf():
            ear.only = ear.deaf()
            with ear.followers:
                trained(model, given)
    paths = {id(parameter): path for path, parameter in model.named_parameters()}
    return Emission(ear.heard, outputs, ear.followers.sure(), ear.followers.biases(paths))


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
            dim, (usual, varies) = _out_dim(layer_named(model, maker), out.ndim), _usual(out)
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
            shifts = isinstance(module, (*CONSUMERS, *_NORMS)) or name in graph.inexact
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


_WEIGHED = (F.conv1d, F.conv2d, F.conv3d, F.linear)
_SIGNATURES = {
    **dict.fromkeys(_WEIGHED, ("input", "weight", "bias")),
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias"),
    F.instance_norm: ("input", "running_mean", "running_var", "weight", "bias"),
}


def _given(func: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments, by name, of a function that is given weights or statistics."""
    names = _SIGNATURES.get(func, ())
    return dict(zip(names, args, strict=False)) | (kwargs or {}) if names else {}


def _weighed(func: Callable[..., Any], args: Any, kwargs: Any) -> dict[str, Any]:
    """The same of a convolution or linear map; empty for others."""
    return _given(func, args, kwargs) if func in _WEIGHED else {}


def _key(module: nn.Module) -> int:
    """What a function is given of a layer, for sure."""
    return id(module.running_mean if module.weight is None else module.weight)


class _Followers(TorchFunctionMode):
    """Finds layers whose output goes into one batch norm and nowhere else.

    It sees every call of a function with tensors; a layer is sure of its follower when each of its
    outputs was used once, by that norm, and the norm saw nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self._owner: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._calls: Counter[str] = Counter()
        self._used: Counter[str] = Counter()
        self._norms: Counter[str] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._parameters: Counter[int] = Counter()
        self._given: dict[str, Tensor | None] = {}
        self.functions: dict[int, tuple[str, Callable[..., None]]] = {}

    def biases(self, paths: Mapping[int, str]) -> dict[str, str]:
        """The paths of biases that functions were given, where they are used for nothing else."""
        return {
            name: paths[id(bias)]
            for name, bias in self._given.items()
            if id(bias) in paths and self._parameters[id(bias)] == self._calls[name]
        }

    def tag(self, name: str) -> Callable[..., None]:
        """A forward hook that remembers who made the output."""

        def hook(module: nn.Module, args: Any, out: Tensor) -> None:
            self._owner[out] = name
            self._calls[name] += 1

        return hook

    def norm(self, name: str) -> Callable[..., None]:
        """A forward pre-hook of a batch norm."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            self._norms[name] += 1
            given = input_of(args, kwargs)
            if given in self._owner:
                self._pairs[self._owner[given], name] += 1

        return hook

    def select(self, module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        """A forward pre-hook of a channel selection: no function may show that it reads."""
        self.leaves(input_of(args, kwargs))

    def leaves(self, outputs: Any) -> None:
        """What leaves the network is used there."""
        for tensor in floats_in(outputs):
            if tensor in self._owner:
                self._used[self._owner[tensor]] += 1

    def sure(self) -> dict[str, str]:
        """Layer name -> the name of its only reader."""
        return {
            layer: norm
            for (layer, norm), count in self._pairs.items()
            if count == self._calls[layer] == self._used[layer] == self._norms[norm]
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = _weighed(func, args, kwargs)
        name, listen = self.functions.get(id(found["weight"]), ("", None)) if found else ("", None)
        if listen is not None:
            listen(lambda x: func(x, *args[1:], **(kwargs or {})), found["input"])
        out = func(*args, **(kwargs or {}))
        if floats_in(out):
            for tensor in floats_in((args, kwargs or {})):
                if tensor in self._owner:
                    self._used[self._owner[tensor]] += 1
                elif isinstance(tensor, nn.Parameter):
                    self._parameters[id(tensor)] += 1
        if listen is not None:
            self._owner[out], self._given[name] = name, found.get("bias")
            self._calls[name] += 1
        return out


@dataclass(eq=False)
class _Ear:
    """Hooks on the layers that lose inputs; `only` limits them to some."""

    graph: ChannelGraph
    drop: Tensor
    heard: dict[str, list[Heard]] = field(default_factory=dict)
    followers: _Followers = field(default_factory=_Followers)
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
                if not bool(gone.any()) or not isinstance(module, CONSUMERS):
                    continue
                self.heard[name], listen = [], self._listen(name, module, gone)
                if name in self.graph.functional:
                    self.followers.functions[id(module.weight)] = (name, listen)
                    continue
                hook = module.register_forward_pre_hook(
                    lambda module, args, kwargs, listen=listen: listen(
                        module.forward, input_of(args, kwargs)
                    ),
                    with_kwargs=True,
                )
                stack.callback(hook.remove)
                stack.callback(module.register_forward_hook(self.followers.tag(name)).remove)
            for name, module in model.named_modules():
                if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                    hook = module.register_forward_pre_hook(
                        self.followers.norm(name), with_kwargs=True
                    )
                    stack.callback(hook.remove)
                if isinstance(module, ChannelSelection):
                    hook = module.register_forward_pre_hook(self.followers.select, with_kwargs=True)
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
        return _shifted(out, gone, bias, _out_dim(module, out.ndim))

    return hook


def _shifted(out: Tensor, gone: Tensor, bias: Tensor | None, dim: int) -> Tensor:
    shape = [-1 if d == dim else 1 for d in range(out.ndim)]
    shift = out.new_zeros(()) if bias is None else bias.to(out).reshape(shape)
    return torch.where(gone.to(out.device).reshape(shape), shift, out)


def _out_dim(module: nn.Module, rank: int) -> int:
    if isinstance(module, nn.LayerNorm):  # or one that permutes around it
        return rank - 1 if type(module).forward is nn.LayerNorm.forward else 1
    return channel_dim(module, rank)
