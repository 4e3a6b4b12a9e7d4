"""What is done to whole networks: their mode, copies of them, and runs that leave no trace."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

_KEPT: ContextVar[frozenset[int]] = ContextVar("parameters that are put back", default=frozenset())


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put networks in evaluation mode; afterwards every module is back in the mode it was in."""
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
    """Evaluation mode, without compiled code; whatever the runs inside change is changed back.

    Random states, too.
    """
    with unchanged(*models), random_states_kept(), uncompiled():
        for model in models:
            model.eval()
        yield


@contextmanager
def unchanged(*models: nn.Module) -> Iterator[None]:
    """Networks may be run inside; afterwards all that their modules hold is as it was before.

    That is: modes, parameters, buffers, gradients, hooks and attributes, and the entries of lists,
    dicts and sets among these. Of several such contexts in each other, the outer one alone puts
    back parameters, which runs seldom change and which are large.
    """
    with torch._C.DisableTorchFunction():  # whoever listens to functions hears nothing of this
        held = [_Held(module) for model in models for module in model.modules()]
        tensors = {id(one): one for module in held for one in module.tensors()}
        contents = [_Content(one) for key, one in tensors.items() if key not in _KEPT.get()]
    own = {key for key, one in tensors.items() if isinstance(one, nn.Parameter)}
    kept = _KEPT.set(_KEPT.get() | own)
    try:
        yield
    finally:
        _KEPT.reset(kept)
        with torch._C.DisableTorchFunction():
            for one in (*held, *contents):
                one.restore()


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Random numbers may be drawn inside; afterwards they go on as if none had been.

    Those of torch on all devices in use, of numpy and of Python.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    numpy = sys.modules.get("numpy")
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=list(devices)))
        stack.callback(random.setstate, random.getstate())
        if numpy is not None:
            stack.callback(numpy.random.set_state, numpy.random.get_state())
        yield


@contextmanager
def seeded() -> Iterator[None]:
    """Inside it, all random numbers start from one seed; afterwards they go on as if unused."""
    with random_states_kept():
        torch.manual_seed(0)
        random.seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)
        yield


def uncompiled() -> Any:
    """Inside it, what torch.compile has made runs as it was written, so that hooks are seen."""
    if "torch._dynamo" not in sys.modules:  # then nothing is compiled, and to load it takes long
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def muted(model: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Inside it, these modules put out zeros in place of what they compute."""
    with ExitStack() as stack:
        for name in names:
            hook = model.get_submodule(name).register_forward_hook(_zeros)
            stack.callback(hook.remove)
        yield


def _zeros(module: nn.Module, args: object, out: Tensor) -> Tensor:
    return torch.zeros_like(out)


def duplicate(model: nn.Module) -> nn.Module:
    """A copy that shares nothing with the model.

    Tensors that a module computes and keeps, as the older weight normalisation does, are detached:
    torch refuses to copy them otherwise. Modules that were compiled in place are so again.
    """
    kept = [leaf for module in model.modules() for leaf in vars(module).values()]
    computed = [leaf for leaf in kept if isinstance(leaf, Tensor) and not leaf.is_leaf]
    twin = copy.deepcopy(model, {id(leaf): leaf.detach().clone() for leaf in computed})
    for module, other in zip(model.modules(), twin.modules(), strict=True):
        if vars(module).get("_compiled_call_impl") is not None:
            other._compiled_call_impl = recompiler(module._compiled_call_impl)(other._call_impl)
    return twin


def copy_hooks(old: nn.Module, new: nn.Module) -> None:
    """Give a module that takes the place of another the hooks of that."""
    vars(new).update({k: copy.copy(hooks) for k, hooks in vars(old).items() if "_hook" in k})


def recompiler(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """What torch.compile did with the settings this was compiled with; its defaults if untold."""
    if isinstance(compiled, nn.Module):
        found = getattr(compiled, "dynamo_ctx", None)
    else:
        names = getattr(getattr(compiled, "__code__", None), "co_freevars", ())
        cells = dict(zip(names, getattr(compiled, "__closure__", None) or (), strict=False))
        found = cells["self"].cell_contents if "self" in cells else None
    return found if callable(found) else torch.compile


_BOXES = (dict, OrderedDict, list, set, deque)  # whose entries are put back


class _Held:
    """What a module has in its attributes, and how to put it back."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.state = module, dict(vars(module))
        self.boxes = [(one, one.copy()) for one in self.state.values() if type(one) in _BOXES]

    def tensors(self) -> Iterator[Tensor]:
        """Parameters, buffers, and tensors in attributes."""
        yield from self.module.parameters(recurse=False)
        yield from self.module.buffers(recurse=False)
        yield from (value for value in self.state.values() if isinstance(value, Tensor))

    def restore(self) -> None:
        """Attributes are what they were, and dicts and lists among them have their old entries."""
        vars(self.module).clear()
        vars(self.module).update(self.state)
        for box, entries in self.boxes:
            box.clear()
            (box.extend if isinstance(box, list | deque) else box.update)(entries)


class _Content:
    """The numbers of a tensor and of its gradient, and how to put them back."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.trained = tensor, tensor.requires_grad
        self.grad = tensor.grad if tensor.is_leaf else None
        self.value, self.slope = _cloned(tensor), _cloned(self.grad)

    def restore(self) -> None:
        """Only what differs is written, past autograd, which may still need the old version."""
        _refill(self.tensor, self.value)
        if self.tensor.is_leaf:
            self.tensor.requires_grad_(self.trained)
            _refill(self.grad, self.slope)
            if self.tensor.grad is not self.grad:
                self.tensor.grad = self.grad


def _cloned(tensor: Tensor | None) -> Tensor | None:
    """The numbers of a tensor that has some."""
    if tensor is None or tensor.is_meta or tensor.layout != torch.strided:
        return None
    lazy = isinstance(tensor, nn.parameter.UninitializedTensorMixin)
    return None if lazy else tensor.detach().clone()


def _refill(tensor: Tensor | None, value: Tensor | None) -> None:
    if tensor is None or value is None:
        return
    if tensor.shape != value.shape or tensor.dtype != value.dtype or tensor.device != value.device:
        tensor.data = value
    elif not torch.equal(tensor.detach(), value):
        tensor.data.copy_(value)
