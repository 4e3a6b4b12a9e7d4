"""Checks that constructors share: a setting is refused where it is given, not where it is used."""

from __future__ import annotations

import math
from numbers import Real

from prunekit.errors import ConfigError


def number(
    name: str,
    value: object,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    """Return `value` as given, or raise ConfigError when it is no finite number in the range."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise ConfigError(f"{name}={value!r} is not a finite number")
    bounds = (
        (above, lambda bound: value > bound, "above"),
        (at_least, lambda bound: value >= bound, "at least"),
        (below, lambda bound: value < bound, "below"),
        (at_most, lambda bound: value <= bound, "at most"),
    )
    for bound, holds, words in bounds:
        if bound is not None and not holds(bound):
            raise ConfigError(f"{name}={value} must be {words} {bound:g}")
    return value


def integer(name: str, value: object, *, at_least: int | None = None) -> int:
    """Return `value`, or raise ConfigError when it is no whole number or too small."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{name}={value!r} is not a whole number")
    return int(number(name, value, at_least=at_least))


def instance(name: str, value: object, kind: type) -> None:
    """Raise ConfigError when `value` is no object of the class that belongs there."""
    if not isinstance(value, kind):
        raise ConfigError(
            f"{name}={value!r} is a {type(value).__name__}, not a {kind.__name__}; give a _target_ "
            "that makes one"
        )


def choice(name: str, value: object, accepted: tuple[object, ...]) -> str:
    """Return `value`, or raise ConfigError when it is none of the accepted words."""
    if value not in accepted:
        raise ConfigError(f"{name}={value!r} is unknown; accepted: {', '.join(map(str, accepted))}")
    return str(value)
