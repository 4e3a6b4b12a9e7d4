"""What a stage is: the settings that it reads, and by content whatever else decides its result."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from prunekit.criteria import Criterion
from prunekit.data import Dataset
from prunekit.runs.identity import (
    UNKNOWN,
    content_of,
    is_foreign,
    network_of,
    targets_in,
    without,
)
from prunekit.runs.rundir import identity_of
from prunekit.selection import Selection
from prunekit.stages.spec import Stage
from prunekit.stages.weights import Dense, architecture
from prunekit.torch_io import read_torch
from prunekit.training.precision import numbers

log = logging.getLogger(__name__)

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Start:
    """What a stage starts from besides its settings.

    `source` is the model file, `teacher` the one that teaches, `run` the run directory, `models`
    those of other stages that it compares, `trust` the classes of the user's that model files may
    name, `kind` the type of the device it works on.
    """

    source: Path | None
    teacher: Path | None
    run: Path
    models: Mapping[str, Path] = field(default_factory=dict)
    trust: Collection[str] = ()
    kind: str = "cpu"


@dataclass
class _Identity:
    """Entries that are found one by one, and dotted settings that only say where things lie."""

    chosen: Settings
    start: Start
    entries: dict[str, Any] = field(default_factory=dict)
    places: set[str] = field(
        default_factory=lambda: {"dataset.download", "source", "distill.teacher"}
    )

    def files(self) -> None:
        """The model files that it starts from, learns from and compares."""
        self.entries["source"] = identity_of(self.start.source)
        if self.start.teacher is not None:
            self.entries["teacher"] = identity_of(self.start.teacher)
        if self.start.models:
            models = self.start.models.items()
            self.entries["models"] = {name: content_of(file) for name, file in models}

    def images(self, dataset: Any) -> None:
        """The images; where they lie counts only as long as nobody knows which they are."""
        found = dataset.identity() if isinstance(dataset, Dataset) else None
        if found is None:
            self.entries["images"] = UNKNOWN
            _tell(str(self.chosen["dataset"].get("_target_")), self.start.run)
            return
        if found:
            self.entries["images"] = found
        if "content" in found:
            self.places.add("dataset.root")

    def weights(self, given: str | None) -> None:
        """The file of weights by what it holds; weights with a name are settings like others."""
        if given is not None and Path(given).is_file():
            self.places |= {"weights", "model.weights"}
            self.entries["weights"] = content_of(Path(given))

    def part(self, key: str, made: Criterion | Selection) -> None:
        """The files that a part of the settings reads; a `path` that was not given stays null."""
        for name, file in made.files().items():
            # curves are called by their stage, too, as sources are
            self.entries[name] = identity_of(file) if name == "curves" else content_of(file)
            if self.chosen[key].get("path") is not None:
                self.places.add(f"{key}.path")

    def network(self, shape: tuple[int, ...]) -> None:
        """What the settings leave open about the network that is built or read."""
        found = network_of(self._arch(), shape)
        if found:
            self.entries["network"] = found

    def numbers(self, rounds: int) -> None:
        """The formats of numbers that it trains in, and how images lie in memory."""
        phases = {k: v for k, v in self.chosen.items() if k != "schedule"}
        phases |= {
            key: node
            for key, node in self.chosen.get("schedule", {}).items()
            if key != "between" or rounds > 1
        }
        found = {numbers(precision, self.start.kind) for precision in _precisions(phases)}
        if found:
            self.entries["numbers"] = "; ".join(sorted(found))

    def _arch(self) -> Settings:
        """How the network is built: as settings say, or as the model file does, where it is sure.

        A file is opened only where it may name a class of the user's, and one that is trusted.
        """
        if self.start.source is None:
            return architecture(self.chosen) if "model" in self.chosen else {}
        trusted = [name for name in self.start.trust if is_foreign(name)]
        content = read_torch(self.start.source) if trusted else None
        arch = content.get("arch") if isinstance(content, dict) else None
        foreign = [target for target in targets_in(arch) if is_foreign(target)]
        known = all(f"{target}.".startswith(tuple(f"{n}." for n in trusted)) for target in foreign)
        return arch if isinstance(arch, Mapping) and foreign and known else {}


def identity(stage: Stage, chosen: Settings, start: Start) -> dict[str, Any]:
    """What a stage is, as `settings.json` says it; `chosen` is the description of its parts.

    Neither network nor images are loaded. DataError, ArtifactError or ConfigError where what
    decides is missing.
    """
    found = _Identity(chosen, start)
    rounds = 1
    found.files()
    for name, part in vars(stage).items():
        if isinstance(part, Criterion | Selection):
            found.part(name, part)
        if isinstance(part, Selection):
            rounds = part.rounds
        if isinstance(part, Dense) and start.source is None:
            found.weights(part.weights)
    found.network(tuple(stage.dataset.shape))
    found.images(stage.dataset)
    found.numbers(rounds)
    return {**without(chosen, frozenset(found.places)), **found.entries}


def _precisions(node: Any) -> Iterator[str]:
    """The precision of every schedule, which is where an optimizer is, in nested settings."""
    if isinstance(node, Mapping):
        if "optimizer" in node:
            yield str(node.get("precision", "float32"))
        for child in node.values():
            yield from _precisions(child)


@cache
def _tell(name: str, run: Path) -> None:
    """Say it once a run."""
    log.warning(
        f"the images of {name} are not known: it names no files and has no version, so a run goes "
        "on, or counts as finished, with whatever images it loads"
    )
