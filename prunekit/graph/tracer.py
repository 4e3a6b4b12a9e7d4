"""Torch's tracer, which also knows the shapes of what it traces."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import _symbolic_trace as tracing

from prunekit.graph.select import ChannelSelection

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_CONTAINERS = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict),
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)


class Sized(fx.Proxy):
    """A proxy whose sizes may steer the forward: its length, its truth, its value as a number.

    What was read is marked as a guard, since a narrower network might read something else.
    """

    def __len__(self) -> int:
        return len(self.tracer.known(self))

    def __int__(self) -> int:
        return int(self.tracer.known(self))

    def __float__(self) -> float:
        return float(self.tracer.known(self))

    def __index__(self) -> int:
        return self.tracer.known(self).__index__()


class Mode(int):
    """Stands for `module.training` while a network is traced, and notes when that is asked for."""

    asked = False

    def __bool__(self) -> bool:
        Mode.asked = True
        return int(self) == 1


class Tracer(fx.Tracer):
    """Keeps every layer of torch.nn whole, remembers source lines, and follows sizes.

    `inputs` are the shapes to trace for. Branches and loops may depend on sizes, on values never.
    """

    proxy_buffer_attributes = True

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self._inputs = inputs
        self._values: dict[fx.Node, Any] = {}
        self._paths: dict[int, str] = {}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        """Layers that inherit their forward from torch.nn are leaves, under whatever name."""
        if isinstance(module, _CONTAINERS):
            return False
        if isinstance(module, nn.LayerNorm | ChannelSelection):  # also norms that permute around
            return True
        return type(module).forward.__module__.startswith(("torch.nn.", "torch.ao.nn."))

    def trace(self, root: nn.Module, concrete_args: Any = None) -> fx.Graph:
        """The graph of a network."""
        named = [*root.named_parameters(), *root.named_buffers()]
        self._paths = {id(tensor): path for path, tensor in named}
        return super().trace(root, concrete_args)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A proxy for a parameter or buffer; torch searches through all of them every time."""
        path = self._paths.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if path is None:
            return attr_val
        if path not in parameter_proxy_cache:
            parameter_proxy_cache[path] = self.create_proxy("get_attr", path, (), {})
        return parameter_proxy_cache[path]

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Make a node that knows the line of the user's code it comes from."""
        node = super().create_node(*args, **kwargs)
        node.meta["line"] = _line_of_user()
        return node

    def create_arg(self, a: Any) -> Any:
        """A mode that is only handed on to a function is a plain one."""
        return int(a) == 1 if isinstance(a, Mode) else super().create_arg(a)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Wrap a node."""
        return Sized(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of what depends on sizes only."""
        return bool(self.known(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        """The items of a tuple or list, such as the parts of a split."""
        return iter([obj[index] for index in range(len(self.known(obj)))])

    def known(self, obj: fx.Proxy) -> Any:
        """The value behind a proxy, from shapes; data itself is refused as torch.fx does."""
        with _plain_modules(), torch.no_grad(), torch.device("meta"):
            value = self._value(obj.node)
        if isinstance(value, Tensor):
            return super().to_bool(obj)
        obj.node.meta["guard"] = True
        return value

    def _value(self, node: fx.Node) -> Any:
        wanted = _with_sources(node, self._values)
        for one in self.graph.nodes:
            if one in wanted:
                self._values[one] = self._run(one)
        return self._values[node]

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        if node.op == "placeholder":
            places = self.graph.find_nodes(op="placeholder")
            return self._inputs[places.index(node)]
        if node.op == "call_function":
            return node.target(*args, **kwargs)
        if node.op == "call_method":
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        owner, _, leaf = node.target.rpartition(".")
        found = getattr(self.root.get_submodule(owner), leaf)
        return _in_eval(found, args, kwargs) if node.op == "call_module" else found


def _with_sources(node: fx.Node, known: dict[fx.Node, Any]) -> set[fx.Node]:
    found, queue = set(), [node]
    while queue:
        one = queue.pop()
        if one not in known and one not in found:
            found.add(one)
            queue.extend(one.all_input_nodes)
    return found


def set_mode(network: nn.Module, training: bool) -> None:
    """Set the mode of a network, without a call of methods that users may have changed."""
    for module in network.modules():
        module.training = training


def _in_eval(module: nn.Module, args: Any, kwargs: Any) -> Any:
    mode = module.training
    set_mode(module, False)
    try:
        return module(*args, **kwargs)
    finally:
        set_mode(module, mode)


@contextmanager
def _plain_modules() -> Iterator[None]:
    """Inside it, modules are called as if nothing was traced."""
    patched: tuple[Callable[..., Any], ...] = (nn.Module.__call__, nn.Module.__getattr__)
    plain = (tracing._orig_module_call, tracing._orig_module_getattr)
    nn.Module.__call__, nn.Module.__getattr__ = plain
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = patched


def in_torch(file: str) -> bool:
    """Whether a source file is torch's, or this one: no line to show a user."""
    return file.startswith(_TORCH) or file == __file__ or file.startswith("<")


def _line_of_user() -> tuple[str, int] | None:
    frame = sys._getframe(2)
    while frame is not None and in_torch(frame.f_code.co_filename):
        frame = frame.f_back
    return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else None
