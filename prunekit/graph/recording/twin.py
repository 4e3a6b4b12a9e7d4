"""Copies of a network to be run in its place: shapes only, or with its numbers."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from types import CellType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.errors import TraceError
from prunekit.graph.recording.nests import leaves_in, tree_map
from prunekit.graph.table import layer_operation

_CONTAINERS = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict),
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
    *(nn.TransformerEncoderLayer, nn.TransformerDecoderLayer),
)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_HOOKS = frozenset(key for key in vars(nn.Module()) if key.endswith("_hooks")) | {
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
}
_STANDARD = frozenset(vars(nn.Module()))
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.Size, type})


class UnwrappedModule(nn.Module):
    """Stands for a wrapper inside a network; `inner` is the name that it has for its module."""

    def __init__(self, inner: str, module: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.add_module(inner, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the module in it returns."""
        return getattr(self, self.inner)(*args, **kwargs)


class CompiledModule(nn.Module):
    """Stands for a module that is compiled by torch.jit, whose code is not looked into."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        vars(self)["compiled"] = module
        held = (*module.parameters(), *module.buffers())
        self.device = next((tensor.device for tensor in held), torch.device("cpu"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the compiled module returns; of shapes, which it cannot read, what zeros give."""

        def filled(leaf: Any) -> Any:
            shape = isinstance(leaf, Tensor) and leaf.is_meta
            return torch.zeros_like(leaf, device=self.device) if shape else leaf

        def emptied(leaf: Any) -> Any:
            return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

        given = (args, kwargs)
        meta = any(tensor.is_meta for tensor in leaves_in(given, Tensor))
        args, kwargs = tree_map(given, filled)
        found = self.compiled(*args, **kwargs)
        return tree_map(found, emptied) if meta else found


def is_layer(module: nn.Module) -> bool:
    """Whether a module is one step: its forward is inherited from torch.nn, under whatever name."""
    if isinstance(module, _CONTAINERS) or "forward" in vars(module):
        return False
    entry = layer_operation(module)
    if isinstance(module, CompiledModule) or (entry is not None and entry.opaque):
        return True
    home = type(module).forward.__module__ or ""  # generated code has none
    return home.startswith(("torch.nn.", "torch.ao.nn."))


def copy_network(model: nn.Module, numbers: bool = False) -> nn.Module:
    """A copy of a network that can be run without consequences, in eval mode.

    Parameters hold shapes only, or their `numbers`; buffers of the user's own modules hold numbers
    in either case, so that what is computed from them alone is known. Hooks of the user stay. What
    a network computed and kept is detached. Raises TraceError.
    """
    _check(model)
    tensors = [(module, leaf) for module in model.modules() for leaf in _tensors(module)]
    if any(isinstance(leaf, nn.parameter.UninitializedTensorMixin) for _, leaf in tensors):
        raise TraceError(f"{type(model).__name__} has lazy layers; run one batch through it first")
    memo: dict[int, Any] = {
        id(leaf): _copy_tensor(leaf, numbers or _is_user_constant(module, leaf))
        for module, leaf in tensors
    }
    try:
        network = _copy_module(model, memo, numbers)
        for module in network.modules():
            _rebind_closures(module, memo)
        return network
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be copied: {first_line(error)}; "
            "keep objects that cannot be copied out of the module's attributes"
        ) from error


def set_mode(network: nn.Module, training: bool) -> None:
    """Set the mode of a network but for its layers, which have none of their own here."""
    for module in network.modules():
        vars(module)["training"] = False if is_layer(module) else training


def first_line(error: Exception) -> str:
    """An error in one line."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")


def _check(model: Any) -> None:
    """Raise TraceError for what is no network."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TraceError(f"the model is a {kind}, not a torch.nn.Module; give the network itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(f"{kind} is compiled by torch.jit; give the module that it was made of")


def _is_user_constant(module: nn.Module, leaf: Tensor) -> bool:
    """Whether a tensor is a constant of a module of the user's own."""
    if isinstance(leaf, nn.Parameter) or not leaf.is_leaf:
        return False
    return not type(module).__module__.startswith("torch.")


def _copy_module(module: nn.Module, memo: dict[int, Any], numbers: bool) -> nn.Module:
    """What copy.deepcopy would make, in a tenth of the time: layers hold little of their own."""
    if id(module) in memo:
        return memo[id(module)]
    inner = wrapped_name(module)
    if inner is not None or isinstance(module, torch.jit.ScriptModule):
        network: nn.Module = _stand_in(module, inner, memo, numbers)
        memo[id(module)] = network
        return network
    network = memo[id(module)] = object.__new__(type(module))  # a class may count its instances
    state = dict(vars(module))
    for key, value in state.items():
        if key == "_modules":
            state[key] = {
                n: child and _copy_module(child, memo, numbers) for n, child in value.items()
            }
        elif key in ("_parameters", "_buffers"):
            state[key] = {name: memo.get(id(leaf)) for name, leaf in value.items()}
        elif key in _FORWARD_HOOKS:
            state[key] = type(value)(_user_hooks(value, memo))
        elif key in ("_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs"):
            state[key] = type(value)(value)
        elif key in _HOOKS:
            state[key] = type(value)()
        elif type(value) is set:
            state[key] = set(value) if all(map(_is_plain, value)) else copy.deepcopy(value, memo)
        elif key == "_compiled_call_impl":
            state[key] = None
        elif key in ("_graph", "meta") and isinstance(module, fx.GraphModule):
            continue
        elif not _is_plain(value):
            state[key] = copy.deepcopy(value, memo)
    vars(network).update(state, training=False)
    return network


def _rebind_closures(network: nn.Module, memo: dict[int, Any]) -> None:
    """Functions that a module keeps are closures over the copy, not over the network itself."""

    def change(leaf: Any) -> Any:
        return _copy_closure(leaf, memo) if isinstance(leaf, FunctionType) else leaf

    state = vars(network)
    own = {key: value for key, value in state.items() if key not in _STANDARD}
    for held, found in ((state, own), *((state[key], state[key]) for key in _FORWARD_HOOKS)):
        for key, value in found.items():
            if type(value) in (FunctionType, list, tuple, dict) and leaves_in(value, FunctionType):
                held[key] = tree_map(value, change)


def _copy_closure(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    if not function.__closure__ or id(function) in memo:
        return memo.get(id(function), function)
    memo[id(function)] = function
    cells = tuple(_copy_cell(cell, memo) for cell in function.__closure__)
    if any(new is not old for new, old in zip(cells, function.__closure__, strict=True)):
        code, name = function.__code__, function.__name__
        again = FunctionType(code, function.__globals__, name, function.__defaults__, cells)
        again.__kwdefaults__ = function.__kwdefaults__
        memo[id(function)] = again
    return memo[id(function)]


def _copy_cell(cell: CellType, memo: dict[int, Any]) -> CellType:
    """A cell with the copy of what is in it: of a module, a tensor, a list or another closure."""
    try:
        content = cell.cell_contents
    except ValueError:  # nothing was put in
        return cell
    if isinstance(content, FunctionType):
        found = _copy_closure(content, memo)
    elif isinstance(content, list | dict | tuple):
        with suppress(Exception):  # what cannot be copied is shared
            return CellType(copy.deepcopy(content, memo))
        return cell
    else:
        found = memo.get(id(content), content)
    return cell if found is content else CellType(found)


def _is_plain(value: Any) -> bool:
    """Whether nothing of a value needs to be copied."""
    kind = type(value)
    return kind in _PLAIN or (kind is tuple and all(type(one) in _PLAIN for one in value))


def _stand_in(
    module: nn.Module, inner: str | None, memo: dict[int, Any], numbers: bool
) -> nn.Module:
    if inner is not None:
        return UnwrappedModule(inner, _copy_module(getattr(module, inner), memo, numbers)).eval()
    return CompiledModule(copy.deepcopy(module).eval()).eval()


def wrapped_name(module: nn.Module) -> str | None:
    """The name that a wrapper of torch has for the module in it; None for other modules."""
    if type(module).__name__ == "OptimizedModule":
        return "_orig_mod"
    return "module" if isinstance(module, _WRAPPERS) else None


def _user_hooks(hooks: Any, memo: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    """The hooks of a module but for those of torch, which compute weights."""
    for key, hook in hooks.items():
        home = getattr(hook, "__module__", None) or type(hook).__module__
        if not str(home).startswith("torch."):
            yield key, copy.deepcopy(hook, memo)


def _tensors(module: nn.Module) -> list[Tensor]:
    held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [leaf for leaf in held if isinstance(leaf, Tensor)]


def _copy_tensor(leaf: Tensor, numbers: bool) -> Tensor:
    if numbers and not leaf.is_meta:
        content = leaf.detach().clone()
    else:
        content = torch.empty_like(leaf, device="meta", requires_grad=False)
    if isinstance(leaf, nn.Parameter):
        return nn.Parameter(content, requires_grad=leaf.requires_grad)
    return content
