"""Contexts and copies for whole networks: modes, restored state, random states, duplicates."""

from __future__ import annotations

import copy
import gc
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

_RESTORED: ContextVar[frozenset[int]] = ContextVar("parameters to restore", default=frozenset())


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put networks in evaluation mode; restore the mode of every module afterwards."""
    modes = {module: module.training for model in models for module in model.modules()}
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def evaluating_unchanged(*models: nn.Module) -> Iterator[None]:
    """Put networks in evaluation mode without compiled code; restore all of their state afterwards.

    Random states are restored, too.
    """
    with unchanged(*models), random_states_kept(), uncompiled():
        for model in models:
            model.eval()
        yield


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Restore the state of networks that are run inside the context.

    The state covers modes, parameters, buffers, gradients, hooks, attributes, and the entries of
    lists, dicts and sets in attributes. In nested contexts only the outermost restores parameters,
    which are large and seldom changed by a run.
    """
    with torch._C.DisableTorchFunction():  # so that function modes do not see these calls
        modules = [_ModuleState(module) for model in models for module in model.modules()]
        tensors = {id(tensor): tensor for module in modules for tensor in module.tensors()}
        states = [_TensorState(t) for key, t in tensors.items() if key not in _RESTORED.get()]
    parameters = {key for key, tensor in tensors.items() if isinstance(tensor, nn.Parameter)}
    token = _RESTORED.set(_RESTORED.get() | parameters)
    try:
        yield
    finally:
        _RESTORED.reset(token)
        with torch._C.DisableTorchFunction():
            for module in modules:
                module.restore()
            for state in states:
                state.restore()


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore the random states of torch (on all devices in use), numpy and Python afterwards."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy = sys.modules.get("numpy")
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.callback(random.setstate, random.getstate())
        if numpy is not None:
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        yield


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Let Python search for no unreachable cycles inside the context.

    Code that makes many objects which all stay in use triggers searches that find nothing, and each
    goes through every object of the process.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def seeded() -> Iterator[None]:
    """Start all random numbers from one seed; restore the random states afterwards."""
    with random_states_kept():
        torch.manual_seed(0)
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)
        yield


def uncompiled() -> AbstractContextManager[Any]:
    """Return a context in which compiled networks run eagerly, so that hooks are called."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and importing it is slow
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def muted(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Let these modules put out zeros inside the context."""
    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(_zeros)
            stack.callback(hook.remove)
        yield


def _zeros(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return torch.zeros_like(out)


def duplicate(model: nn.Module) -> nn.Module:
    """Return a copy that shares nothing with the model.

    Tensors that a module computes and stores, as the older weight normalisation does, are detached,
    since torch refuses to copy them otherwise. Modules that were compiled in place are compiled
    again.
    """
    values = [value for module in model.modules() for value in vars(module).values()]
    computed = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    duplicate_model = copy.deepcopy(
        model, {id(value): value.detach().clone() for value in computed}
    )
    for module, other in zip(model.modules(), duplicate_model.modules(), strict=True):
        compiled = vars(module).get("_compiled_call_impl")
        if compiled is not None:
            other._compiled_call_impl = recompiler(compiled)(other._call_impl)
    return duplicate_model


def copy_hooks(old: nn.Module, new: nn.Module) -> None:
    """Copy the hooks of a module to the module that replaces it."""
    vars(new).update({k: copy.copy(hooks) for k, hooks in vars(old).items() if "_hook" in k})


def recompiler(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Return torch.compile with the settings of this compiled callable; defaults if unknown."""
    if isinstance(compiled, nn.Module):
        context = getattr(compiled, "dynamo_ctx", None)
    else:
        names = getattr(getattr(compiled, "__code__", None), "co_freevars", ())
        cells = dict(zip(names, getattr(compiled, "__closure__", None) or (), strict=False))
        context = cells["self"].cell_contents if "self" in cells else None
    return context if callable(context) else torch.compile


_CONTAINERS = (dict, OrderedDict, list, set, deque)  # whose entries are restored


class _ModuleState:
    """A snapshot of a module's attributes."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.state = module, dict(vars(module))
        self.containers = [(v, v.copy()) for v in self.state.values() if type(v) in _CONTAINERS]

    def tensors(self) -> Iterator[Tensor]:
        """Yield parameters, buffers, and tensors in other attributes."""
        yield from self.module.parameters(recurse=False)
        yield from self.module.buffers(recurse=False)
        yield from (value for value in self.state.values() if isinstance(value, Tensor))

    def restore(self) -> None:
        """Restore the attributes, and the entries of containers among them."""
        vars(self.module).clear()
        vars(self.module).update(self.state)
        for container, entries in self.containers:
            container.clear()
            (container.extend if isinstance(container, list | deque) else container.update)(entries)


class _TensorState:
    """A snapshot of a tensor's values and of its gradient."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.trained = tensor, tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.value, self.grad_value = _clone(tensor), _clone(self.grad)

    def restore(self) -> None:
        """Write back what differs, past autograd, which may still need the old version."""
        _write_back(self.tensor, self.value)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.trained)
            _write_back(self.grad, self.grad_value)
            if self.tensor.grad is not self.grad:
                self.tensor.grad = self.grad


def _clone(tensor: Tensor | None) -> Tensor | None:
    """Clone the values of a tensor; None for tensors without values or of sparse layouts."""
    if tensor is None or tensor.is_meta or tensor.layout != torch.strided:
        return None
    lazy = isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer)
    return None if lazy else tensor.detach().clone()


def _write_back(tensor: Tensor | None, value: Tensor | None) -> None:
    if tensor is None or value is None:
        return
    if tensor.shape != value.shape or tensor.dtype != value.dtype or tensor.device != value.device:
        tensor.data = value
    elif not torch.equal(tensor.detach(), value):
        tensor.data.copy_(value)
