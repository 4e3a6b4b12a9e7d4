"""Hooks at layers: replace what they put out, observe or replace what they read.

Layers whose weights are passed to a function run no hooks; function modes take their place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import input_of, with_input
from prunekit.graph.layers import channel_dim, is_weighted, layer_named
from prunekit.graph.table import function_operation, layer_operation, named_arguments

Function = Callable[..., Any]
Forward = Callable[[Tensor], Tensor]
# of a layer's name, its channels that are removed (a mask), its output, their dimension, its bias
Replace = Callable[[str, Tensor, Tensor, int, Tensor | None], Tensor]
# of a layer's output, the dimension of its channels, and its bias; returns another output
Change = Callable[[Tensor, int, Tensor | None], Tensor]
# of a layer's name, its forward and its input; returns the input that the layer gets
Read = Callable[[str, Forward, Tensor], Tensor]
# of a layer's name, the layer, its inputs that are removed (a mask), its forward and its input
Observe = Callable[[str, nn.Module, Tensor, Forward, Tensor], None]


@contextmanager
def replacing_outputs(
    model: nn.Module, graph: ChannelGraph, removed: Tensor, replace: Replace
) -> Iterator[None]:
    """Let `replace` change what convolutions, linear layers and norms with removed outputs emit."""
    changes = {}
    for name, units in graph.outs.items():
        module, mask = layer_named(model, name), removed.cpu()[units]
        entry = layer_operation(module)
        emits = (entry is not None and entry.emits_bias) or name in graph.inexact
        if emits and bool(mask.any()):
            changes[name] = _replacer(replace, name, mask)
    with changing_outputs(model, graph, changes):
        yield


@contextmanager
def changing_outputs(
    model: nn.Module, graph: ChannelGraph, changes: Mapping[str, Change]
) -> Iterator[None]:
    """Let a function for each of these layers change what the layer puts out."""
    functions = _OutputFunctions()
    with ExitStack() as stack:
        for name, change in changes.items():
            module = layer_named(model, name)
            if name in graph.functional:
                functions.layers[_argument_id(module)] = (module, change)
            else:
                handle = module.register_forward_hook(_output_hook(change), prepend=True)
                stack.callback(handle.remove)
        if functions.layers:
            stack.enter_context(functions)
        yield


def reading_layers(
    model: nn.Module, graph: ChannelGraph, removed: Tensor
) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Yield the convolutions and linear layers that lose inputs, with a mask of these inputs."""
    for name, units in graph.ins.items():
        module, mask = layer_named(model, name), removed.cpu()[units]
        if bool(mask.any()) and is_weighted(module):
            yield name, module, mask


def dense_readers(model: nn.Module, graph: ChannelGraph) -> dict[str, nn.Module]:
    """Return the convolutions and linear layers that compute other channels from removable units.

    A depthwise convolution passes its units on; the layers behind it are their readers.
    """
    named = {n: layer_named(model, n) for n, units in graph.ins.items() if bool(units.any())}
    return {n: layer for n, layer in named.items() if is_weighted(layer) and not _depthwise(layer)}


def _depthwise(layer: nn.Module) -> bool:
    """Return whether a convolution has a filter for every input channel, which it passes on."""
    return bool(1 < getattr(layer, "groups", 1) == layer.in_channels)


@contextmanager
def observing_inputs(
    model: nn.Module, graph: ChannelGraph, removed: Tensor, observe: Observe
) -> Iterator[None]:
    """Let `observe` see the inputs of all convolutions and linear layers that lose inputs."""
    losing = {name: (module, mask) for name, module, mask in reading_layers(model, graph, removed)}

    def read(name: str, forward: Forward, x: Tensor) -> Tensor:
        observe(name, *losing[name], forward, x)
        return x

    with reading_inputs(model, graph, losing, read):
        yield


@contextmanager
def reading_inputs(
    model: nn.Module, graph: ChannelGraph, names: Iterable[str], read: Read
) -> Iterator[None]:
    """Let `read` see the inputs of convolutions and linear layers, and return what they get."""
    functions = _InputFunctions()
    with ExitStack() as stack:
        for name in names:
            module = layer_named(model, name)
            if name in graph.functional:
                functions.reads[id(module.weight)] = partial(read, name)
            else:
                hook = _input_hook(partial(read, name))
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        if functions.reads:
            stack.enter_context(functions)
        yield


class _OutputFunctions(TorchFunctionMode):
    """Replace what functions put out that take weights; `layers` is keyed by tensor ids."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[int, tuple[nn.Module, Callable[..., Tensor]]] = {}

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        arguments = _layer_arguments(func, args, kwargs)
        tensors = [arguments.get(name) for name in ("weight", "running_mean")]
        keys = [id(tensor) for tensor in tensors if id(tensor) in self.layers]
        if not keys:
            return out
        layer, replaced = self.layers[keys[0]]
        return replaced(out, channel_dim(layer, out.ndim), arguments.get("bias"))


class _InputFunctions(TorchFunctionMode):
    """Read the inputs of functions that take the weights of layers; the keys are ids of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: dict[int, Callable[[Forward, Tensor], Tensor]] = {}

    def __torch_function__(
        self, func: Function, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        read = self.reads.get(id(_layer_arguments(func, args, kwargs).get("weight")))
        if read is not None:
            args, kwargs = _with_read(read, func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


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


def _replacer(replace: Replace, name: str, mask: Tensor) -> Callable[..., Tensor]:
    def replaced(out: Tensor, dim: int, bias: Tensor | None) -> Tensor:
        return replace(name, mask, out, dim, bias)

    return replaced


def _output_hook(replaced: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return replaced(out, channel_dim(module, out.ndim), getattr(module, "bias", None))

    return hook


def _input_hook(read: Callable[[Forward, Tensor], Tensor]) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return _with_read(read, module.forward, args, kwargs)

    return hook


def _with_read(
    read: Callable[[Forward, Tensor], Tensor], call: Function, args: Any, kwargs: Any
) -> Any:
    """Return the arguments of a call with the input that `read` returns for it."""

    def forward(x: Tensor) -> Tensor:
        others, named = with_input(args, kwargs, x)
        out: Tensor = call(*others, **named)
        return out

    return with_input(args, kwargs, read(forward, input_of(args, kwargs)))
