"""Fine-tuning with a new classifier: other classes, global pooling, a rate of its own."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from cli.test_errors import refused


def report(run: str, stage: str = "finetune") -> dict:
    return json.loads(Path("outputs", run, stage, "report.json").read_text())


def weights(run: str) -> dict[str, torch.Tensor]:
    file = Path("outputs", run, "finetune/model.pt")
    return torch.load(file, weights_only=True)["weights"]


@pytest.fixture
def tune(cli, finished):
    """Fine-tune what the finished run pruned, in a run of its own."""
    source = f"source={finished / 'outputs/whole/prune'}"
    return lambda name, *overrides: cli("finetune", source, f"name={name}", *overrides)


def test_a_pruned_network_goes_on_with_other_classes(cli, tune, finished):
    refused(tune("a", "dataset.classes=4"), "10", "4 classes", "head=linear")
    found = tune("a", "dataset.classes=4", "head=linear")
    assert found.code == 0, found.err
    width = report("a")["metrics"]["params"]
    note = next(note for note in report("a")["notes"] if "classifier" in note)
    assert note.startswith("new classifier: fc2 starts anew from ") and note.endswith("to 4")
    assert weights("a")["fc2.weight"].shape[0] == 4
    again = tune("a", "dataset.classes=4", "head=linear")
    assert "finished before" in again.out
    refused(tune("a", "dataset.classes=4", "head=linear", "head.rate=2"), "head.rate")
    source = f"source={finished / 'outputs/whole/prune'}"
    assert cli("measure", source, "name=a", "dataset.classes=4").code == 0
    told = [note for note in report("a", "measure")["notes"] if "not known" in note]
    assert told[0] == "source has 10 outputs, not 4: its accuracy is not known here"
    with Path("outputs/a/measure/comparison.csv").open(newline="") as lines:
        rows = {row["network"]: row for row in csv.DictReader(lines)}
    assert rows["source"]["top1"] == "" and rows["fine-tuned"]["top1"] != ""
    assert rows["fine-tuned"]["params"] == str(width)
    correct = torch.load("outputs/a/measure/correct.pt", weights_only=True)
    assert [*correct] == ["fine-tuned"]


def test_global_pooling_in_a_run(cli):
    found = cli("run", "name=a", "head=pooled", "criterion=l1_norm", "selection=per_layer")
    assert found.code == 0, found.err
    pruned, tuned = report("a", "prune")["metrics"], report("a")["metrics"]
    kept = pruned["kept/conv2"]
    convs = sum(v.numel() for k, v in weights("a").items() if k.startswith("conv"))
    assert tuned["params"] == convs + 10 * kept + 10 < pruned["params"]
    assert report("a", "measure")["metrics"]["params"] == tuned["params"]


def test_the_new_layer_has_a_rate_of_its_own(tune):
    for name, rate, epochs in (("start", 1, 0), ("slow", 1e-9, 1), ("fast", 1, 1)):
        more = (f"head.rate={rate}", f"schedule.finetune.epochs={epochs}")
        assert tune(name, "head=linear", *more).code == 0
    start, slow, fast = weights("start"), weights("slow"), weights("fast")
    for key, tensor in start.items():
        still = torch.allclose(slow[key], tensor, atol=1e-6)
        assert still == key.startswith("fc2"), key
    assert not torch.allclose(fast["fc2.weight"], start["fc2.weight"], atol=1e-6)


def test_images_of_another_shape_are_refused_as_everywhere(tune):
    for head in ("none", "linear", "pooled"):
        found = tune("a", "dataset.channels=3", f"head={head}")
        refused(found, "LeNet5", "(3, 28, 28)", "choose another model or dataset")


def test_what_cannot_be_is_refused_before_any_work(cli, tmp_path):
    refused(cli("run", "head=pooled", "head.rate=-1"), "head.rate=-1", "above 0")
    refused(cli("run", "head=linaer"), "head=linaer", "linear")
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
