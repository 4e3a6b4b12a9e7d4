"""Distillation by command: who teaches by default, who else can, and what is refused."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from cli.test_errors import refused
from torch.optim import SGD

from prunekit.data import Synthetic
from prunekit.models import LeNet5, resnet20
from prunekit.runs.rundir import identity_of
from prunekit.surgery import load_model, save_model
from prunekit.training import Checkpoint, Cosine, Distillation, Schedule, fit

LENET = "prunekit.models.LeNet5"


def report(run: str, stage: str = "finetune") -> dict:
    return json.loads(Path("outputs", run, stage, "report.json").read_text())


def weights(run: str) -> dict[str, torch.Tensor]:
    file = Path("outputs", run, "finetune/model.pt")
    return torch.load(file, weights_only=True)["weights"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in {**first, **second})


def teacher(place: str = "teacher.pt", classes: int = 10, seed: int = 5) -> str:
    torch.manual_seed(seed)
    save_model(place, LeNet5(classes=classes), {"_target_": LENET, "classes": classes})
    return f"distill.teacher={place}"


@pytest.fixture
def tune(cli, finished):
    """Fine-tune what the finished run pruned, distilled, in a run of its own."""
    source = f"source={finished / 'outputs/whole/prune'}"
    return lambda *overrides: cli("finetune", source, "distill=standard", *overrides)


def test_the_dense_network_of_the_run_teaches(cli):
    line = ("run", "name=a", "distill=standard", "selection=per_layer", "criterion=l1_norm")
    found = cli(*line)
    assert found.code == 0, found.err
    top1, tuned = report("a", "pretrain")["metrics"]["top1"], report("a")
    assert tuned["metrics"]["teacher_top1"] == top1
    told = f"distilled from outputs/a/pretrain/model.pt (top-1 {top1:.2f} %)"
    assert told in tuned["notes"] and f"note: {told}" in found.out
    assert tuned["settings"]["teacher"] == identity_of(Path("outputs/a/pretrain/model.pt"))
    again = cli(*line)
    assert again.code == 0 and again.out.count("finished before") == 5
    other = cli(*line, "distill.weight=0.5")
    refused(other, "distill.weight was 0.4, now 0.5", "overwrite=true")


def test_it_is_what_the_library_does_with_the_network_behind_the_source(tune, finished):
    """Bit for bit, with the labels smoothed; the dense network is two stages back, elsewhere."""
    assert tune("name=a", "schedule.finetune.label_smoothing=0.1").code == 0
    run = finished / "outputs/whole"
    model = load_model(run / "prune/model.pt").model
    loss = Distillation(load_model(run / "pretrain/model.pt").model, 0.4, 4.0, smoothing=0.1)
    optimizer = partial(SGD, lr=0.05, momentum=0.9, weight_decay=0.0005)
    schedule = Schedule(1, 64, optimizer, Cosine(), label_smoothing=0.1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        fit(model, Synthetic(noise=1.0, train=640, test=200, val=128).load(), schedule, loss=loss)
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
    assert same(weights("a"), model.state_dict())
    place = os.path.relpath(run / "pretrain/model.pt")
    assert any(f"distilled from {place} (" in note for note in report("a")["notes"])


def test_without_it_fine_tuning_is_what_it_was(cli, tune, finished):
    expected = torch.load(finished / "outputs/whole/finetune/model.pt", weights_only=True)
    assert tune("name=a", "distill=none").code == 0
    assert same(weights("a"), expected["weights"])
    assert "teacher" not in report("a")["settings"]
    assert "teacher_top1" not in report("a")["metrics"]
    assert tune("name=b").code == 0 and not same(weights("b"), expected["weights"])


def test_any_file_stage_or_run_can_teach(tune, finished):
    run = finished / "outputs/whole"
    ends = []
    for name, place in enumerate((run, run / "finetune", run / "finetune/model.pt")):
        found = tune(f"name={name}", f"distill.teacher={place}")
        assert found.code == 0, found.err
        ends.append(weights(str(name)))
    assert same(ends[0], ends[1]) and same(ends[1], ends[2])
    assert tune("name=own", teacher()).code == 0
    assert report("own")["settings"]["teacher"] == identity_of(Path("teacher.pt"))
    assert not same(weights("own"), ends[0])


def test_a_teacher_is_known_by_its_content(tune):
    for place in ("here/dense", "there/dense"):
        Path(place).mkdir(parents=True)
    assert tune("name=a", teacher("here/dense/model.pt")).code == 0
    Path("here/dense/model.pt").rename("there/dense/model.pt")
    line = ("name=a", "distill.teacher=there/dense")
    assert "finished before" in tune(*line).out
    teacher("there/dense/model.pt", seed=6)
    refused(tune(*line), "outputs/a/finetune", "teacher was", "now", "overwrite=true")
    assert tune(*line, "overwrite=true").code == 0


def test_interrupted_it_ends_with_the_same_weights(tune, monkeypatch):
    epochs = ("schedule.finetune.epochs=3",)
    assert tune("name=whole", *epochs).code == 0
    save = Checkpoint.save

    def stop(kept: Checkpoint, state: dict) -> None:
        save(kept, state)
        if len(state["history"]) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", stop)
    assert tune("name=a", *epochs).code == 130
    monkeypatch.setattr(Checkpoint, "save", save)
    assert Path("outputs/a/finetune/last.pt").is_file()
    refused(tune("name=a", *epochs, teacher()), "teacher was pretrain/model.pt")
    assert tune("name=a", *epochs).code == 0
    assert same(weights("a"), weights("whole"))
    for key in ("top1", "loss", "teacher_top1"):
        assert report("a")["metrics"][key] == report("whole")["metrics"][key]
    rows = [Path("outputs", name, "finetune/metrics.csv").read_text() for name in ("a", "whole")]
    assert rows[0] == rows[1]


def test_zeros_are_kept(cli):
    model = LeNet5()
    model.fc1.weight.data[:, ::2] = 0
    save_model("sparse.pt", model, {"_target_": LENET})
    line = ("finetune", "source=sparse.pt", "keep_zeros=true", "distill=standard", teacher())
    found = cli(*line, "name=a")
    assert found.code == 0, found.err
    assert not weights("a")["fc1.weight"][:, ::2].any()
    assert not same(weights("a"), model.state_dict())


BAD = [
    ("distill.weight=2", "distill", "weight=2", "at most 1"),
    ("distill.weight=x", "distill", "weight='x'", "number"),
    ("distill.temperature=0", "distill", "temperature=0", "above 0"),
    ("distill.teacher=nowhere.pt", "distill.teacher=nowhere.pt", "is not there"),
    ("distill.teacher=3", "distill", "teacher=3", "is no text; quote it"),
    ("distill._target_=prunekit.training.Constant", "distill", "Constant"),
    ("distill.warmth=3", "distill.warmth", "distill.weight"),
]


@pytest.mark.parametrize(("override", "parts"), [(override, parts) for override, *parts in BAD])
@pytest.mark.parametrize("command", ["run", "finetune"])
def test_a_wrong_setting_is_named_before_any_work(
    cli, tmp_path, finished, command, override, parts
):
    source = (f"source={finished / 'outputs/whole/prune'}",) if command == "finetune" else ()
    refused(cli(command, "dataset=mnist", "distill=standard", *source, override), *parts)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and file.name != ".lock"]


def test_a_number_without_distillation_is_no_setting(cli):
    refused(cli("finetune", "distill.weight=0.2"), "distill.weight is no setting of finetune")


def test_a_teacher_that_the_run_will_leave_is_awaited(cli):
    """It is not there when the run begins."""
    line = ("name=a", "pipeline=[pretrain,prune,finetune]", "selection=per_layer")
    teach = ("criterion=l1_norm", "distill=standard", "distill.teacher=outputs/a/prune")
    found = cli("run", *line, *teach)
    assert found.code == 0, found.err
    assert report("a")["settings"]["teacher"].startswith("prune/model.pt (")


class TestNoTeacher:
    """One line that says why there is none, and what to give."""

    def test_of_other_classes(self, tune):
        refused(
            *(tune("name=a", teacher(classes=7)), "teacher.pt cannot teach", "classes=7"),
            *("10 classes", "distill.teacher="),
        )

    def test_of_other_images(self, tune):
        save_model("color.pt", resnet20(), {"_target_": "prunekit.models.resnet20"})
        found = tune("name=a", "distill.teacher=color.pt")
        refused(found, "color.pt cannot teach", "images of shape (1, 28, 28)", "distill.teacher=")

    def test_where_the_file_is_no_model(self, tune):
        Path("text.pt").write_text("hello")
        refused(tune("name=a", "distill.teacher=text.pt"), "text.pt")

    def test_where_pruning_built_the_network(self, cli):
        prune = ("prune", "name=a", "criterion=l1_norm", "selection=per_layer")
        assert cli(*prune).code == 0
        found = cli("finetune", "name=a", "distill=standard")
        refused(found, "built in prune", "distill.teacher=", "pretrain")
        assert cli("finetune", "name=a", "distill=standard", teacher()).code == 0

    def test_where_the_source_was_narrow_from_the_start(self, cli, finished):
        shutil.copy(finished / "outputs/whole/prune/model.pt", "narrow.pt")
        found = cli("finetune", "source=narrow.pt", "distill=standard")
        refused(found, "narrow.pt", "was changed before", "distill.teacher=")

    def test_where_the_dense_network_is_gone(self, cli, tmp_path, finished):
        shutil.copytree(finished / "outputs", tmp_path / "outputs")
        shutil.rmtree("outputs/whole/pretrain")
        found = cli("finetune", "name=b", "source=outputs/whole/prune", "distill=standard")
        refused(found, "sparsify was made from pretrain/model.pt", "gone", "distill.teacher=")
