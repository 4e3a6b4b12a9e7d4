"""TensorBoard and MLflow beside the csv: the same numbers, once, also after an interruption."""

from __future__ import annotations

import csv
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from prunekit.runs.report import Report
from prunekit.runs.tracking import MLflow, of_report, points
from prunekit.training import loop

TRAIN = ("regularizer=none", "pipeline=[pretrain,measure]", "schedule.pretrain.epochs=3")


def rows(stage):
    """(name, step) -> value of a metrics.csv."""
    with open(stage / "metrics.csv", newline="") as file:
        lines = [*csv.DictReader(file)]
    return {(k, at): float(v) for at, row in enumerate(lines, 1) for k, v in row.items()}


def reported(stage):
    """What a report says in finite numbers."""
    found = json.loads((stage / "report.json").read_text())
    metrics = found["metrics"] | {"seconds": found["seconds"]}
    return {f"report/{k}": v for k, v in metrics.items() if isinstance(v, int | float)}


def interrupted(cli, monkeypatch, *arguments):
    """Stop after the first epoch's rows and the second's checkpoint, then go on."""
    save, calls = loop._Trainer.save, []

    def cut(self, checkpoint, history, done):
        save(self, checkpoint, history, done)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop._Trainer, "save", cut)
        assert cli("run", *arguments).code == 130
    found = cli("run", *arguments)
    assert found.code == 0, found.err


def test_tensorboard_has_the_numbers_of_csv_and_report_once(cli, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    pytest.importorskip("torch.utils.tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    interrupted(cli, monkeypatch, *TRAIN, "name=t", "tracking=tensorboard")
    for name in ("pretrain", "measure"):
        stage = tmp_path / "outputs/t" / name
        assert len([*stage.glob("events.out.tfevents.*")]) == 1
        store = EventAccumulator(str(stage), {"scalars": 0}).Reload()
        found = {
            (tag, event.step): event.value
            for tag in store.Tags()["scalars"]
            for event in store.Scalars(tag)
        }
        assert len(found) == sum(len(store.Scalars(tag)) for tag in store.Tags()["scalars"])
        known = rows(stage) if name == "pretrain" else {}
        last = 3 if name == "pretrain" else 0
        known |= {(key, last): value for key, value in reported(stage).items()}
        assert found == {key: float(np.float32(value)) for key, value in known.items()}


def test_mlflow_has_the_numbers_of_csv_and_report_once(cli, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    interrupted(cli, monkeypatch, *TRAIN, "name=m", "tracking=mlflow")
    client = mlflow.MlflowClient((tmp_path / "outputs/mlruns").as_uri())
    (experiment,) = [e for e in client.search_experiments() if e.name == "prunekit"]
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"m/pretrain", "m/measure"}
    for name, run in runs.items():
        stage = tmp_path / "outputs" / name
        histories = [client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
        found = {(m.key, m.step): m.value for history in histories for m in history}
        assert len(found) == sum(map(len, histories)) and run.info.status == "FINISHED"
        last = 3 if name == "m/pretrain" else 0
        known = rows(stage) if last else {}
        assert found == known | {(key, last): value for key, value in reported(stage).items()}


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_without_the_package_one_line_says_what_to_install(cli, tmp_path, monkeypatch, name):
    monkeypatch.setattr("prunekit.runs.tracking.find_spec", lambda package: None)
    found = cli("run", f"tracking={name}", "name=x")
    assert found.code == 1 and not (tmp_path / "outputs/x").exists()
    asked = f"tracking={name} needs {name}; pip install 'prunekit[{name}]'"
    assert found.err == f"prunekit: {asked}\n"
    assert cli("run", "--cfg", "job", f"tracking={name}").code == 0


class Store:
    """An MLflow client that keeps what it is given, on any machine."""

    def __init__(self):
        self.runs, self.experiments, self.ended = {}, {}, []

    def get_experiment_by_name(self, name):
        known = self.experiments.get(name)
        return known and SimpleNamespace(experiment_id=known)

    def create_experiment(self, name):
        return self.experiments.setdefault(name, str(len(self.experiments)))

    def create_run(self, experiment, run_name):
        run = f"run{len(self.runs)}"
        self.runs[run] = SimpleNamespace(name=run_name, metrics=[], params=[])
        return SimpleNamespace(info=SimpleNamespace(run_id=run))

    def get_metric_history(self, run, key):
        return [metric for metric in self.runs[run].metrics if metric.key == key]

    def get_run(self, run):
        kept = self.runs[run]
        metrics, params = (
            {one.key: one.value for one in kind}
            for kind in vars(kept).values()
            if isinstance(kind, list)
        )
        return SimpleNamespace(data=SimpleNamespace(metrics=metrics, params=params))

    def log_batch(self, run, metrics=(), params=()):
        assert len(metrics) <= 1000 and len(params) <= 100
        self.runs[run].metrics += metrics
        self.runs[run].params += params

    def set_terminated(self, run):
        self.ended.append(run)


def test_a_resumed_stage_goes_on_in_its_run(tmp_path, monkeypatch):
    """What MLflow is asked for, where it is not installed too; another process, another tracker."""
    store = Store()
    kinds = SimpleNamespace(
        Metric=lambda key, value, now, step: SimpleNamespace(key=key, value=value, step=step),
        Param=lambda key, value: SimpleNamespace(key=key, value=value),
    )
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda uri: store))
    monkeypatch.setitem(sys.modules, "mlflow.entities", kinds)
    stage = tmp_path / "a/pretrain"
    stage.mkdir(parents=True)
    history = [{"epoch": n, "loss": 1 / n, "note": "x", "bad": float("nan")} for n in (1, 2, 3)]
    for length in (1, 2):
        MLflow("store").epochs(stage, history[:length])
    report = Report("pretrain", {"a": {"b c=": 1}}, None, {"top1": 9.5, "kept/a:b": None}, ())
    for _ in range(2):
        again = MLflow("store")
        again.epochs(stage, history)
        again.finished(stage, report)
    (run,) = store.runs.values()
    found = [(metric.key, metric.step, metric.value) for metric in run.metrics]
    epochs = [
        (key, n, 1 / n if key == "loss" else n) for n in (1, 2, 3) for key in ("epoch", "loss")
    ]
    assert found == [*epochs, ("report/top1", 3, 9.5), ("report/seconds", 3, 0.0)]
    assert run.name == "a/pretrain" and {p.key: p.value for p in run.params} == {"a.b c_": "1"}
    assert store.ended == ["run0", "run0"]


def test_points_are_finite_numbers_with_their_step():
    made = [{"epoch": 1, "a": 2.0}, {"epoch": 2, "a": None, "b/c:d": float("inf")}]
    assert [*points(made)] == [("epoch", 1, 1), ("a", 2.0, 1), ("epoch", 2, 2)]
    assert [*points(made, 1)] == [("epoch", 2, 2)]
    report = Report("prune", {}, None, {"x": "y", "kept/a:b": 3}, seconds=1.5)
    assert of_report(report, 4) == [("report/kept/a_b", 3, 4), ("report/seconds", 1.5, 4)]
