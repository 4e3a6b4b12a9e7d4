"""Patches that report what a forward calls and reads while it is recorded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunekit.graph.recording.copies import is_layer
from prunekit.graph.recording.steps import in_torch
from prunekit.graph.table import all_operations


class CallObserver(Protocol):
    """Gets every call of a module during a forward pass."""

    queried: set[str]

    def on_module(
        self, call: ObservedModule, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Run the forward of a module, and return its result."""

    def on_memory_replaced(self, tensor: Tensor, source: Any) -> None:
        """Take note that a tensor from now on shares the memory of another."""


class ObservedModule:
    """A module of the network, with the parameters and buffers that it had before the pass."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path = path
        self.module = module
        self.layer = is_layer(module)
        self._original = {id(tensor) for tensor in _tensors_of(module)} if self.layer else set()

    def new_tensors(self) -> list[Tensor]:
        """Return the parameters and buffers that the module has got since."""
        return [tensor for tensor in _tensors_of(self.module) if id(tensor) not in self._original]

    def tensors(self) -> list[Tensor]:
        """Return the parameters and buffers that the module has now."""
        return [*_tensors_of(self.module)]


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    state = vars(module)
    for leaf in (*state["_parameters"].values(), *state["_buffers"].values()):
        if leaf is not None:
            yield leaf
    for name in ("weight", "bias"):  # computed ones are no parameters
        if isinstance(state.get(name), Tensor):
            yield state[name]


@contextmanager
def calls_observed(observer: CallObserver, network: nn.Module) -> Iterator[None]:
    """Within the context, report every call of a module of the network to the observer.

    Functions that torch.compile or torch.jit compiled run as the Python code they were compiled
    from.
    """
    with ExitStack() as stack:
        modules = [ObservedModule(path, module) for path, module in network.named_modules()]
        stack.callback(_restore, [_observe(observer, module) for module in modules])
        call_scripted, grad_enabled = torch._C.ScriptFunction.__call__, torch.is_grad_enabled

        def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            python_function = getattr(function, "_torchdynamo_inline", None)
            if python_function is None:
                return call_scripted(function, *args, **kwargs)
            return python_function(*args, **kwargs)

        def is_grad_enabled() -> bool:
            observer.queried.add("grad")
            return grad_enabled()

        def set_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = torch._C.TensorBase.set_(tensor, *args, **kwargs)
            observer.on_memory_replaced(tensor, args[0] if args else kwargs.get("source"))
            return result

        stack.callback(delattr, Tensor, "set_")  # torch does not report it to modes
        stack.callback(setattr, torch._C.ScriptFunction, "__call__", call_scripted)
        stack.callback(setattr, torch, "is_grad_enabled", grad_enabled)
        patches: list[tuple[Any, str, Callable[..., Any]]] = [
            *((Tensor, "set_", set_), (torch, "is_grad_enabled", is_grad_enabled)),
            (torch._C.ScriptFunction, "__call__", call),
        ]
        for owner, name, patch in patches:
            setattr(owner, name, patch)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _observe(observer: CallObserver, observed: ObservedModule) -> tuple[dict[str, Any], Any]:
    """Patch the forward of a module; return its attributes, and the forward that was among them."""
    attributes, forward = vars(observed.module), observed.module.forward
    own_forward = attributes.get("forward")

    def call(*args: Any, **kwargs: Any) -> Any:
        return observer.on_module(observed, forward, args, kwargs)

    attributes["forward"] = call
    return attributes, own_forward


def _restore(patched: list[tuple[dict[str, Any], Any]]) -> None:
    """Give modules their own forward back."""
    for attributes, own_forward in patched:
        attributes.pop("forward") if own_forward is None else attributes.update(forward=own_forward)


Callback = Callable[[nn.Module], None]


@contextmanager
def attributes_observed(width: Callback, mode: Callback) -> Iterator[None]:
    """Within the context, report reads of `training` to `mode`, of channel numbers to `width`.

    Both get the module. Reads by torch itself are not reported. Such attributes are plain values,
    and what is computed from them cannot be followed.
    """
    patches = [(nn.Module, "training", mode)]
    for entry in all_operations():
        patches += [(kind, name, width) for kind in entry.layers for name in entry.width_attributes]
    originals = [vars(kind).get(name) for kind, name, _ in patches]
    for kind, name, callback in patches:
        setattr(kind, name, _ObservedAttribute(name, callback))
    try:
        yield
    finally:
        for (kind, name, _), original in zip(patches, originals, strict=True):
            delattr(kind, name) if original is None else setattr(kind, name, original)


class _ObservedAttribute:
    """An attribute whose reads are reported; its value stays in the module."""

    def __init__(self, name: str, callback: Callback) -> None:
        self.name, self.callback = name, callback

    def __get__(self, module: nn.Module | None, kind: type | None = None) -> Any:
        if module is None:
            raise AttributeError(self.name)
        try:
            value = vars(module)[self.name]
        except KeyError:
            raise AttributeError(self.name) from None
        if not in_torch(sys._getframe(1).f_code.co_filename):
            self.callback(module)
        return value

    def __set__(self, module: nn.Module, value: Any) -> None:
        vars(module)[self.name] = value

    def __delete__(self, module: nn.Module) -> None:
        vars(module).pop(self.name)
