"""Optional writers of a stage's numbers for TensorBoard and MLflow; the csv and json stay."""

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
from prunekit.runs.report import Report
from prunekit.runs.stagedir import flat
from prunekit.schema import Checked, Text

Rows = Sequence[Mapping[str, Any]]
Point = tuple[str, float, int]  # what it is called, its value, its step


class Tracker(Checked, ABC):
    """Writes what metrics.csv and report.json hold to a store of another tool.

    A row's step is its number, from 1: the epoch. What a report says is `report/...` at the last
    step. Rows come whole after every epoch, so a resumed stage can write what is missing.
    """

    package: ClassVar[str]
    extra: ClassVar[str]

    def require(self) -> None:
        """Raise ConfigError where the package is not installed."""
        if find_spec(self.package) is None:
            raise ConfigError(
                f"tracking={self.extra} needs {self.package}; pip install 'prunekit[{self.extra}]'"
            )

    @abstractmethod
    def epochs(self, stage: Path, rows: Rows) -> None:
        """Take the rows of metrics.csv of the stage in this directory."""

    @abstractmethod
    def finished(self, stage: Path, report: Report) -> None:
        """Take the report of the stage, the last that comes of it."""


class TensorBoard(Tracker):
    """Event files beside metrics.csv, for `tensorboard --logdir outputs`.

    Numbers are single precision there. A resumed stage writes its file anew, from the first epoch.
    """

    package, extra = "tensorboard", "tensorboard"

    def __init__(self) -> None:
        self._writers: dict[Path, Any] = {}
        self._written: dict[Path, int] = {}

    def epochs(self, stage: Path, rows: Rows) -> None:
        """Add what the file lacks."""
        done = self._written.get(stage, 0)
        self._add(stage, points(rows, done))
        self._written[stage] = len(rows)

    def finished(self, stage: Path, report: Report) -> None:
        """Add the report and close the file."""
        self._add(stage, of_report(report, self._written.pop(stage, 0)))
        self._writers.pop(stage).close()

    def _add(self, stage: Path, found: Iterable[Point]) -> None:
        writer = self._writers.get(stage) or self._open(stage)
        for name, value, step in found:
            writer.add_scalar(name, value, step)
        writer.flush()

    def _open(self, stage: Path) -> Any:
        """A new file; that of an interrupted attempt goes, since its rows come again."""
        for file in stage.glob("events.out.tfevents.*"):
            file.unlink()
        module = importlib.import_module("torch.utils.tensorboard")
        self._writers[stage] = module.SummaryWriter(str(stage))
        return self._writers[stage]


@dataclass(frozen=True)
class MLflow(Tracker):
    """A run for every stage in a local store of MLflow, called `<run>/<stage>`.

    `uri` is a folder, which newer versions of MLflow only take when they are told to, as it is done
    here, or an address such as `sqlite:///mlflow.db`. A resumed stage continues its run, whose id
    lies in the stage's directory.
    """

    uri: Annotated[Text, "folder, or an address such as sqlite:///mlflow.db"] = "outputs/mlruns"
    experiment: Annotated[Text, "what MLflow files the runs under"] = "prunekit"

    package, extra = "mlflow", "mlflow"

    def epochs(self, stage: Path, rows: Rows) -> None:
        """Add the rows after the last one that the store has."""
        client, run = self._run(stage)
        known = client.get_metric_history(run, _clean(next(iter(rows[0])))) if rows else ()
        self._add(client, run, points(rows, max((metric.step for metric in known), default=0)))

    def finished(self, stage: Path, report: Report) -> None:
        """Add the settings and the report, and end the run."""
        client, run = self._run(stage)
        data = client.get_run(run).data
        last = int(data.metrics.get("epoch", 0))
        found = [p for p in of_report(report, last) if p[0] not in data.metrics]
        self._add(client, run, found)
        entities = importlib.import_module("mlflow.entities")
        settings = [
            entities.Param(_clean(key), str(value)[:500])
            for key, value in flat(report.settings).items()
            if _clean(key) not in data.params
        ]
        for part in _parts(settings):
            client.log_batch(run, params=part)
        client.set_terminated(run)

    def _add(self, client: Any, run: str, found: Iterable[Point]) -> None:
        metric = importlib.import_module("mlflow.entities").Metric
        now = int(time.time() * 1000)
        for part in _parts(metric(name, value, now, step) for name, value, step in found):
            client.log_batch(run, metrics=part)

    def _run(self, stage: Path) -> tuple[Any, str]:
        """The client, and the id of the stage's run, which is made where there is none."""
        client = self._client()
        note = stage / ".mlflow"  # hidden: no work of the stage
        if note.is_file():
            return client, note.read_text(encoding="utf-8").strip()
        known = client.get_experiment_by_name(self.experiment)
        experiment = known.experiment_id if known else client.create_experiment(self.experiment)
        name = f"{stage.parent.resolve().name}/{stage.name}"
        run = client.create_run(experiment, run_name=name).info.run_id
        note.write_text(f"{run}\n", encoding="utf-8")
        return client, run

    def _client(self) -> Any:
        if "://" in self.uri:
            return importlib.import_module("mlflow").MlflowClient(self.uri)
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # versions 3 refuse it otherwise
        place = Path(self.uri).resolve().as_uri()
        return importlib.import_module("mlflow").MlflowClient(place)


def points(rows: Rows, after: int = 0) -> Iterator[Point]:
    """The numbers of the rows whose step is above `after`."""
    for step, row in enumerate(rows, start=1):
        if step > after:
            yield from ((_clean(k), v, step) for k, v in row.items() if _plain(v))


def of_report(report: Report, step: int) -> list[Point]:
    """The numbers of a report."""
    found = report.metrics | {"seconds": report.seconds}
    return [(_clean(f"report/{key}"), v, step) for key, v in found.items() if _plain(v)]


def _plain(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _clean(name: str) -> str:
    """A name that both stores take."""
    return re.sub(r"[^\w\-./ ]", "_", name)


def _parts(items: Iterable[Any], size: int = 100) -> Iterator[list[Any]]:
    """Lists of at most so many, which is what MLflow takes at once."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
