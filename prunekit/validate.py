"""Checks that constructors share: a setting is refused where it is given, not where it is used."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

from prunekit.errors import ConfigError


def number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    infinite: bool = False,
) -> float:
    """Return `value` as given, or raise ConfigError when it is no finite number in the range.

    With `infinite` it may be infinite too.
    """
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or math.isnan(value) or (math.isinf(value) and not infinite):
        raise ConfigError(f"{name}={value!r} is not a {'' if infinite else 'finite '}number")
    bounds = (
        (above, lambda bound: value > bound, "above"),
        (at_least, lambda bound: value >= bound, "at least"),
        (below, lambda bound: value < bound, "below"),
        (at_most, lambda bound: value <= bound, "at most"),
    )
    for bound, holds, words in bounds:
        if bound is not None and not holds(bound):
            raise ConfigError(f"{name}={value} must be {words} {bound:.10g}")
    return value


def integer(name: str, value: Any, *, at_least: int | None = None) -> int:
    """Return `value`, or raise ConfigError when it is no whole number or too small."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} is not a whole number")
    return int(number(name, value, at_least=at_least))


def flag(name: str, value: Any) -> bool:
    """Return `value`, or raise ConfigError when it is neither true nor false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is unknown; accepted: true, false")
    return value


def text(name: str, value: Any) -> str:
    """Return `value`, or raise ConfigError when it is no text."""
    if not isinstance(value, str):
        raise ConfigError(f"{name}={value!r} is no text; quote it if it is one")
    return value


def instance(name: str, value: object, kind: type) -> None:
    """Raise ConfigError when `value` is no object of the class that belongs there."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        made = value.__name__
        raise ConfigError(f"{name}={made} is a class; give an object of it, {made}(...)")
    found = type(value).__name__
    shown = " ".join(repr(value).split())
    raise ConfigError(
        f"{name}={shown} is a {found}, not a {kind.__name__}; give a _target_ that makes one"
    )


def word(value: object) -> str:
    """A value as it is written in settings."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def choice(name: str, value: Any, accepted: tuple[object, ...]) -> str:
    """Return `value`, or raise ConfigError when it is none of the accepted words."""
    if value not in accepted:
        raise ConfigError(
            f"{name}={value!r} is unknown; accepted: {', '.join(map(word, accepted))}"
        )
    return value
