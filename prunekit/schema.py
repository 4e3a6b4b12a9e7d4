"""What a setting means and may be: said once, on the field of the class that takes it.

    rho: Annotated[Positive, "how strongly the parameters are tied to their copy"] = 1.0

`Checked` classes refuse anything else when they are made; `settings_of` tells it to people.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from prunekit.errors import ConfigError
from prunekit.validate import choice, flag, instance, integer, number, text, word


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, in the words of `checks.number`."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    infinite: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError where a number is out of bounds."""
        number(name, value, **self.__dict__)

    def __str__(self) -> str:
        given = {k: v for k, v in self.__dict__.items() if k != "infinite" and v is not None}
        if given.keys() == {"at_least", "at_most"}:
            return f"{self.at_least:.10g} to {self.at_most:.10g}"
        return ", ".join(f"{words.replace('_', ' ')} {v:.10g}" for words, v in given.items())


@dataclass(frozen=True)
class OneOf:
    """The words that are accepted, for instance the names of a table."""

    words: Sequence[str]

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError for any other word."""
        choice(name, value, tuple(self.words))

    def __str__(self) -> str:
        return " | ".join(self.words)


@dataclass(frozen=True)
class Filled:
    """A text or a list that may not be empty; `instance` shows one."""

    instance: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError where there is nothing in it."""
        if not value:
            shown = repr(value) if isinstance(value, str) else "[]"
            way = f"give {self.instance}, for instance" if self.instance else "give at least one"
            raise ConfigError(f"{name}={shown} is empty; {way}")

    def __str__(self) -> str:
        return ""


Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(at_least=0)]
Share = Annotated[float, Range(at_least=0, at_most=1)]
SomeShare = Annotated[float, Range(above=0, at_most=1)]
PartShare = Annotated[float, Range(at_least=0, below=1)]
Count = Annotated[int, Range(at_least=1)]
Whole = Annotated[int, Range(at_least=0)]
Text = Annotated[str, Filled()]
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Setting:
    """One argument of a class or function; `default` is REQUIRED where there is none."""

    name: str
    hint: Any
    default: Any = REQUIRED

    def taken(self, value: Any) -> Any:
        """The value as it is kept, lists as tuples; ConfigError where it does not belong here."""
        return _taken(self.name, value, self.hint)

    @property
    def meaning(self) -> str:
        """What it does, in a few words; empty where nothing was said."""
        return next((m for m in reversed(_parted(self.hint)[1]) if isinstance(m, str)), "")

    @property
    def type(self) -> str:
        """What may stand there, in plain words."""
        return _type(self.hint)

    @property
    def range(self) -> str:
        """Its bounds or choices in plain words; empty where its type says all."""
        return _range(self.hint)

    @property
    def comment(self) -> str:
        """The line behind the setting in files and in help; empty where nothing was said."""
        return f"{self.meaning} ({self.range})" if self.meaning and self.range else self.meaning


class Checked:
    """The base of dataclasses whose annotations are kept to.

    A class whose fields must also fit each other says so in a `__post_init__` of its own, behind
    `super().__post_init__()`. Errors begin with the field's name: `build` puts its place in front.
    """

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            value = getattr(self, setting.name)
            kept = setting.taken(value)
            if kept is not value:
                object.__setattr__(self, setting.name, kept)


@functools.cache
def settings_of(target: Callable[..., Any]) -> tuple[Setting, ...]:
    """Everything that a class or a function takes by name, in order."""
    if dataclasses.is_dataclass(target):
        hints = typing.get_type_hints(target, include_extras=True)
        fields = [field for field in dataclasses.fields(target) if field.init]
        return tuple(Setting(f.name, hints[f.name], _default(f)) for f in fields)
    made = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    hints = typing.get_type_hints(made, include_extras=True)
    return tuple(
        Setting(name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _parted(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """The type of an annotation, and what stands beside it."""
    if get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a type."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _taken(name: str, value: Any, hint: Any) -> Any:
    """The value as it is kept; of several types the first that it fits, the last one complains."""
    kind, beside = _parted(hint)
    *others, last = sorted(_kinds(kind), key=lambda one: one is not NoneType)
    if value is None and NoneType in others:
        return None
    limits = [limit for limit in beside if hasattr(limit, "check")]
    for other in others:
        with contextlib.suppress(ConfigError):
            return _limited(name, value, other, limits)
    return _limited(name, value, last, limits)


def _limited(name: str, value: Any, kind: Any, limits: list[Any]) -> Any:
    """A value of one type, within its limits."""
    if get_origin(kind) is Annotated:
        kept = _taken(name, value, kind)
    elif kind is float:
        endless = any(getattr(limit, "infinite", False) for limit in limits)
        kept = number(name, value, infinite=endless)
    else:
        words = any(isinstance(limit, OneOf) for limit in limits)  # these say what is accepted
        kept = value if words else _plain(name, value, kind)
    for limit in limits:
        limit.check(name, kept)
    return kept


def _plain(name: str, value: Any, kind: Any) -> Any:
    origin = get_origin(kind)
    if kind in _CHECKS:
        return _CHECKS[kind](name, value)
    if origin is Literal:
        return choice(name, value, get_args(kind))
    if origin in (Sequence, tuple, list):
        return _list(name, value, get_args(kind)[0])
    if origin is Mapping:
        return _mapping(name, value, get_args(kind)[1])
    if origin is Callable or kind is Callable:
        if not callable(value):
            made = type(value).__name__
            raise ConfigError(f"{name} is a {made}, not a function or a class; give one of those")
    elif isinstance(kind, type) and kind is not Any and not getattr(kind, "_is_protocol", False):
        instance(name, value, kind)
    return value


def _none(name: str, value: Any) -> None:
    if value is not None:
        raise ConfigError(f"{name}={value!r} is not null")


def _path(name: str, value: Any) -> Any:
    if not isinstance(value, str | Path):
        raise ConfigError(f"{name}={value!r} is no path; quote it if it is one")
    return value


_CHECKS = {bool: flag, int: integer, str: text, Path: _path, NoneType: _none}


def _list(name: str, value: Any, of: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping | Set) or not isinstance(value, Collection):
        single = f"; write [{value}] for one" if isinstance(value, str | float | int) else ""
        raise ConfigError(f"{name}={value!r} is not a list{single}")
    return tuple(_taken(name, item, of) for item in value)


def _mapping(name: str, value: Any, of: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name}={value!r} is not a mapping; write {{NAME: {_type(of).upper()}}}")
    return {key: _taken(f"{name}.{key}", item, of) for key, item in value.items()}


_NAMES = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
}


def _type(hint: Any) -> str:
    """An annotation in plain words."""
    kinds = _kinds(_parted(hint)[0])
    if Path in kinds:
        kinds = tuple(kind for kind in kinds if kind is not str)
    return " or ".join(_composed(_parted(kind)[0]) for kind in kinds)


def _composed(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Sequence, tuple, list):
        return f"list of {_type(get_args(kind)[0])}"
    if origin is Mapping:
        return f"mapping of names to {_type(get_args(kind)[1])}"
    if origin is Literal:
        return "word"
    if origin is Callable or kind is Callable:
        return "function or class"
    return _NAMES.get(kind) or ("anything" if kind is Any else getattr(kind, "__name__", str(kind)))


def _range(hint: Any) -> str:
    """The limits of an annotation in plain words, wherever in it they stand."""
    kind, beside = _parted(hint)
    if get_origin(kind) is Literal:
        return " | ".join(map(word, get_args(kind)))
    inner = [_range(part) for part in _kinds(kind)] if len(_kinds(kind)) > 1 else []
    if get_origin(kind) in (Sequence, tuple, list, Mapping):
        inner = [_range(get_args(kind)[0 if get_origin(kind) is not Mapping else 1])]
    limits = [str(limit) for limit in beside if hasattr(limit, "check")]
    return ", ".join(filter(None, (*inner, *limits)))
