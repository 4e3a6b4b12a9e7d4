"""Hears the calls of all modules of a network while it is run, and what else it asks of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunekit.graph.recording.twin import is_layer


class CallObserver(Protocol):
    """Is told of every call of a forward."""

    queried: set[str]

    def on_module(
        self, call: ObservedModule, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Run the forward, and return what it returned."""

    def on_memory_replaced(self, tensor: Tensor, source: Any) -> None:
        """The memory of a tensor is from now on that of another."""


class ObservedModule:
    """A module of the network that is run, as it was before the run."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path = path
        self.module = module
        self.layer = is_layer(module)
        self._original = {id(tensor) for tensor in _tensors_of(module)} if self.layer else set()

    def new_tensors(self) -> list[Tensor]:
        """The parameters and buffers that it holds now, and did not before."""
        return [tensor for tensor in _tensors_of(self.module) if id(tensor) not in self._original]

    def tensors(self) -> list[Tensor]:
        """The parameters and buffers that it holds now."""
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
    """Inside it, every call of a forward in the network is told to the listener.

    Functions that torch.compile or torch.jit made run as the Python they were made of.
    """
    with ExitStack() as stack:
        stack.callback(
            _restore, [_observe(observer, ObservedModule(*one)) for one in network.named_modules()]
        )
        call_scripted, grad_enabled = torch._C.ScriptFunction.__call__, torch.is_grad_enabled

        def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            original = getattr(function, "_torchdynamo_inline", None)
            if original is None:
                return call_scripted(function, *args, **kwargs)
            return original(*args, **kwargs)

        def is_grad_enabled() -> bool:
            observer.queried.add("grad")
            return grad_enabled()

        def set_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found = torch._C.TensorBase.set_(tensor, *args, **kwargs)
            observer.on_memory_replaced(tensor, args[0] if args else kwargs.get("source"))
            return found

        stack.callback(delattr, Tensor, "set_")  # modes are not told of it
        Tensor.set_ = set_
        stack.callback(setattr, torch._C.ScriptFunction, "__call__", call_scripted)
        stack.callback(setattr, torch, "is_grad_enabled", grad_enabled)
        torch._C.ScriptFunction.__call__ = call
        torch.is_grad_enabled = is_grad_enabled
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _observe(observer: CallObserver, observed: ObservedModule) -> tuple[dict[str, Any], Any]:
    """Start to listen to a module; returns its variables, and the forward that was among them."""
    state, forward = vars(observed.module), observed.module.forward
    before = state.get("forward")

    def call(*args: Any, **kwargs: Any) -> Any:
        return observer.on_module(observed, forward, args, kwargs)

    state["forward"] = call
    return state, before


def _restore(changed: list[tuple[dict[str, Any], Any]]) -> None:
    """Give modules their forward back."""
    for state, before in changed:
        state.pop("forward") if before is None else state.update(forward=before)
