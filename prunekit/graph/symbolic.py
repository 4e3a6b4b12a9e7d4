"""A torch.fx graph of a copy that holds shapes only, and errors that point at the user's line."""

from __future__ import annotations

import copy
import inspect
import linecache
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.errors import TraceError
from prunekit.graph.tracer import Mode, Tracer, in_torch, set_mode


def shapes_only(model: nn.Module) -> nn.Module:
    """A copy of the model in eval mode on the meta device: no memory, no hooks, no numbers."""
    _check(model)
    tensors = [leaf for module in model.modules() for leaf in _tensors(module)]
    if any(isinstance(leaf, nn.parameter.UninitializedTensorMixin) for leaf in tensors):
        raise TraceError(f"{type(model).__name__} has lazy layers; run one batch through it first")
    memo: dict[int, Any] = {id(leaf): _meta(leaf) for leaf in tensors}
    try:
        return _twin(model, memo)
    except Exception as error:
        raise TraceError(
            f"{type(model).__name__} cannot be copied: {_first_line(error)}; "
            "keep objects that cannot be copied out of the module's attributes"
        ) from error


def _check(model: Any) -> None:
    """Raise TraceError for what is no network, or a wrapper around one."""
    kind = type(model).__name__
    if not isinstance(model, nn.Module):
        raise TraceError(f"the model is a {kind}, not a torch.nn.Module; give the network itself")
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(f"{kind} is compiled by torch.jit; give the module that it was made of")
    inside = "_orig_mod" if kind == "OptimizedModule" else "module"
    if kind == "OptimizedModule" or isinstance(model, _WRAPPERS):
        raise TraceError(f"{kind} is a wrapper; give the network inside it, model.{inside}")


def _twin(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What copy.deepcopy would make, in a tenth of the time: layers hold little of their own."""
    if id(module) in memo:
        return memo[id(module)]
    twin = memo[id(module)] = type(module).__new__(type(module))
    state = dict(vars(module))
    for key, value in state.items():
        if key == "_modules":
            state[key] = {name: child and _twin(child, memo) for name, child in value.items()}
        elif key in ("_parameters", "_buffers"):
            state[key] = {name: memo.get(id(leaf)) for name, leaf in value.items()}
        elif key in _HOOKS:
            state[key] = type(value)()
        elif type(value) not in _PLAIN:
            state[key] = copy.deepcopy(value, memo)
    vars(twin).update(state, training=False)
    return twin


def graphs(twin: nn.Module, inputs: Sequence[Tensor]) -> list[fx.Graph]:
    """The graph of the network in eval mode, and that of train mode where it is another.

    Raises TraceError when eval mode cannot be traced; what fails in train mode only is left out.
    """
    Mode.asked = False
    set_mode(twin, Mode(0))
    try:
        found = [trace(twin, inputs)]
        if Mode.asked:
            set_mode(twin, True)
            with suppress(TraceError):
                trained = trace(twin, inputs)
                found += [trained] if _steps(trained) != _steps(found[0]) else []
    finally:
        set_mode(twin, False)
    return found


def _steps(graph: fx.Graph) -> list[tuple[Any, ...]]:
    """What is called on what; constants that the tracer numbered are alike."""
    places = {node: place for place, node in enumerate(graph.nodes)}
    return [
        (
            node.op,
            node.target if callable(node.target) else node.target.rstrip("0123456789"),
            tuple(places[source] for source in node.all_input_nodes),
        )
        for node in graph.nodes
    ]


def trace(twin: nn.Module, inputs: Sequence[Tensor]) -> fx.Graph:
    """Trace the forward of `twin` for these `inputs`, further arguments at their defaults.

    Raises TraceError that names the line torch.fx stumbles over.
    """
    name, count = type(twin).__name__, len(inputs)
    parameters = list(inspect.signature(twin.forward).parameters.values())
    single = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [p.name for p in single[count:] if p.default is p.empty]
    if missing or (count > len(single) == len(parameters)):
        raise TraceError(
            f"{name}.forward takes ({', '.join(p.name for p in single)}), the example holds "
            f"{count} tensor(s); give an example with one tensor for each argument"
        )
    tracer = Tracer(inputs)
    rest = {p.name: p.default for p in single[count:]}
    try:
        return tracer.trace(twin, concrete_args=rest or None)
    except Exception as error:
        raise TraceError(
            f"{name} cannot be traced{_place(error)}: {_first_line(error)}; move that code into a "
            "function marked with torch.fx.wrap, or make it independent of the data"
        ) from error


def where(node: fx.Node) -> str:
    """Where a node stands in the user's code, for messages."""
    file, line = node.meta.get("line") or ("", 0)
    return f"{Path(file).name}:{line}" if line else "forward"


def describe(node: fx.Node) -> str:
    """What a node calls and where, for messages."""
    if node.op == "call_module":
        return str(node.target)
    target = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return f"{target} at {where(node)}"


_HOOKS = frozenset(key for key in vars(nn.Module()) if key.endswith("_hooks")) | {
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
}
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype, torch.Size, type})


def _tensors(module: nn.Module) -> list[Tensor]:
    held = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
    return [leaf for leaf in held if isinstance(leaf, Tensor)]


def _meta(leaf: Tensor) -> Tensor:
    empty = torch.empty_like(leaf, device="meta", requires_grad=False)
    if isinstance(leaf, nn.Parameter):
        return nn.Parameter(empty, requires_grad=leaf.requires_grad)
    return empty


def _place(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if not in_torch(frame.filename)]
    if not mine:
        return ""
    last = mine[-1]
    code = linecache.getline(last.filename, last.lineno or 0).strip()
    shown = f" ({code})" if code else ""
    return f" at {Path(last.filename).name}:{last.lineno}{shown}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(". ")
