"""Registries of names, which mean the same in Python and on the command line."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from typing import Any, Generic, TypeVar

from prunekit.errors import ConfigError, one_of

T = TypeVar("T")
Maker = TypeVar("Maker", bound=Callable[..., Any])


@functools.cache
def load_methods() -> None:
    """Import every package in `prunekit.methods`; each registers the parts of its method.

    Lookups call this, so that the core does not import the methods by name.
    """
    methods = importlib.import_module("prunekit.methods")
    for package in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"{methods.__name__}.{package.name}")


class Registry(Generic[T]):
    """Maps the names of one kind of object, such as criteria, to classes or functions.

    `setting` is the name of the kind in messages. Iterating yields the registered names.
    """

    def __init__(self, setting: str) -> None:
        self.setting = setting
        self._makers: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Maker], Maker]:
        """Return a decorator that registers a class, or a function that returns an object."""

        def keep(maker: Maker) -> Maker:
            self._makers[name] = maker
            return maker

        return keep

    def __iter__(self) -> Iterator[str]:
        load_methods()
        return iter(self._makers)

    def resolve(self, value: T | str, kind: type[T], **settings: Any) -> T:
        """Return an object as it is, or build the one of that name with `settings` as arguments.

        Raises ConfigError for an unknown name, for one that needs more settings, and for objects
        that are not of the kind.
        """
        if isinstance(value, str):
            return self._build(value, settings)
        if isinstance(value, kind):
            return value
        hint = f"give an object, or one of these names: {', '.join(sorted(self))}"
        if isinstance(value, type) and issubclass(value, kind):
            raise ConfigError(
                f"{self.setting}={value.__name__} is a class; {value.__name__}(...) makes an object"
            )
        raise ConfigError(
            f"{self.setting}={value!r} is a {type(value).__name__}, not a {kind.__name__}; {hint}"
        )

    def _build(self, name: str, settings: dict[str, Any]) -> T:
        if name not in self._makers:
            load_methods()
        if name not in self._makers:
            hint = one_of(name, self._makers)
            raise ConfigError(f"{self.setting}={name!r} is unknown; {hint}")
        maker = self._makers[name]
        needed = [
            key
            for key, parameter in signature(maker).parameters.items()
            if parameter.default is Parameter.empty and key not in settings
        ]
        if needed:
            raise ConfigError(
                f"{self.setting}={name!r} needs {', '.join(needed)}; give the object: "
                f"{maker.__name__}({', '.join(f'{key}=...' for key in needed)})"
            )
        return maker(**settings)
