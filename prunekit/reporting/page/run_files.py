"""What lies in a run's directories beside its reports: histories, plans, scores, weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from torch import Tensor

from prunekit.console import complain
from prunekit.criteria import load_scores
from prunekit.errors import ArtifactError, DamageError
from prunekit.reporting.columns import number
from prunekit.reporting.embedding import Embedding
from prunekit.reporting.pareto import settings_of
from prunekit.runs.files import read_json
from prunekit.runs.report import Report
from prunekit.runs.rundir import STAGES
from prunekit.runs.stagedir import flat
from prunekit.torch_io import read_torch

if TYPE_CHECKING:
    from pandas import DataFrame

T = TypeVar("T")
_MEND = "it is not drawn"


@dataclass(frozen=True)
class Run:
    """One run: its row of the summary, and where its finished stages lie, in their order.

    Whatever was not made, or cannot be read any more, is None: pages show what there is.
    """

    name: str
    row: Mapping[str, Any]
    places: Mapping[str, Path]
    on_front: bool = False

    @cached_property
    def reports(self) -> dict[str, Report]:
        """Stage to report; those that vanished since are left out."""
        found = {name: _known(lambda p=place: _report(p)) for name, place in self.places.items()}
        return {name: report for name, report in found.items() if report is not None}

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What its stages were told, as dotted keys; without the names of files."""
        told: dict[str, Any] = {}
        for report in self.reports.values():
            told |= flat(report.settings)
        return {key: value for key, value in told.items() if key not in ("source", "teacher")}

    def history(self, stage: str) -> DataFrame | None:
        """The metrics.csv of a stage."""
        return self._frame(stage, "metrics.csv", ("epoch",))

    @property
    def layers(self) -> DataFrame | None:
        """The layers.csv of measure."""
        return self._frame("measure", "layers.csv", ("network", "layer", "macs", "cpu_ms"))

    @property
    def comparison(self) -> DataFrame | None:
        """The comparison.csv of measure."""
        return self._frame("measure", "comparison.csv", ("network",))

    @cached_property
    def plan(self) -> dict[str, dict[str, Any]] | None:
        """Group to what prune kept of it: kept, of, indices."""
        file = self._file("prune", "plan.json")
        found = _known(lambda: read_json(file)["groups"]) if file else None
        known = isinstance(found, dict) and all(
            {"kept", "of", "indices"} <= {*g} for g in found.values()
        )
        return found if known else None

    @property
    def scores(self) -> dict[str, np.ndarray] | None:
        """Group to one norm a unit, as sparsify left them."""
        file = self._file("sparsify", "scores.pt")
        found = _known(lambda: load_scores(file)) if file else None
        return {name: values.numpy() for name, values in found.items()} if found else None

    @property
    def kept(self) -> dict[str, np.ndarray]:
        """Group to which of its units prune kept."""
        masks = {}
        for name, group in (self.plan or {}).items():
            masks[name] = np.zeros(group["of"], dtype=bool)
            masks[name][group["indices"]] = True
        return masks

    @property
    def filters(self) -> tuple[Tensor, Tensor] | None:
        """Weights of the first convolution, dense and pruned."""
        pair = [self._first_filters(("pretrain",)), self._first_filters(("prune", "sparsify"))]
        return (pair[0], pair[1]) if pair[0] is not None and pair[1] is not None else None

    @property
    def embedding(self) -> Embedding | None:
        """Where t-SNE put test images."""
        file = self._file("features", "features.csv")
        return _known(lambda: Embedding.read(file)) if file else None

    def _first_filters(self, stages: tuple[str, ...]) -> Tensor | None:
        file = next((f for stage in stages if (f := self._file(stage, "model.pt"))), None)
        weights = _known(lambda: read_torch(file, mend=_MEND)["weights"]) if file else None
        if not isinstance(weights, dict):
            return None
        tensors = (value for value in weights.values() if isinstance(value, Tensor))
        return next((value.float() for value in tensors if value.dim() == 4), None)

    def _frame(self, stage: str, name: str, columns: Sequence[str]) -> DataFrame | None:
        """A csv file that has rows and these columns."""
        import pandas as pd

        file = self._file(stage, name)
        found = _known(lambda: pd.read_csv(file)) if file else None
        whole = found is not None and len(found) and {*columns} <= {*found}
        return found if whole else None

    def _file(self, stage: str, name: str) -> Path | None:
        place = self.places.get(stage)
        return place / name if place and (place / name).is_file() else None


def ranked(part: DataFrame, stages: DataFrame) -> list[Run]:
    """The runs of one test set that finished a stage, the most accurate first."""
    done = stages[stages["status"] == "finished"]
    places: dict[str, dict[str, Path]] = {}
    for run, stage, path in zip(done["run"], done["stage"], done["path"], strict=True):
        places.setdefault(str(run), {})[str(stage)] = Path(path)
    best = _front(part)
    runs = [
        Run(str(row["run"]), row, _ordered(places[str(row["run"])]), row.get("setting") in best)
        for row in part.to_dict("records")
        if str(row["run"]) in places
    ]
    return sorted(runs, key=lambda run: -(number(run.row.get("top1")) or 0.0))


def _front(part: DataFrame) -> set[Any]:
    """Settings that no other beats in accuracy and multiply-adds."""
    if not {"setting", "top1", "macs"} <= {*part}:
        return set()
    points = settings_of(part, "macs")
    return set(points[points["on_front"]]["setting"])


def _ordered(places: Mapping[str, Path]) -> dict[str, Path]:
    return {name: places[name] for name in STAGES if name in places}


def _report(place: Path) -> Report:
    return Report.from_dict(read_json(place / "report.json"))


def _known(read: Callable[[], T]) -> T | None:
    """What is read, or None where it cannot be; damage is named."""
    try:
        return read()
    except DamageError as error:
        complain(str(error))
        return None
    except (ArtifactError, OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
