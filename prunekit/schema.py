"""The meaning and the accepted values of settings, declared on the fields of classes.

    rho: Annotated[Positive, "how strongly the parameters are tied to their copy"] = 1.0

`Checked` dataclasses refuse other values; `settings_of` lists the declarations for help texts.
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
    """The bounds of a number, named as the arguments of `validate.number`."""

    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    infinite: bool = False

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError for a number out of bounds."""
        number(name, value, **self.__dict__)

    def __str__(self) -> str:
        bounds = {k: v for k, v in self.__dict__.items() if k != "infinite" and v is not None}
        if bounds.keys() == {"at_least", "at_most"}:
            return f"{self.at_least:.10g} to {self.at_most:.10g}"
        return ", ".join(f"{key.replace('_', ' ')} {v:.10g}" for key, v in bounds.items())


@dataclass(frozen=True)
class OneOf:
    """The accepted words, where they are known only at run time, as the names of a table."""

    words: Sequence[str]

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError for any other word."""
        choice(name, value, tuple(self.words))

    def __str__(self) -> str:
        return " | ".join(self.words)


@dataclass(frozen=True)
class Filled:
    """The rule that a text or a list is not empty; `instance` is an example for the message."""

    instance: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError for an empty value."""
        if not value:
            text = repr(value) if isinstance(value, str) else "[]"
            mend = f"give {self.instance}, for instance" if self.instance else "give at least one"
            raise ConfigError(f"{name}={text} is empty; {mend}")

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class Entries:
    """The rule that a list has so many entries."""

    count: int

    def check(self, name: str, value: Any) -> None:
        """Raise ConfigError for a shorter or longer list."""
        if len(value) != self.count:
            written = ",".join(map(word, value))
            raise ConfigError(f"{name}=[{written}] must be a list of {self.count} values")

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
    """One argument of a class or a function; `default` is REQUIRED where it must be given."""

    name: str
    hint: Any
    default: Any = REQUIRED

    def accept(self, value: Any) -> Any:
        """Return the value with lists as tuples; ConfigError where it does not fit the hint."""
        return _accept(self.name, value, self.hint)

    @property
    def meaning(self) -> str:
        """The text of the annotation; empty where there is none."""
        return next((m for m in reversed(_split(self.hint)[1]) if isinstance(m, str)), "")

    @property
    def type(self) -> str:
        """The accepted types in plain words."""
        return _type_words(self.hint)

    @property
    def range(self) -> str:
        """The bounds or choices in plain words; empty where there are none."""
        return _limit_words(self.hint)

    @property
    def comment(self) -> str:
        """The comment behind the setting in files and in help; empty without a meaning."""
        return f"{self.meaning} ({self.range})" if self.meaning and self.range else self.meaning


class Checked:
    """The base of dataclasses that check their fields against the annotations.

    A class whose fields must also fit each other checks that in its own `__post_init__`, after
    `super().__post_init__()`. Errors begin with the field's name; `build` puts the path before it.
    """

    def __post_init__(self) -> None:
        for setting in settings_of(type(self)):
            value = getattr(self, setting.name)
            accepted = setting.accept(value)
            if accepted is not value:
                object.__setattr__(self, setting.name, accepted)


def settings_of(target: Callable[..., Any]) -> tuple[Setting, ...]:
    """Return everything that a class or a function takes by name, in order."""
    return _settings_of(target)


def accepted_arguments(target: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call as their annotations accept them; ConfigError for others.

    Only limits that an `Annotated` declares are checked: other annotations are no promise. A
    `Checked` class checks itself.
    """
    if isinstance(target, type) and issubclass(target, Checked):
        return {**arguments}
    limited = {s.name: s for s in _declared(target) if get_origin(s.hint) is Annotated}
    return {
        key: limited[key].accept(value) if key in limited else value
        for key, value in arguments.items()
    }


def _declared(target: Callable[..., Any]) -> tuple[Setting, ...]:
    """Return the settings of a target; none where it is a built-in, or its hints have no value."""
    try:
        return settings_of(target)
    except (TypeError, ValueError, NameError, AttributeError):
        return ()


@functools.cache
def _settings_of(target: Callable[..., Any]) -> tuple[Setting, ...]:
    if dataclasses.is_dataclass(target):
        # Python 3.10 refuses the mark KW_ONLY, which is no type
        marks = {"KW_ONLY": object}
        hints = typing.get_type_hints(target, localns=marks, include_extras=True)
        fields = [field for field in dataclasses.fields(target) if field.init]
        return tuple(Setting(f.name, hints[f.name], _default(f)) for f in fields)
    owner: Any = target
    function = owner.__init__ if isinstance(target, type) else owner
    hints = typing.get_type_hints(function, include_extras=True)
    return tuple(
        Setting(name, hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(target).parameters.items()
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    )


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED if field.default is dataclasses.MISSING else field.default


def _split(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the type of an annotation, and its metadata."""
    if get_origin(hint) is Annotated:
        return hint.__origin__, hint.__metadata__
    return hint, ()


def _alternatives(kind: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _accept(name: str, value: Any, hint: Any) -> Any:
    """Return the value by the first type of the hint that it fits; the last type's error counts."""
    kind, metadata = _split(hint)
    *others, last = sorted(_alternatives(kind), key=lambda other: other is not NoneType)
    if value is None and NoneType in others:
        return None
    limits = [limit for limit in metadata if hasattr(limit, "check")]
    for other in others:
        with contextlib.suppress(ConfigError):
            return _accept_kind(name, value, other, limits)
    return _accept_kind(name, value, last, limits)


def _accept_kind(name: str, value: Any, kind: Any, limits: list[Any]) -> Any:
    """Return the value where it has this one type and is within the limits."""
    if get_origin(kind) is Annotated:
        accepted = _accept(name, value, kind)
    elif kind is float:
        infinite = any(getattr(limit, "infinite", False) for limit in limits)
        accepted = number(name, value, infinite=infinite)
    elif any(isinstance(limit, OneOf) for limit in limits):
        accepted = value  # the limit itself raises for anything but its words
    else:
        accepted = _accept_plain(name, value, kind)
    for limit in limits:
        limit.check(name, accepted)
    return accepted


def _accept_plain(name: str, value: Any, kind: Any) -> Any:
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
            owner = type(value).__name__
            raise ConfigError(f"{name} is a {owner}, not a function or a class; give one of those")
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


_CHECKS: dict[Any, Callable[[str, Any], Any]] = {
    bool: flag,
    int: integer,
    str: text,
    Path: _path,
    NoneType: _none,
}


def _list(name: str, value: Any, hint: Any) -> tuple[Any, ...]:
    if isinstance(value, str | Mapping | Set) or not isinstance(value, Collection):
        single = f"; write [{value}] for one" if isinstance(value, str | float | int) else ""
        raise ConfigError(f"{name}={value!r} is not a list{single}")
    return tuple(_accept(name, item, hint) for item in value)


def _mapping(name: str, value: Any, hint: Any) -> dict[Any, Any]:
    if not isinstance(value, Mapping):
        words = _type_words(hint).upper()
        raise ConfigError(f"{name}={value!r} is not a mapping; write {{NAME: {words}}}")
    return {key: _accept(f"{name}.{key}", item, hint) for key, item in value.items()}


_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    NoneType: "null",
    Any: "anything",
}


def _type_words(hint: Any) -> str:
    """Return the type of an annotation in plain words; str beside Path is left out."""
    kinds = _alternatives(_split(hint)[0])
    if Path in kinds:
        kinds = tuple(kind for kind in kinds if kind is not str)
    return " or ".join(_kind_words(_split(kind)[0]) for kind in kinds)


def _kind_words(kind: Any) -> str:
    origin = get_origin(kind)
    if origin in (Sequence, tuple, list):
        return f"list of {_type_words(get_args(kind)[0])}"
    if origin is Mapping:
        return f"mapping of names to {_type_words(get_args(kind)[1])}"
    if origin is Literal:
        return "word"
    if origin is Callable or kind is Callable:
        return "function or class"
    return _NAMES[kind] if kind in _NAMES else str(getattr(kind, "__name__", kind))


def _limit_words(hint: Any) -> str:
    """Return the limits of an annotation in plain words, with those of its inner types first."""
    kind, metadata = _split(hint)
    if get_origin(kind) is Literal:
        return " | ".join(map(word, get_args(kind)))
    kinds = _alternatives(kind)
    inner = [_limit_words(part) for part in kinds] if len(kinds) > 1 else []
    if get_origin(kind) in (Sequence, tuple, list, Mapping):
        inner = [_limit_words(get_args(kind)[1 if get_origin(kind) is Mapping else 0])]
    limits = [str(limit) for limit in metadata if hasattr(limit, "check")]
    return ", ".join(filter(None, (*inner, *limits)))
