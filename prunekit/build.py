"""Build objects from plain settings: a mapping with `_target_` becomes a call of that class."""

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
from prunekit.reasons import reason_of
from prunekit.renamed import current_path
from prunekit.schema import accepted_arguments

Settings = Mapping[str, Any]
_EXAMPLE = "write one such as my_package.nets.Net"


def build(node: Any, where: str = "settings", kind: type | None = None) -> Any:
    """Build the object that `node` describes, children first; plain values come back unchanged.

    `where` is the dotted key of the node, for messages. `_partial_: true` binds the arguments and
    returns a callable. `name` is only a label where the class does not take it. Raises ConfigError
    that names the key, also for an object that is not of the `kind`. The signature is checked
    before anything is called.
    """
    value = _build(node, where)
    if kind is not None and not isinstance(value, kind):
        raise ConfigError(
            f"{where} describes a {type(value).__name__}, not a {kind.__name__}; give a _target_ "
            "that makes one"
        )
    return value


def _build(node: Any, where: str) -> Any:
    if isinstance(node, Mapping):
        children = {
            key: _build(value, f"{where}.{key}")
            for key, value in node.items()
            if key not in ("_target_", "_partial_")
        }
        if "_target_" not in node:
            return children
        return _call(node, children, where)
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_build(value, f"{where}.{index}") for index, value in enumerate(node)]
    return node


def locate(path: str, where: str = "settings") -> Callable[..., Any]:
    """Import the class or function at a dotted path, such as `my_package.nets.Net`."""
    if "." not in str(path):
        raise ConfigError(f"{where}._target_={path!r} is no dotted path to a class; {_EXAMPLE}")
    if (present := current_path(str(path))) is not None:
        raise ConfigError(f"{where}._target_={path!r} is now {present}; write that")
    module, _, name = str(path).rpartition(".")
    try:
        target = getattr(_import(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        reason = f"cannot be imported: {error}; give a dotted path to a class"
        top = module.split(".")[0]
        if isinstance(error, ModuleNotFoundError) and error.name == top:
            reason = (
                f"cannot be imported: there is no {top}.py or {top}/ in {os.getcwd()}, and no "
                "such package is installed; start in its folder, or name that in PYTHONPATH"
            )
        raise ConfigError(f"{where}._target_={path!r} {reason}") from error
    if not callable(target):
        raise ConfigError(f"{where}._target_={path!r} is not a class or a function")
    return target


def _import(module: str) -> ModuleType:
    """Import a module, also from the current folder, which is not in the path of a command."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        folder = os.getcwd()
        if error.name != module.split(".")[0] or folder in sys.path:
            raise
        sys.path.append(folder)
        return importlib.import_module(module)


def _call(node: Settings, arguments: dict[str, Any], where: str) -> Any:
    target = locate(node["_target_"], where)
    partial = bool(node.get("_partial_", False))
    arguments = _without_label(target, arguments)
    _check(target, arguments, where, partial)
    try:
        arguments = accepted_arguments(target, arguments)
        return functools.partial(target, **arguments) if partial else target(**arguments)
    except PrunekitError as error:
        raise type(error)(_with_key(str(error), where, target)) from error
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{where}: {node['_target_']} refuses {_call_text(arguments)}: {reason_of(error)}; "
            "give other values"
        ) from error


def _with_key(message: str, where: str, target: Callable[..., Any]) -> str:
    """Return a message with the full key: `keep=2 ...` becomes `selection.keep=2 ...`."""
    if message.startswith(f"{where}."):
        return message
    argument = re.match(r"(\w+)(?=[=.]| is )", message)
    own = argument is not None and argument[1] in _signature(target).parameters
    return f"{where}.{message}" if own else f"{where}: {message}"


def _call_text(arguments: Mapping[str, Any]) -> str:
    """Return the arguments as they are written in a call, with long values shortened."""
    texts = [f"{key}={reprlib.repr(value)}" for key, value in arguments.items()]
    return ", ".join(texts) or "a call without arguments"


def _without_label(target: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments without `name`, a label for people, unless the class takes it."""
    takes_name = "name" in _signature(target).parameters
    return {key: value for key, value in arguments.items() if takes_name or key != "name"}


def _signature(target: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of the target; `**settings` for built-ins that have none."""
    try:
        return inspect.signature(target)
    except (TypeError, ValueError):
        return inspect.Signature([inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)])


def _check(
    target: Callable[..., Any], arguments: dict[str, Any], where: str, partial: bool
) -> None:
    """Raise ConfigError where the target does not take these arguments, or needs more."""
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
        owner = getattr(target, "__name__", target)
        raise ConfigError(f"{where}: {owner} needs more: {reason_of(error)}; give it") from error
