"""Turn plain settings into objects: a mapping with `_target_` becomes a call of that class."""

from __future__ import annotations

import functools
import importlib
import inspect
import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prunekit.errors import ConfigError, PrunekitError, one_of

Settings = Mapping[str, Any]


def build(node: Any, where: str = "settings", **extra: Any) -> Any:
    """Build the object that `node` describes, children first; plain values come back unchanged.

    `_partial_: true` binds the arguments and returns a callable. `name`, where the class does not
    take it, is only a label. `extra` are arguments that no file can hold. Raises ConfigError that
    names the key; the signature is checked before anything is called.
    """
    if isinstance(node, Mapping):
        children = {
            key: build(value, f"{where}.{key}")
            for key, value in node.items()
            if key not in ("_target_", "_partial_")
        }
        if "_target_" not in node:
            return children
        return _call(node, {**children, **extra}, where)
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [build(value, f"{where}.{index}") for index, value in enumerate(node)]
    return node


def locate(path: str, where: str = "settings") -> Callable[..., Any]:
    """Import the class or function at a dotted path, `my_package.nets.Net` for instance."""
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}._target_={path!r} cannot be imported: {error}; give a dotted path to a class"
        ) from error
    if not callable(found):
        raise ConfigError(f"{where}._target_={path!r} is not a class or a function")
    return found


def _call(node: Settings, arguments: dict[str, Any], where: str) -> Any:
    target = locate(node["_target_"], where)
    partial = bool(node.get("_partial_", False))
    arguments = _without_label(target, arguments)
    _check(target, arguments, where, partial)
    if partial:
        return functools.partial(target, **arguments)
    try:
        return target(**arguments)
    except PrunekitError as error:
        named = str(error).startswith(f"{where}.")
        raise type(error)(str(error) if named else f"{where}: {error}") from error
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{where}: {node['_target_']} refuses {_listed(arguments)}: {reason}"
        ) from error


def _listed(arguments: Mapping[str, Any]) -> str:
    """Arguments as they would be written in a call, long ones cut."""
    shown = [f"{key}={reprlib.repr(value)}" for key, value in arguments.items()]
    return ", ".join(shown) or "a call without arguments"


def _without_label(target: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Leave out `name`, a label for people, unless the class wants it."""
    wanted = "name" in _signature(target).parameters
    return {key: value for key, value in arguments.items() if wanted or key != "name"}


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """What the target takes; anything where Python cannot tell, as for some built-ins."""
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        anything = inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)
        return inspect.Signature([anything])


def _check(
    target: Callable[..., Any], arguments: dict[str, Any], where: str, partial: bool
) -> None:
    signature = _signature(target)
    try:
        (signature.bind_partial if partial else signature.bind)(**arguments)
    except TypeError as error:
        unknown = [key for key in arguments if key not in signature.parameters]
        if unknown:
            hint = one_of(unknown[0], signature.parameters)
            owner = getattr(target, "__name__", target)
            raise ConfigError(
                f"{where}.{unknown[0]} is no setting of {owner}; {hint} (where something else set "
                f"it, ~{where}.{unknown[0]} takes it out)"
            ) from error
        raise ConfigError(f"{where}: {getattr(target, '__name__', target)}: {error}") from error
