"""Writers of a stage's metrics for TensorBoard and MLflow, besides its csv and json files."""

from __future__ import annotations

import importlib
import math
import os
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, ClassVar

from prunekit.errors import ConfigError
from prunekit.runs.report import Report, flatten
from prunekit.schema import Checked, Text

Records = Sequence[Mapping[str, Any]]
Point = tuple[str, float, int]  # name, value, step


class Tracker(Checked, ABC):
    """Writes the content of metrics.csv and report.json to a store of another tool.

    The step of a record is its epoch, from 1. The report's metrics are `report/...` at the last
    step. All records are passed after every epoch, so that a resumed stage can add missing ones.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    def require(self) -> None:
        """Raise ConfigError if the package is not installed."""
        if find_spec(self.package) is None:
            raise ConfigError(
                f"tracking={self.extra} needs {self.package}; pip install 'prunekit[{self.extra}]'"
            )

    @abstractmethod
    def epochs(self, stage: Path, records: Records) -> None:
        """Write the lines of metrics.csv of the stage in this directory."""

    @abstractmethod
    def finished(self, stage: Path, report: Report) -> None:
        """Write the report of the stage, after which nothing more is written for it."""


class TensorBoard(Tracker):
    """Writes event files beside metrics.csv, for `tensorboard --logdir outputs`.

    They hold single precision. A resumed stage replaces its file, starting at the first epoch.
    """

    package, extra = "tensorboard", "tensorboard"

    def __init__(self) -> None:
        self._writers: dict[Path, Any] = {}
        self._written: dict[Path, int] = {}

    def epochs(self, stage: Path, records: Records) -> None:
        """Add the records that the file lacks."""
        done = self._written.get(stage, 0)
        self._add(stage, points(records, done))
        self._written[stage] = len(records)

    def finished(self, stage: Path, report: Report) -> None:
        """Add the report and close the file."""
        self._add(stage, report_points(report, self._written.pop(stage, 0)))
        self._writers.pop(stage).close()

    def _add(self, stage: Path, values: Iterable[Point]) -> None:
        writer = self._writers.get(stage) or self._open(stage)
        for name, value, step in values:
            writer.add_scalar(name, value, step)
        writer.flush()

    def _open(self, stage: Path) -> Any:
        """Open a new file and delete that of an interrupted run, whose records are passed again."""
        for file in stage.glob("events.out.tfevents.*"):
            file.unlink()
        module = importlib.import_module("torch.utils.tensorboard")
        self._writers[stage] = module.SummaryWriter(str(stage))
        return self._writers[stage]


@dataclass(frozen=True)
class MLflow(Tracker):
    """Writes every stage as a run of MLflow, called `<run>/<stage>`.

    A resumed stage continues its run, whose id is kept in the stage's directory.
    """

    uri: Annotated[Text, "folder, or an address such as sqlite:///mlflow.db"] = "outputs/mlruns"
    experiment: Annotated[Text, "what MLflow files the runs under"] = "prunekit"

    package, extra = "mlflow", "mlflow"

    def epochs(self, stage: Path, records: Records) -> None:
        """Add the records after the last one that the store holds."""
        client, run = self._run(stage)
        history = client.get_metric_history(run, _clean(next(iter(records[0])))) if records else ()
        last = max((metric.step for metric in history), default=0)
        self._add(client, run, points(records, last))

    def finished(self, stage: Path, report: Report) -> None:
        """Add the settings and the report, and end the run."""
        client, run = self._run(stage)
        data = client.get_run(run).data
        last = int(data.metrics.get("epoch", 0))
        missing = [p for p in report_points(report, last) if p[0] not in data.metrics]
        self._add(client, run, missing)
        entities = importlib.import_module("mlflow.entities")
        settings = [
            entities.Param(_clean(key), str(value)[:500])
            for key, value in flatten(report.settings).items()
            if _clean(key) not in data.params
        ]
        for batch in _batches(settings):
            client.log_batch(run, params=batch)
        client.set_terminated(run)

    def _add(self, client: Any, run: str, values: Iterable[Point]) -> None:
        metric = importlib.import_module("mlflow.entities").Metric
        now = int(time.time() * 1000)
        for batch in _batches(metric(name, value, now, step) for name, value, step in values):
            client.log_batch(run, metrics=batch)

    def _run(self, stage: Path) -> tuple[Any, str]:
        """Return the client and the id of the stage's run, which is created if there is none."""
        client = self._client()
        id_file = stage / ".mlflow"
        if id_file.is_file():
            return client, id_file.read_text(encoding="utf-8").strip()
        stored = client.get_experiment_by_name(self.experiment)
        experiment = stored.experiment_id if stored else client.create_experiment(self.experiment)
        name = f"{stage.parent.resolve().name}/{stage.name}"
        run = client.create_run(experiment, run_name=name).info.run_id
        id_file.write_text(f"{run}\n", encoding="utf-8")
        return client, run

    def _client(self) -> Any:
        if "://" in self.uri:
            return importlib.import_module("mlflow").MlflowClient(self.uri)
        os.environ.setdefault(
            "MLFLOW_ALLOW_FILE_STORE", "true"
        )  # version 3 refuses folders otherwise
        folder = Path(self.uri).resolve().as_uri()
        return importlib.import_module("mlflow").MlflowClient(folder)


def points(records: Records, after: int = 0) -> Iterator[Point]:
    """Yield the numbers of all records whose step is above `after`."""
    for step, record in enumerate(records, start=1):
        if step > after:
            yield from _points(record, step)


def report_points(report: Report, step: int) -> list[Point]:
    """Return the metrics and the seconds of a report, named `report/...`."""
    values = report.metrics | {"seconds": report.seconds}
    return [*_points({f"report/{key}": value for key, value in values.items()}, step)]


def _points(values: Mapping[str, Any], step: int) -> Iterator[Point]:
    for name, value in values.items():
        if isinstance(value, int | float) and math.isfinite(value):
            yield _clean(name), value, step


def _clean(name: str) -> str:
    """Replace characters that one of the two stores refuses."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _batches(items: Iterable[Any], size: int = 100) -> Iterator[list[Any]]:
    """Yield lists of at most `size` items, the limit of one call to MLflow."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
