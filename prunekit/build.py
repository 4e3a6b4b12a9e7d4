"""Turn plain settings into objects: a mapping with `_target_` becomes a call of that class."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
import reprlib
import sys
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from prunekit.errors import ConfigError, PrunekitError, one_of
from prunekit.renamed import current_path

Settings = Mapping[str, Any]


def build(node: Any, where: str = "settings", kind: type | None = None) -> Any:
    """Build the object that `node` describes, children first; plain values come back unchanged.

    `_partial_: true` binds the arguments and returns a callable. `name`, where the class does not
    take it, is only a label. Raises ConfigError that names the key, also where the object is none
    of the `kind` that belongs there; the signature is checked before anything is called.
    """
    built = _built(node, where)
    if kind is not None and not isinstance(built, kind):
        raise ConfigError(
            f"{where} describes a {type(built).__name__}, not a {kind.__name__}; give a _target_ "
            "that makes one"
        )
    return built


def _built(node: Any, where: str) -> Any:
    if isinstance(node, Mapping):
        children = {
            key: _built(value, f"{where}.{key}")
            for key, value in node.items()
            if key not in ("_target_", "_partial_")
        }
        if "_target_" not in node:
            return children
        return _call(node, children, where)
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_built(value, f"{where}.{index}") for index, value in enumerate(node)]
    return node


def locate(path: str, where: str = "settings") -> Callable[..., Any]:
    """Import the class or function at a dotted path, `my_package.nets.Net` for instance."""
    if (now := current_path(str(path))) is not None:
        raise ConfigError(f"{where}._target_={path!r} is now {now}; write that")
    module, _, name = str(path).rpartition(".")
    try:
        found = getattr(_imported(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{where}._target_={path!r} cannot be imported: {error}; give a dotted path to a class"
        ) from error
    if not callable(found):
        raise ConfigError(f"{where}._target_={path!r} is not a class or a function")
    return found


def _imported(module: str) -> ModuleType:
    """A module, from the current folder too: it is no place to look where a command starts."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        here = os.getcwd()
        if error.name != module.split(".")[0] or here in sys.path:
            raise
        sys.path.append(here)
        return importlib.import_module(module)


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
        raise type(error)(_placed(str(error), where, target)) from error
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{where}: {node['_target_']} refuses {_listed(arguments)}: {reason}"
        ) from error


def _placed(message: str, where: str, target: Callable[..., Any]) -> str:
    """A message with its place in front: `keep=2 ...` is about `selection.keep` in `selection`."""
    if message.startswith(f"{where}."):
        return message
    argument = re.match(r"(\w+)(?=[=.]| is )", message)
    own = argument is not None and argument[1] in _signature(target).parameters
    return f"{where}.{message}" if own else f"{where}: {message}"


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
