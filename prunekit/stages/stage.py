"""A stage of the pipeline: a frozen value of typed parts, which is built from the settings once."""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args, get_origin

from prunekit.build import Settings, build, locate
from prunekit.errors import ConfigError
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.schema import Checked
from prunekit.stages.settings import Runtime, Seed

if TYPE_CHECKING:
    from typing_extensions import Self

    from prunekit.data import Data


@dataclass(frozen=True, init=False)
class FromSettings:
    """Names the dotted keys that a field is built from, where they differ from the field's name.

    `make` builds the part from all settings. Without it the first key is built, and a choice that
    describes nothing, such as `distill=none`, becomes None. Parts with `start` build the network
    that a run begins with; a stage that begins with another stage's network does not read them.
    """

    keys: tuple[str, ...]
    make: Callable[[Settings], Any] | None
    start: bool

    def __init__(
        self, *keys: str, make: Callable[[Settings], Any] | None = None, start: bool = False
    ) -> None:
        for name, value in (("keys", keys), ("make", make), ("start", start)):
            object.__setattr__(self, name, value)


def build_dataset(settings: Settings) -> Any:
    """Build the data set; ConfigError for a class that is none, whatever its arguments."""
    node = _value_at(settings, "dataset")
    target = node.get("_target_") if isinstance(node, Mapping) else None
    found = locate(target, "dataset") if target else None
    if isinstance(found, type) and not callable(getattr(found, "load", None)):
        raise ConfigError(
            f"dataset._target_={target!r} is no data set of prunekit, it has no method load; write "
            "a subclass of prunekit.data.Dataset whose load returns its images"
        )
    return build(node, "dataset")


@dataclass(frozen=True)
class Parts(Checked):
    """The base of everything that is built from the settings: a checked field for every part."""

    seed: Seed
    dataset: Annotated[Any, FromSettings("dataset", make=build_dataset)]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Build every part, so that a mistake shows before any work; raises ConfigError."""
        return cls(**{name: _make(settings, *part) for name, part in _parts(cls).items()})

    @classmethod
    def check_constant(cls, settings: Settings, swept: Collection[str]) -> None:
        """Build every part that reads none of the dotted keys in `swept`; raises ConfigError."""
        for part, hint in _parts(cls).values():
            if not any(_overlap(key, other) for key in part.keys for other in swept):
                _make(settings, part, hint)

    @classmethod
    def reads(cls, sourced: bool) -> tuple[str, ...]:
        """Return the dotted keys that decide the result, for a stage with a source or without."""
        parts = [part for part, _ in _parts(cls).values()]
        return tuple(key for part in parts if not (sourced and part.start) for key in part.keys)

    @classmethod
    def builds_network(cls) -> bool:
        """Return True if it can build its network where no earlier stage has left one."""
        return any(part.start for part, _ in _parts(cls).values())

    def data(self, runtime: Runtime) -> Data:
        """Load the data set onto the device of the runtime."""
        return self.dataset.load(runtime.device, self.seed)


@dataclass(frozen=True)
class Stage(Parts, ABC):
    """One step of the pipeline, with the parts that it was built with.

    The settings of these parts identify the stage and are kept in its directory. `compares` names
    the stages whose models it reads besides its source, where they are finished. A stage with
    `needs_source` False may not be given a source.
    """

    name: ClassVar[str]
    needs_source: ClassVar[bool] = True
    compares: ClassVar[tuple[str, ...]] = ()

    def check(self, run: Path) -> None:
        """Raise where something is missing that no earlier stage of the run can leave."""

    def check_network(self) -> None:
        """Raise where the network that the settings describe lacks what the stage acts on."""

    def with_files(self, run: Path, source: Path | None) -> Self:
        """Return the stage with the paths of the files that its parts read, for a run directory."""
        return self

    def teacher_file(self, source: Path | None) -> Path | None:
        """Return the model file of the teacher, or None where there is no distillation."""
        return None

    def show(self, stage_dir: StageDir) -> None:
        """Print the results that go beyond the one line of every stage."""

    @abstractmethod
    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Compute the result, and write its files into the directory of the stage."""


def history_writer(stage_dir: StageDir) -> Callable[[list[dict[str, Any]]], None]:
    """Return a callback for `fit` that keeps metrics.csv and the stage's seconds up to date."""

    def write(history: list[dict[str, Any]]) -> None:
        stage_dir.write_history(history)
        stage_dir.note_time()

    return write


def select_settings(settings: Settings, keys: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings at these dotted keys, nested as before; ConfigError for an absent one."""
    selected: dict[str, Any] = {}
    for key in keys:
        node = selected
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = _value_at(settings, key)
    return selected


def _parts(cls: type[Parts]) -> dict[str, tuple[FromSettings, Any]]:
    """Return for every field its keys in the settings and its annotation."""
    hints = typing.get_type_hints(cls, include_extras=True)
    parts = {}
    for field in fields(cls):
        metadata = getattr(hints[field.name], "__metadata__", ())
        part = next((item for item in metadata if isinstance(item, FromSettings)), None)
        own = part if part is not None and part.keys else FromSettings(field.name)
        parts[field.name] = (own, hints[field.name])
    return parts


def _make(settings: Settings, part: FromSettings, hint: Any) -> Any:
    return part.make(settings) if part.make else _build(settings, part.keys[0], hint)


def _overlap(key: str, other: str) -> bool:
    """Return whether one of two dotted keys is the other, or is inside of it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _value_at(settings: Settings, key: str) -> Any:
    node: Any = settings
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise ConfigError(f"the setting {key} is missing")
        node = node[part]
    return node


def _build(settings: Settings, key: str, hint: Any) -> Any:
    """Build the part at a key; an optional part whose choice has no `_target_` becomes None."""
    node = _value_at(settings, key)
    kind = getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint
    kinds = [c for c in (get_args(kind) or (kind,)) if get_origin(c) is None]
    classes = [c for c in kinds if isinstance(c, type) and c is not Any]
    if type(None) in classes and isinstance(node, Mapping) and "_target_" not in node:
        return None
    if type(None) in classes and node is None:
        return None
    return build(node, key, next((c for c in classes if c not in _PLAIN), None))


_PLAIN = (type(None), bool, int, float, str)  # types of settings that nothing is built from
