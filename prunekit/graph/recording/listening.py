"""Hears the calls of all modules of a network while it is run, and what else it asks of torch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunekit.graph.recording.twin import is_layer


class Listener(Protocol):
    """Is told of every call of a forward."""

    asked: set[str]

    def module(
        self, call: Heard, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Run the forward, and return what it returned."""

    def replaced(self, tensor: Tensor, source: Any) -> None:
        """The memory of a tensor is from now on that of another."""


class Heard:
    """A module of the network that is run, as it was before the run."""

    def __init__(self, path: str, module: nn.Module) -> None:
        self.path = path
        self.module = module
        self.layer = is_layer(module)
        self._own = {id(tensor) for tensor in _held(module)} if self.layer else set()

    def strangers(self) -> list[Tensor]:
        """The parameters and buffers that it holds now, and did not before."""
        return [tensor for tensor in _held(self.module) if id(tensor) not in self._own]

    def held(self) -> list[Tensor]:
        """The parameters and buffers that it holds now."""
        return [*_held(self.module)]


def _held(module: nn.Module) -> Iterator[Tensor]:
    state = vars(module)
    for leaf in (*state["_parameters"].values(), *state["_buffers"].values()):
        if leaf is not None:
            yield leaf
    for name in ("weight", "bias"):  # computed ones are no parameters
        if isinstance(state.get(name), Tensor):
            yield state[name]


@contextmanager
def listening(listener: Listener, network: nn.Module) -> Iterator[None]:
    """Inside it, every call of a forward in the network is told to the listener.

    Functions that torch.compile or torch.jit made run as the Python they were made of.
    """
    with ExitStack() as stack:
        stack.callback(_stop, [_hear(listener, Heard(*one)) for one in network.named_modules()])
        scripted, graded = torch._C.ScriptFunction.__call__, torch.is_grad_enabled

        def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            original = getattr(function, "_torchdynamo_inline", None)
            if original is None:
                return scripted(function, *args, **kwargs)
            return original(*args, **kwargs)

        def is_grad_enabled() -> bool:
            listener.asked.add("grad")
            return graded()

        def set_(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found = torch._C.TensorBase.set_(tensor, *args, **kwargs)
            listener.replaced(tensor, args[0] if args else kwargs.get("source"))
            return found

        stack.callback(delattr, Tensor, "set_")  # modes are not told of it
        Tensor.set_ = set_
        stack.callback(setattr, torch._C.ScriptFunction, "__call__", scripted)
        stack.callback(setattr, torch, "is_grad_enabled", graded)
        torch._C.ScriptFunction.__call__ = call
        torch.is_grad_enabled = is_grad_enabled
        if "torch._dynamo" in sys.modules:  # else nothing is compiled
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _hear(listener: Listener, heard: Heard) -> tuple[dict[str, Any], Any]:
    """Start to listen to a module; returns its variables, and the forward that was among them."""
    state, forward = vars(heard.module), heard.module.forward
    before = state.get("forward")

    def call(*args: Any, **kwargs: Any) -> Any:
        return listener.module(heard, forward, args, kwargs)

    state["forward"] = call
    return state, before


def _stop(changed: list[tuple[dict[str, Any], Any]]) -> None:
    """Give modules their forward back."""
    for state, before in changed:
        state.pop("forward") if before is None else state.update(forward=before)
