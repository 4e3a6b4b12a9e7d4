"""Copies of a network that are run in its place, and the removal of what such runs leave behind."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import CellType, FunctionType, ModuleType
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
    """Replaces a wrapper in a copied network; `inner` is the wrapper's name for its module."""

    def __init__(self, inner: str, module: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.add_module(inner, module)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of the wrapped module."""
        return getattr(self, self.inner)(*args, **kwargs)


class CompiledModule(nn.Module):
    """Replaces a module that is compiled by torch.jit, whose code is not recorded."""

    compiled: nn.Module

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        vars(self)["compiled"] = module
        tensors = (*module.parameters(), *module.buffers())
        self.device = next((tensor.device for tensor in tensors), torch.device("cpu"))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the result of the compiled module, which reads meta tensors as zeros."""

        def zeros(leaf: Any) -> Any:
            shape = isinstance(leaf, Tensor) and leaf.is_meta
            return torch.zeros_like(leaf, device=self.device) if shape else leaf

        def to_meta(leaf: Any) -> Any:
            return leaf.to("meta") if isinstance(leaf, Tensor) else leaf

        arguments = (args, kwargs)
        has_shapes = any(tensor.is_meta for tensor in leaves_in(arguments, Tensor))
        args, kwargs = tree_map(arguments, zeros)
        result = self.compiled(*args, **kwargs)
        return tree_map(result, to_meta) if has_shapes else result


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is one step, because its forward is inherited from torch.nn."""
    if isinstance(module, _CONTAINERS) or "forward" in vars(module):
        return False
    entry = layer_operation(module)
    if isinstance(module, CompiledModule) or (entry is not None and entry.opaque):
        return True
    package = type(module).forward.__module__ or ""  # generated code has none
    return package.startswith(("torch.nn.", "torch.ao.nn."))


def copy_network(model: nn.Module, numbers: bool = False) -> nn.Module:
    """Return a copy of a network, in eval mode, whose forward has no effect on the network.

    Parameters are on the meta device, or have their `numbers`; buffers of the user's own modules
    have numbers in both cases, so that what is computed from them alone is known. Hooks of the user
    are copied. Tensors that the network computed and kept are detached. Raises TraceError.
    """
    _check(model)
    if numbers:  # earlier copies hang in cycles, and each takes as much memory as the network
        gc.collect()
    leaves = [(module, leaf) for module in model.modules() for leaf in _tensors(module)]
    if any(
        isinstance(leaf, (nn.UninitializedParameter, nn.UninitializedBuffer)) for _, leaf in leaves
    ):
        raise TraceError(f"{type(model).__name__} has lazy layers; run one batch through it first")
    memo: dict[int, Any] = {
        id(leaf): _copy_tensor(leaf, numbers or _is_user_constant(module, leaf))
        for module, leaf in leaves
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
    """Set the mode of a network without its layers, whose own mode does not matter here."""
    for module in network.modules():
        vars(module)["training"] = False if is_layer(module) else training


def first_line(error: Exception) -> str:
    """Return the first line of an error message."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")


def _check(model: Any) -> None:
    """Raise TraceError for models that are no networks."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TraceError(f"the model is a {kind}, not a torch.nn.Module; give the network itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(f"{kind} is compiled by torch.jit; give the module that it was made of")


def _is_user_constant(module: nn.Module, leaf: Tensor) -> bool:
    """Return whether a tensor is a constant of a user's own module."""
    if isinstance(leaf, nn.Parameter) or not leaf.is_leaf:
        return False
    return not type(module).__module__.startswith("torch.")


def _copy_module(module: nn.Module, memo: dict[int, Any], numbers: bool) -> nn.Module:
    """Return what copy.deepcopy would, in a tenth of the time, since layers hold few objects."""
    copied: nn.Module | None = memo.get(id(module))
    if copied is not None:
        return copied
    inner = wrapped_name(module)
    if inner is not None or isinstance(module, torch.jit.ScriptModule):
        copied = memo[id(module)] = _stand_in(module, inner, memo, numbers)
        return copied
    copied = memo[id(module)] = object.__new__(type(module))  # a class may count its instances
    state = dict(vars(module))
    for key, value in state.items():
        if type(value) in _PLAIN:  # most of them
            continue
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
    vars(copied).update(state, training=False)
    return copied


def _rebind_closures(module: nn.Module, memo: dict[int, Any]) -> None:
    """Make functions that a module keeps closures over the copy in place of the network."""

    def change(leaf: Any) -> Any:
        return _copy_closure(leaf, memo) if isinstance(leaf, FunctionType) else leaf

    state = vars(module)
    user_attributes = {key: value for key, value in state.items() if key not in _STANDARD}
    hooks = ((state[key], state[key]) for key in _FORWARD_HOOKS)
    for target, values in ((state, user_attributes), *hooks):
        for key, value in values.items():
            if type(value) in (FunctionType, list, tuple, dict) and leaves_in(value, FunctionType):
                target[key] = tree_map(value, change)


def _copy_closure(function: FunctionType, memo: dict[int, Any]) -> FunctionType:
    """Return a function with copied cells, if any of its cells needs a copy."""
    if not function.__closure__ or id(function) in memo:
        known: FunctionType = memo.get(id(function), function)
        return known
    memo[id(function)] = function
    cells = tuple(_copy_cell(cell, memo) for cell in function.__closure__)
    if any(new is not old for new, old in zip(cells, function.__closure__, strict=True)):
        code, name = function.__code__, function.__name__
        copied = FunctionType(code, function.__globals__, name, function.__defaults__, cells)
        copied.__kwdefaults__ = function.__kwdefaults__
        memo[id(function)] = copied
        return copied
    return function


def _copy_cell(cell: CellType, memo: dict[int, Any]) -> CellType:
    """Return a cell with the copy of its module, tensor, container or closure."""
    try:
        content = cell.cell_contents
    except ValueError:  # an empty cell
        return cell
    copied: Any
    if isinstance(content, FunctionType):
        copied = _copy_closure(content, memo)
    elif isinstance(content, list | dict | tuple):
        with suppress(Exception):  # objects that cannot be copied are shared
            return CellType(copy.deepcopy(content, memo))
        return cell
    else:
        copied = memo.get(id(content), content)
    return cell if copied is content else CellType(copied)


def _is_plain(value: Any) -> bool:
    """Return whether no part of a value needs to be copied."""
    kind = type(value)
    return kind in _PLAIN or (kind is tuple and all(type(item) in _PLAIN for item in value))


def _stand_in(
    module: nn.Module, inner: str | None, memo: dict[int, Any], numbers: bool
) -> nn.Module:
    if inner is not None:
        return UnwrappedModule(inner, _copy_module(getattr(module, inner), memo, numbers)).eval()
    return CompiledModule(copy.deepcopy(module).eval()).eval()


def wrapped_name(module: nn.Module) -> str | None:
    """Return a torch wrapper's name for the module in it; None for other modules."""
    if type(module).__name__ == "OptimizedModule":
        return "_orig_mod"
    return "module" if isinstance(module, _WRAPPERS) else None


def _user_hooks(hooks: Any, memo: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    """Yield the hooks of a module without those of torch, which compute weights."""
    for key, hook in hooks.items():
        package = getattr(hook, "__module__", None) or type(hook).__module__
        if not str(package).startswith("torch."):
            yield key, copy.deepcopy(hook, memo)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return all tensors that are attributes of a module."""
    values = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [leaf for leaf in values if isinstance(leaf, Tensor)]


def _copy_tensor(leaf: Tensor, numbers: bool) -> Tensor:
    if numbers and not leaf.is_meta:
        content = leaf.detach().clone()
    else:
        content = torch.empty_like(leaf, device="meta", requires_grad=False)
    if isinstance(leaf, nn.Parameter):
        return nn.Parameter(content, requires_grad=leaf.requires_grad)
    return content


_DEPTH = 3  # tuples around a tensor


def release_tensors(tensors: Sequence[Tensor], network: nn.Module) -> None:
    """Remove tensors from everything that holds them, except the modules of the copy.

    A meta tensor that stays in a cache would meet the numbers of the next pass.
    """
    if not tensors:
        return
    kept = {id(leaf) for module in network.modules() for leaf in leaves_in(vars(module), Tensor)}
    leaked = [tensor for tensor in tensors if id(tensor) not in kept]
    ids = {id(tensor) for tensor in leaked}
    if ids:
        _remove_from_holders(leaked, ids, {id(leaked), id(tensors), id(ids)}, _DEPTH)


def _remove_from_holders(targets: list[Any], ids: set[int], excluded: set[int], depth: int) -> None:
    """Remove the tensors with these ids from caches, lists and variables."""
    tuples = []
    for holder in gc.get_referrers(*targets):
        if id(holder) in excluded or holder is targets:
            continue
        if isinstance(holder, tuple):
            tuples.append(holder)
        elif isinstance(holder, dict):
            _remove_from_dict(holder, ids)
        elif isinstance(holder, list):
            holder[:] = [item for item in holder if id(item) not in ids]
        elif isinstance(holder, set):
            holder.difference_update([item for item in holder if id(item) in ids])
        elif hasattr(holder, "cache_clear"):
            holder.cache_clear()
        elif not isinstance(holder, Tensor) and hasattr(holder, "__dict__"):
            _remove_from_object(holder, ids)
    if tuples and depth:
        _remove_from_holders(
            tuples, {id(item) for item in tuples}, {*excluded, id(targets)}, depth - 1
        )


def _remove_from_dict(holder: dict[Any, Any], ids: set[int]) -> None:
    """Delete items of a dict, or set the variables of a module, class or object to None."""
    keys = [key for key, value in holder.items() if id(value) in ids]
    owners = gc.get_referrers(holder) if keys else []
    owner = next((user for user in owners if _owns(user, holder)), None)
    for key in keys:
        if owner is None:
            del holder[key]
        else:
            setattr(owner, key, None)


def _owns(owner: Any, namespace: dict[Any, Any]) -> bool:
    """Return whether a dict holds the variables of a module, a class or an object."""
    if isinstance(owner, type):
        return namespace.get("__module__") == owner.__module__ and "__doc__" in namespace
    return isinstance(owner, ModuleType) or getattr(owner, "__dict__", None) is namespace


def _remove_from_object(holder: Any, ids: set[int]) -> None:
    for name in [name for name, value in vars(holder).items() if id(value) in ids]:
        setattr(holder, name, None)
