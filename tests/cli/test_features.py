"""prunekit features: a stage of its own, in a pipeline, and beside other runs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch

from prunekit.data import Digits
from prunekit.surgery import load_model

FILES = {"settings.json", "report.json", "features.csv", "features.png"}
PRUNE = ("criterion=l1_norm", "selection=per_layer", "selection.keep=0.5")
QUICK = ("features.images=120", "features.perplexity=10")


def report(stage):
    return json.loads((stage / "report.json").read_text())


def points(stage):
    with open(stage / "features.csv", newline="") as file:
        return [(float(r["x"]), float(r["y"]), int(r["label"])) for r in csv.DictReader(file)]


def test_features_of_a_finished_run_are_those_before_fine_tuning(go, finished):
    place = finished / "outputs/whole/features"
    before = (finished / "outputs/whole/prune/model.pt").read_bytes()
    out = go("features", "name=whole", *QUICK)
    assert out.startswith("features ") and {file.name for file in place.iterdir()} == FILES
    found = report(place)
    metrics, pruned = found["metrics"], report(finished / "outputs/whole/prune")["metrics"]
    assert found["source"].startswith("prune/")
    for key in ("top1", "params", "macs"):
        assert metrics[key] == pruned[key]
    assert (metrics["images"], metrics["layer"]) == (120, "input of fc2")
    rows = points(place)
    assert len(rows) == 120 and np.isfinite(np.array(rows)).all()
    for key in ("silhouette", "silhouette_embedded"):
        assert -1 <= metrics[key] <= 1
    assert (place / "features.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert (finished / "outputs/whole/prune/model.pt").read_bytes() == before
    assert "finished before" in go("features", "name=whole", *QUICK)
    line = go("features", "name=whole", *QUICK, "features.seed=1", code=1)
    assert "features.seed was 0, now 1" in line


def test_digits_in_a_pipeline_between_prune_and_finetune(cli, tmp_path):
    """Real images: classes are apart; the order of the list does not matter."""
    digits = ("dataset=digits", "schedule=short", "schedule.pretrain.epochs=4")
    names = "pipeline=[features,pretrain,finetune,prune]"
    found = cli("run", *digits, names, "name=d", *PRUNE, "schedule.finetune.epochs=1")
    assert found.code == 0, found.err
    lines = [line.split()[0] for line in found.out.splitlines() if "->" in line]
    assert lines == ["pretrain", "prune", "features", "finetune"]
    place = tmp_path / "outputs/d"
    assert report(place / "finetune")["source"].startswith("prune/")  # not the stage before it
    metrics, notes = report(place / "features")["metrics"], report(place / "features")["notes"]
    labels = Digits().load().test.labels
    assert metrics["images"] == len(labels) < 1000
    assert f"the test set has {len(labels)} images of features.images=1000" in notes
    assert sorted(row[2] for row in points(place / "features")) == sorted(labels.tolist())
    model = load_model(place / "prune/model.pt").model
    assert metrics["width"] == model.fc2.in_features == 250
    assert metrics["silhouette_embedded"] > 0.1
    assert _own_neighbours(points(place / "features")) > 0.7
    summary = cli("report", "outputs", smoke=False)
    assert summary.code == 0 and "finetune" in summary.out


def _own_neighbours(rows):
    """The share of points whose nearest neighbour is of their class."""
    places, labels = np.array(rows)[:, :2], np.array(rows)[:, 2]
    distance = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return float((labels[distance.argmin(1)] == labels).mean())


def test_another_source_and_layer_and_runs_side_by_side(go, finished):
    tuned = ("source=outputs/whole/finetune", "name=tuned", "features.layer=conv2")
    go("features", *tuned, *QUICK)
    found = report(finished / "outputs/tuned/features")
    assert found["source"].startswith("finetune/")
    assert found["metrics"]["layer"] == "output of conv2"
    go("features", "source=outputs/whole/pretrain", "name=dense", *QUICK)
    out = go("report", "outputs", "--embeddings", "side.pdf")
    assert "tuned" in out and (finished / "side.pdf").read_bytes()[:5] == b"%PDF-"
    assert "side.txt must end in" in go("report", "outputs", "--embeddings", "side.txt", code=1)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("features.perplexity=2000",), "features.perplexity=2000 must be below the number of"),
        (("features.perplexity=900", "dataset.test=50"), "must be below the number of images, 50"),
        (("dataset=none", "dataset.shape=[1,28,28]"), "this dataset has none; choose dataset"),
        (("features.layer=conv7",), "features.layer='conv7' is no layer of the network; did you"),
        (("dataset.image_size=20",), "cannot take images of shape"),
    ],
)
def test_bad_input_is_one_line(go, finished, overrides, words):
    line = go("features", "name=bad", "source=outputs/whole", *overrides, code=1)
    assert line.count("\n") == 1 and words in line
    assert not (finished / "outputs/bad/features/report.json").exists()


def test_without_a_network_it_says_where_one_could_come_from(cli):
    found = cli("features", "name=nothing")
    assert found.code == 1 and found.err.count("\n") == 1
    assert "features starts from a model" in found.err and "source=" in found.err


def test_a_network_that_says_nothing_is_drawn_with_a_note(go, finished):
    """A collapsed network is a result too: the pipeline must go on."""
    place = finished / "outputs/silent"
    place.mkdir()
    content = torch.load(finished / "outputs/whole/prune/model.pt", weights_only=True)
    content["weights"] = {key: torch.zeros_like(v) for key, v in content["weights"].items()}
    torch.save(content, place / "model.pt")
    out = go("features", "source=outputs/silent/model.pt", "name=silent", *QUICK)
    assert "all images have the same features (input of fc2): the points say nothing" in out
    assert report(place / "features")["metrics"]["silhouette"] == 0
