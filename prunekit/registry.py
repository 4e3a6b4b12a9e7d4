"""Names for the objects of one kind, which mean the same in Python and on the command line."""

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
    """Import every package in `prunekit.methods`, which registers the parts of its method.

    Lookups call this, so that no part of the core has to know which methods there are.
    """
    methods = importlib.import_module("prunekit.methods")
    for package in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"{methods.__name__}.{package.name}")


class Registry(Generic[T]):
    """The names of one kind of object, such as criteria, and what makes the object of a name.

    `setting` is what a person calls the kind. Iterating gives the names.
    """

    def __init__(self, setting: str) -> None:
        self.setting = setting
        self._makers: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[Maker], Maker]:
        """A decorator that gives a class, or a function that makes the object, a name."""

        def keep(maker: Maker) -> Maker:
            self._makers[name] = maker
            return maker

        return keep

    def __iter__(self) -> Iterator[str]:
        load_methods()
        return iter(self._makers)

    def named(self, given: T | str, kind: type[T], **settings: Any) -> T:
        """The object itself, or the one of that name; `settings` are arguments for a named one.

        Raises ConfigError for an unknown name, for one that needs more settings, for what is no
        object of the kind.
        """
        if isinstance(given, str):
            return self._made(given, settings)
        if isinstance(given, kind):
            return given
        hint = f"give an object, or one of these names: {', '.join(sorted(self))}"
        if isinstance(given, type) and issubclass(given, kind):
            raise ConfigError(
                f"{self.setting}={given.__name__} is a class; {given.__name__}(...) makes an object"
            )
        raise ConfigError(
            f"{self.setting}={given!r} is a {type(given).__name__}, not a {kind.__name__}; {hint}"
        )

    def _made(self, name: str, settings: dict[str, Any]) -> T:
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
