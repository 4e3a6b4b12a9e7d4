"""The identity of a stage: the settings that it reads, and by content the files it depends on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from prunekit.build import Settings
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
from prunekit.stages.network import Dense, architecture
from prunekit.stages.stage import Stage
from prunekit.torch_io import read_torch
from prunekit.training.schedule import number_format

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageInputs:
    """The files and the device that a stage works with.

    `source` and `teacher` are model files, `run` is the run directory, `models` holds the models
    of the stages that are compared, by stage. `trust` lists the user's classes that model files may
    name, `kind` is the type of the device.
    """

    source: Path | None
    teacher: Path | None
    run: Path
    models: Mapping[str, Path] = field(default_factory=dict)
    trust: Collection[str] = ()
    kind: str = "cpu"


def identify(stage: Stage, settings: Settings, inputs: StageInputs) -> dict[str, Any]:
    """Return the identity of a stage as `settings.json` holds it, from the settings that it reads.

    Neither network nor images are loaded. DataError, ArtifactError or ConfigError where a file that
    the identity depends on is missing.
    """
    identity = _Identity(settings, inputs)
    rounds = 1
    identity.add_models()
    for name, part in vars(stage).items():
        if isinstance(part, Criterion | Selection):
            identity.add_part(name, part)
        if isinstance(part, Selection):
            rounds = part.rounds
        if isinstance(part, Dense) and inputs.source is None:
            identity.add_weights(part.weights)
    identity.add_network(tuple(stage.dataset.shape))
    identity.add_images(stage.dataset)
    identity.add_numbers(rounds)
    return {**without(settings, frozenset(identity.uncounted)), **identity.entries}


@dataclass
class _Identity:
    """Collects the entries of an identity, and the dotted settings that do not count."""

    settings: Settings
    inputs: StageInputs
    entries: dict[str, Any] = field(default_factory=dict)
    uncounted: set[str] = field(
        default_factory=lambda: {"dataset.download", "source", "distill.teacher"}
    )

    def add_models(self) -> None:
        """Add the content of the source, of the teacher and of the compared models."""
        self.entries["source"] = identity_of(self.inputs.source)
        if self.inputs.teacher is not None:
            self.entries["teacher"] = identity_of(self.inputs.teacher)
        if self.inputs.models:
            models = self.inputs.models.items()
            self.entries["models"] = {name: content_of(file) for name, file in models}

    def add_images(self, dataset: Any) -> None:
        """Add the content of the images; their folder counts only where that is not known.

        Settings that were added later count only where they differ from what was done before.
        """
        for name, value in getattr(dataset, "added", {}).items():
            if getattr(dataset, name) == value:
                self.uncounted.add(f"dataset.{name}")
        images = dataset.identity() if isinstance(dataset, Dataset) else None
        if images is None:
            self.entries["images"] = UNKNOWN
            _warn_unknown_images(str(self.settings["dataset"].get("_target_")), self.inputs.run)
            return
        if images:
            self.entries["images"] = images
        if "content" in images:
            self.uncounted.add("dataset.root")

    def add_weights(self, weights: str | None) -> None:
        """Add the content of a file of weights; names of pretrained weights stay settings."""
        if weights is not None and Path(weights).is_file():
            self.uncounted |= {"weights", "model.weights"}
            self.entries["weights"] = content_of(Path(weights))

    def add_part(self, key: str, part: Criterion | Selection) -> None:
        """Add the files that a criterion or a selection reads; a null `path` stays a setting."""
        for name, file in part.files().items():
            # the name of the stage is part of the identity of curves, as it is of sources
            self.entries[name] = identity_of(file) if name == "curves" else content_of(file)
            if self.settings[key].get("path") is not None:
                self.uncounted.add(f"{key}.path")

    def add_network(self, shape: tuple[int, ...]) -> None:
        """Add what the settings do not say about the network that is built or read."""
        network = network_of(self._arch(), shape)
        if network:
            self.entries["network"] = network

    def add_numbers(self, rounds: int) -> None:
        """Add the number formats that training uses, and the memory layout of images."""
        trained = {key: node for key, node in self.settings.items() if key != "schedule"}
        trained |= {
            key: node
            for key, node in self.settings.get("schedule", {}).items()
            if key != "between" or rounds > 1
        }
        formats = {number_format(precision, self.inputs.kind) for precision in _precisions(trained)}
        if formats:
            self.entries["numbers"] = "; ".join(sorted(formats))

    def _arch(self) -> Settings:
        """Return how the network is built, from the settings or from the source; {} if unsure.

        The source is opened only where the user trusts a class of their own that it may name.
        """
        if self.inputs.source is None:
            return architecture(self.settings) if "model" in self.settings else {}
        trusted = [name for name in self.inputs.trust if is_foreign(name)]
        content = read_torch(self.inputs.source) if trusted else None
        arch = content.get("arch") if isinstance(content, dict) else None
        foreign = [target for target in targets_in(arch) if is_foreign(target)]
        prefixes = tuple(f"{name}." for name in trusted)
        safe = all(f"{target}.".startswith(prefixes) for target in foreign)
        return arch if isinstance(arch, Mapping) and foreign and safe else {}


def _precisions(node: Any) -> Iterator[str]:
    """Yield the precision of every schedule in nested settings; a schedule has an optimizer."""
    if isinstance(node, Mapping):
        if "optimizer" in node:
            yield str(node.get("precision", "float32"))
        for child in node.values():
            yield from _precisions(child)


@cache
def _warn_unknown_images(name: str, run: Path) -> None:
    """Log the warning once for every run."""
    log.warning(
        f"the images of {name} are not known: it names no files and has no version, so a run goes "
        "on, or counts as finished, with whatever images it loads"
    )
