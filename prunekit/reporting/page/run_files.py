"""Files of a run that the page shows: reports, histories, plans, scores, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor

from prunekit.console import complain
from prunekit.criteria import load_scores
from prunekit.errors import ArtifactError, DamageError
from prunekit.reporting.embedding import Embedding
from prunekit.reporting.formats import to_number
from prunekit.reporting.pareto import setting_means
from prunekit.reporting.tables import to_dicts
from prunekit.runs.files import read_json
from prunekit.runs.report import Report, flatten
from prunekit.runs.rundir import STAGES
from prunekit.text import unguarded
from prunekit.torch_io import read_torch

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")
_REMEDY = "it is not drawn"


@dataclass(frozen=True)
class Run:
    """One run: its line of the summary, and its finished stages in order, with their directories.

    Files that do not exist or cannot be read are None, so that the page shows the others.
    """

    name: str
    record: Mapping[str, Any]
    stages: Mapping[str, Path]
    on_front: bool = False

    @cached_property
    def reports(self) -> dict[str, Report]:
        """The reports by stage, without those that have disappeared meanwhile."""
        files = {name: stage / "report.json" for name, stage in self.stages.items()}
        reports = {name: _read_or_none(partial(_report, file)) for name, file in files.items()}
        return {name: report for name, report in reports.items() if report is not None}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings of all stages with dotted keys, without names of files."""
        settings: dict[str, Any] = {}
        for report in self.reports.values():
            settings |= flatten(report.settings)
        return {key: value for key, value in settings.items() if key not in ("source", "teacher")}

    @property
    def command(self) -> str | None:
        """The command that repeats the run, None in reports of earlier versions."""
        command = self.record.get("command")
        return command if isinstance(command, str) else None

    def history(self, stage: str) -> DataFrame | None:
        """Return the metrics.csv of a stage."""
        return self._read_csv(stage, "metrics.csv", ("epoch",))

    @property
    def layers(self) -> DataFrame | None:
        """The layers.csv of measure."""
        frame = self._read_csv("measure", "layers.csv", ("network", "layer", "macs", "cpu_ms"))
        return (
            None if frame is None else frame.assign(layer=frame["layer"].astype(str).map(unguarded))
        )

    @property
    def refitted(self) -> DataFrame | None:
        """The refit.csv of prune: the errors of refitted layers before and after."""
        frame = self._read_csv("prune", "refit.csv", ("layer", "before", "after"))
        return (
            None if frame is None else frame.assign(layer=frame["layer"].astype(str).map(unguarded))
        )

    @property
    def comparison(self) -> DataFrame | None:
        """The comparison.csv of measure."""
        return self._read_csv("measure", "comparison.csv", ("network",))

    @cached_property
    def plan(self) -> dict[str, dict[str, Any]] | None:
        """The groups of the plan: how many units are `kept`, `of` how many, and their `indices`."""
        file = self._file("prune", "plan.json")
        groups = _read_or_none(lambda: read_json(file)["groups"]) if file else None
        valid = isinstance(groups, dict) and all(
            {"kept", "of", "indices"} <= {*group} for group in groups.values()
        )
        return groups if valid else None

    @property
    def scores(self) -> dict[str, np.ndarray] | None:
        """The scores that sparsify wrote: one norm per unit, by group."""
        file = self._file("sparsify", "scores.pt")
        scores = _read_or_none(lambda: load_scores(file)) if file else None
        return {name: values.numpy() for name, values in scores.items()} if scores else None

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """Boolean masks of the units that prune kept, by group."""
        masks = {}
        for name, group in (self.plan or {}).items():
            masks[name] = np.zeros(group["of"], dtype=bool)
            masks[name][group["indices"]] = True
        return masks

    @property
    def filters(self) -> tuple[Tensor, Tensor] | None:
        """The weights of the first convolution, dense and pruned."""
        pair = [self._first_filters(("pretrain",)), self._first_filters(("prune", "sparsify"))]
        return (pair[0], pair[1]) if pair[0] is not None and pair[1] is not None else None

    @property
    def embedding(self) -> Embedding | None:
        """The t-SNE embedding of test images."""
        file = self._file("features", "features.csv")
        return _read_or_none(lambda: Embedding.read(file)) if file else None

    def _first_filters(self, stages: tuple[str, ...]) -> Tensor | None:
        file = next((f for stage in stages if (f := self._file(stage, "model.pt"))), None)
        weights = _read_or_none(lambda: read_torch(file, mend=_REMEDY)["weights"]) if file else None
        if not isinstance(weights, dict):
            return None
        tensors = (value for value in weights.values() if isinstance(value, Tensor))
        return next((value.float() for value in tensors if value.dim() == 4), None)

    def _read_csv(self, stage: str, name: str, columns: Sequence[str]) -> DataFrame | None:
        """Return a csv file that has lines and all these columns."""
        import pandas as pd

        file = self._file(stage, name)
        frame = _read_or_none(lambda: pd.read_csv(file)) if file else None
        valid = frame is not None and len(frame) and {*columns} <= {*frame}
        return frame if valid else None

    def _file(self, stage: str, name: str) -> Path | None:
        folder = self.stages.get(stage)
        return folder / name if folder and (folder / name).is_file() else None


def ranked(part: DataFrame, stages: DataFrame) -> list[Run]:
    """Return the runs of one test set that finished a stage, the most accurate first."""
    finished = stages[stages["status"] == "finished"]
    folders: dict[str, dict[str, Path]] = {}
    for run, stage, path in zip(finished["run"], finished["stage"], finished["path"], strict=True):
        folders.setdefault(str(run), {})[str(stage)] = Path(path)
    best = _settings_on_front(part)
    runs = [
        Run(name, record, _in_order(folders[name]), record.get("setting") in best)
        for record in to_dicts(part)
        if (name := str(record["run"])) in folders
    ]
    return sorted(runs, key=lambda run: -(to_number(run.record.get("top1")) or 0.0))


def _settings_on_front(part: DataFrame) -> set[Any]:
    """Return the settings on the front of accuracy and multiply-adds."""
    if not {"setting", "top1", "macs"} <= {*part}:
        return set()
    points = setting_means(part, "macs")
    return set(points[points["on_front"]]["setting"])


def _in_order(folders: Mapping[str, Path]) -> dict[str, Path]:
    return {name: folders[name] for name in STAGES if name in folders}


def _report(file: Path) -> Report:
    return Report.from_dict(read_json(file))


def _read_or_none(read: Callable[[], T]) -> T | None:
    """Return the result of `read`, None if it fails; warns about damaged files."""
    try:
        return read()
    except DamageError as error:
        complain(str(error))
        return None
    except (ArtifactError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
