"""Model files and run directories of an earlier prunekit go on being read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from golden import FILES, FINISHED, INTERRUPTED, MODELS, RUNS, SWEEP
from scripts.golden.cli import call
from scripts.golden.files import OUTPUTS, outputs_of

SAVED = sorted(MODELS.glob("*.pt"))
KINDS = ("narrow", "new_biases", "bias_maps", "select", "skip_block", "attach", "fold", "head")
COMPOSED = ("--config-dir=configs", "experiment=tiny")


@pytest.fixture
def place(tmp_path):
    """A folder with copies of everything."""
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.mark.parametrize("file", SAVED, ids=lambda file: file.stem)
def test_a_model_file_gives_the_outputs_it_gave(file):
    known = json.loads((FILES / OUTPUTS).read_text())[file.stem]
    found = outputs_of(file)
    assert (found["shape"], found["parameters"]) == (known["shape"], known["parameters"])
    near = 2e-2 if "bfloat16" in file.stem else 1e-4
    outputs = [torch.tensor(one["outputs"], dtype=torch.float64) for one in (found, known)]
    torch.testing.assert_close(*outputs, rtol=near, atol=near)


def test_the_model_files_hold_edits_of_every_kind():
    edits = [torch.load(file, weights_only=True)["edits"] for file in SAVED]
    assert {edit["edit"] for held in edits for edit in held} == set(KINDS)


def test_what_is_kept_beside_a_model_is_read():
    from prunekit import load_model

    facts = load_model(MODELS / "lenet_dense.pt").facts
    assert facts["epochs"] == 3
    assert facts["mean"].tolist() == [1, 1]


def test_a_finished_run_is_reported(place):
    ended = call(place, "report", "runs/finished", "--no-html", "--out", "table.csv")
    assert ended.code == 0, ended.err
    metrics = json.loads((FINISHED / "measure" / "report.json").read_text())["metrics"]
    for figure in (metrics["params"], metrics["macs"]):
        assert str(figure) in (place / "table.csv").read_text()
        assert f"{figure:,}" in ended.out


def test_a_sweep_is_reported(place):
    ended = call(place, "report", "runs/sweep", "--no-html", "--out", "table.csv")
    assert ended.code == 0, ended.err
    rows = (place / "table.csv").read_text().splitlines()
    assert len(rows) == 3
    assert "0.01" in rows[1] and "0.02" in rows[2]


@pytest.mark.parametrize("stage", ["", "pretrain", "sparsify", "prune", "finetune"])
def test_a_finished_run_is_a_source(place, stage):
    source = f"source=runs/finished/{stage}"
    ended = call(place, "prune", *COMPOSED, source, "name=next", "diagnose=false")
    assert ended.code == 0, ended.err
    old = json.loads((FINISHED / (stage or "finetune") / "report.json").read_text())["metrics"]
    new = json.loads((place / "runs" / "next" / "prune" / "report.json").read_text())["metrics"]
    assert 0 < new["params"] < old["params"]


def test_scores_of_a_finished_run_are_read(place):
    chosen = ("criterion=stored", "selection.keep=0.7", "name=next", "diagnose=false")
    ended = call(place, "prune", *COMPOSED, "source=runs/finished/sparsify", *chosen)
    assert ended.code == 0, ended.err
    groups = json.loads((place / "runs" / "next" / "prune" / "plan.json").read_text())["groups"]
    scores = torch.load(FINISHED / "sparsify" / "scores.pt", weights_only=True)["scores"]
    assert scores.keys() == groups.keys()
    for name, score in scores.items():
        kept = groups[name]["indices"]
        assert len(kept) == groups[name]["kept"] < len(score)
        assert score[kept].min() >= score[[i for i in range(len(score)) if i not in kept]].max()


def test_widths_and_curves_of_a_finished_run_are_read(place):
    source = ("source=runs/finished/pretrain", "diagnose=false")
    like = ("selection=like_run", "selection.path=runs/finished", "name=like")
    curves = ("selection=sensitivity", "selection.path=runs/finished", "name=curves")
    for chosen in (like, curves):
        ended = call(place, "prune", *COMPOSED, *source, *chosen)
        assert ended.code == 0, ended.err
    kept = [
        {name: group["kept"] for name, group in json.loads(file.read_text())["groups"].items()}
        for file in (FINISHED / "prune" / "plan.json", place / "runs/like/prune/plan.json")
    ]
    assert kept[0] == kept[1]


def test_the_interrupted_run_stands_in_the_middle_of_training(place):
    assert (INTERRUPTED / "pretrain" / "report.json").is_file()
    assert (INTERRUPTED / "sparsify" / "last.pt").is_file()
    assert not (INTERRUPTED / "sparsify" / "report.json").exists()
    ended = call(place, "report", "runs/interrupted", "runs/finished", "--no-html")
    assert ended.code == 0, ended.err
    assert "interrupted/sparsify" in ended.out + ended.err


def test_the_sweep_took_its_stages_from_the_shared_folder():
    (shared,) = RUNS.glob(".shared/pretrain-*/pretrain/model.pt")
    jobs = [job / "pretrain" / "model.pt" for job in SWEEP.iterdir()]
    assert len(jobs) == 2
    assert all(job.read_bytes() == shared.read_bytes() for job in jobs)
