"""What a stage is asked to do: one frozen value of typed parts, made of settings at the door."""

from __future__ import annotations

import functools
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from prunekit.build import build
from prunekit.errors import ConfigError
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.schema import Checked
from prunekit.stages.root import Seed

if TYPE_CHECKING:
    from typing_extensions import Self

    from prunekit.data import Data
    from prunekit.stages.runtime import Runtime

Settings = Mapping[str, Any]


@dataclass(frozen=True, init=False)
class Read:
    """Where in the settings a part stands: under dotted keys, if not under the name of its field.

    `make` builds the part of all settings; without it the one key is built, and a choice that
    describes nothing, such as `distill=none`, is None. A part that belongs to the `start` of a run
    is not read by a stage that begins with another stage's network.
    """

    keys: tuple[str, ...]
    make: Callable[[Settings], Any] | None
    start: bool

    def __init__(
        self, *keys: str, make: Callable[[Settings], Any] | None = None, start: bool = False
    ) -> None:
        for name, value in (("keys", keys), ("make", make), ("start", start)):
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Parts(Checked):
    """What a command reads from the settings: a field for every part, built and checked."""

    seed: Seed
    dataset: Any

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Build every part, so that a mistake shows before any work; raises ConfigError."""
        return cls(
            **{
                name: read.make(settings) if read.make else _built(settings, read.keys[0], hint)
                for name, (read, hint) in _parts(cls).items()
            }
        )

    @classmethod
    def reads(cls, sourced: bool) -> tuple[str, ...]:
        """The dotted keys of settings that make it what it is, with a source or without."""
        reads = [read for read, _ in _parts(cls).values()]
        return tuple(key for read in reads if not (sourced and read.start) for key in read.keys)

    @classmethod
    def starts_anywhere(cls) -> bool:
        """Whether it can build its network itself where no earlier stage has left one."""
        return any(read.start for read, _ in _parts(cls).values())

    def data(self, runtime: Runtime) -> Data:
        """The data set, on the device of the runtime."""
        return self.dataset.load(runtime.device, self.seed)


@dataclass(frozen=True)
class Stage(Parts, ABC):
    """One step of the pipeline with everything it was asked for.

    What its fields read from the settings is what the stage is: the description of these parts is
    kept in the run directory. A stage that `compares` reads the models of these stages too, as far
    as they are finished. One that needs no source may not be given one.
    """

    name: ClassVar[str]
    needs_source: ClassVar[bool] = True
    compares: ClassVar[tuple[str, ...]] = ()

    def check(self, run: Path) -> None:
        """Raise where something is missing that no earlier stage of the run can leave."""

    def within(self, run: Path, source: Path | None) -> Self:
        """The same stage in a run directory, with the files named that its parts read."""
        return self

    def teacher(self, source: Path | None) -> Path | None:
        """The model file of the network that teaches, where one does."""
        return None

    def show(self, place: StageDir) -> None:
        """Print what a person wants to see in the end, besides the line that every stage gets."""

    @abstractmethod
    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Do the work, and leave its files in `place`."""


def described(settings: Settings, keys: tuple[str, ...]) -> dict[str, Any]:
    """The settings at dotted keys, nested as they were; an absent one raises ConfigError."""
    chosen: dict[str, Any] = {}
    for key in keys:
        into = chosen
        *parents, last = key.split(".")
        for parent in parents:
            into = into.setdefault(parent, {})
        into[last] = _at(settings, key)
    return chosen


@functools.cache
def _parts(cls: type[Parts]) -> dict[str, tuple[Read, Any]]:
    """Field -> where it is read, and its annotation."""
    hints = typing.get_type_hints(cls, include_extras=True)
    parts = {}
    for field in fields(cls):
        beside = getattr(hints[field.name], "__metadata__", ())
        read = next((one for one in beside if isinstance(one, Read)), Read(field.name))
        parts[field.name] = (read if read.keys else Read(field.name), hints[field.name])
    return parts


def _at(settings: Settings, key: str) -> Any:
    node: Any = settings
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise ConfigError(f"the setting {key} is missing")
        node = node[part]
    return node


def _built(settings: Settings, key: str, hint: Any) -> Any:
    """The part at a key; None for a choice that describes nothing, where that may be."""
    node = _at(settings, key)
    kind = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
    classes = [c for c in (get_args(kind) or (kind,)) if isinstance(c, type) and c is not Any]
    if type(None) in classes and isinstance(node, Mapping) and "_target_" not in node:
        return None
    if type(None) in classes and node is None:
        return None
    only = next((one for one in classes if one not in _PLAIN), None)
    return build(node, key, only)


_PLAIN = (type(None), bool, int, float, str)  # what settings hold as they are
