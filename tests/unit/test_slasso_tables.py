"""The tables of sGLP-IB and sTLP-IB: rows as published, runs behind them, figures beside them."""

from __future__ import annotations

import csv
import functools
import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.config import config_dir, resolve
from prunekit.errors import ArtifactError
from prunekit.stages.pipeline import build_stages, stage_names

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
REFERENCE = SCRIPTS.parents[1] / "shared" / "reference"
SIZES = {
    "slasso_t1": 46 + 8 + 15,
    "slasso_kernels": 8,
    "slasso_batch": 10,
    "slasso_ratio": 20,
    "slasso_layers": 8,
    "slasso_before": 8,
}


@pytest.fixture(scope="module")
def tables():
    """The script as a module, with its neighbours importable."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("slasso_tables")
    sys.path[:] = [place for place in sys.path if place != str(SCRIPTS)]


def sheet(tables, name):
    return next(sheet for sheet in tables.SHEETS if sheet.name == name)


def test_every_published_row_is_in_a_table(tables):
    assert {sheet.name: len(sheet.cells()) for sheet in tables.SHEETS} == SIZES


def test_figures_are_those_of_the_files(tables):
    cells = sheet(tables, "slasso_t1").cells()
    rows = {(c.data, c.network, c.method, c.tag): c.paper for c in cells}
    assert rows["CIFAR-10", "VGGNet-16", "sTLP-IB", ""] == {
        **{"paper top-1": "94.10", "paper FLOPs removed": "61", "paper params removed": "85"}
    }
    assert rows["CIFAR-10", "VGGNet-16", "sGLP-IB", "macs-0.35"]["paper top-1"] == "93.98"
    assert rows["CIFAR-10", "VGGNet-16", "sTLP-IB", "macs-0.36"]["paper top-1"] == "94.01"
    assert rows["ImageNet", "ResNet-50", "dense", ""]["paper top-1"] == "76.15"
    assert rows["CIFAR-10", "ResNet-110", "MPF", ""]["paper params removed"] == "-"
    ratios = {(c.method, c.varied): c.paper for c in sheet(tables, "slasso_ratio").cells()}
    assert ratios["sGLP-IB", "params 90 %"] == {
        **{"paper top-1": "93.97", "paper FLOPs removed": "64", "paper params removed": "90"}
    }
    assert ratios["sTLP-IB", "FLOPs 60 %"]["paper params removed"] == "84"
    layers = [(c.varied, c.paper["paper top-1"]) for c in sheet(tables, "slasso_layers").cells()]
    assert ("no initial layer", "93.88") in layers and ("no Gram matrix", "94.06") in layers


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no tables of the papers beside the tree")
@pytest.mark.parametrize("name", sorted(f.stem for f in (SCRIPTS / "published").glob("slasso_*")))
def test_published_files_are_copies(name):
    ours, theirs = (
        list(csv.DictReader((place / f"{name}.csv").open(newline="")))
        for place in (SCRIPTS / "published", REFERENCE)
    )
    assert [{key: row[key] for key in ours[0]} for row in theirs] == ours


def test_rows_that_cannot_be_run_say_why(tables):
    extent = tables.SCALES["paper"]
    ratios = {c.varied: extent.runs(c) for c in sheet(tables, "slasso_ratio").cells()}
    assert [key for key, runs in ratios.items() if not runs] == ["FLOPs 70 %", "FLOPs 80 %"]
    cells = sheet(tables, "slasso_t1").cells()
    others = [c for c in cells if c.method not in ("dense", *tables.METHODS)]
    assert len(others) == 46 + 8 + 15 - 6 - 14 and not any(extent.runs(c) for c in others)
    run = [c for c in cells if extent.runs(c)]
    assert len(run) == 5 + 12 and not any(c.data == "ImageNet" for c in run)


def runs(tables, scale):
    extent = tables.SCALES[scale]
    return {sheet.name: sheet.jobs(extent) for sheet in tables.SHEETS}


@pytest.mark.parametrize("scale", ["smoke", "short", "paper"])
def test_tables_share_jobs_and_agree_about_them(tables, scale):
    jobs = [job for found in runs(tables, scale).values() for job in found]
    assert len(set(jobs)) == len({job.name for job in jobs}) < len(jobs)


def composed(job):
    line = [word for word in job.command("outputs") if not word.startswith("source=")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return resolve(compose(config_name="run", overrides=line))


def kinds(tables, scale):
    """Runs by the last part of their names, one of those that differ in nothing but a number."""
    found = {}
    for job in (job for jobs in runs(tables, scale).values() for job in jobs):
        found.setdefault(job.name.rstrip("0123456789."), job)
    return {job.name.partition("/cifar10/")[2]: job for job in found.values()}


@pytest.mark.parametrize("scale", ["smoke", pytest.param("short", marks=pytest.mark.slow)])
def test_every_kind_of_run_composes(tables, scale):
    for job in kinds(tables, scale).values():
        found = composed(job)
        assert stage_names(found) == job.stages
        build_stages(found, job.stages)


@pytest.mark.parametrize(
    ("name", "key", "wanted"),
    [
        ("sGLP-IB_kernel-linear", "columns.kernel._target_", "prunekit.methods.gram_lasso.Linear"),
        ("sTLP-IB", "columns.kernel._target_", "prunekit.methods.gram_lasso.Laplacian"),
        ("sTLP-IB_batch_size-512", "calibration.count", 512),
        ("sGLP-IB_no-gram", "columns._target_", "prunekit.methods.gram_lasso.RawMaps"),
    ],
)
def test_what_a_table_varies_arrives(tables, name, key, wanted):
    jobs = [job for found in runs(tables, "short").values() for job in found]
    found = composed(next(job for job in jobs if job.name.endswith(f"vgg16/seed0/{name}")))
    similarity = found["criterion"]["similarity"]
    assert functools.reduce(lambda node, part: node[part], key.split("."), similarity) == wanted


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("sGLP-IB_spared-0", {"ignore": ["classifier.*"], "keep": 0.39}),
        ("sTLP-IB_spared-2", {"ignore": ["features.conv1_*", "classifier.*"], "keep": 0.39}),
        ("sTLP-IB_macs-0.36", {"keep": 0.36, "_target_": "prunekit.selection.MacsTarget"}),
        ("sGLP-IB_params-0.1", {"keep": 0.1, "_target_": "prunekit.selection.ParamsTarget"}),
    ],
)
def test_what_is_kept_arrives(tables, name, wanted):
    jobs = [job for found in runs(tables, "short").values() for job in found]
    found = composed(next(job for job in jobs if job.name.endswith(f"vgg16/seed0/{name}")))
    assert {key: found["selection"][key] for key in wanted} == wanted
    assert found["selection"]["scope"] == "local"


def finished(root, job, stage, **values):
    folder = root / job.name / stage
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"metrics": values}))


def written(out, name):
    with open(out / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def measured(tables, tmp_path):
    """VGG-16's dense network and its run of sTLP-IB, two seeds; tables of one and of both."""
    extent = replace(tables.SCALES["paper"], seeds=(0, 1))
    full = {"macs": 1000, "params": 500}
    for name in ("slasso_t1", "slasso_before"):
        table = sheet(tables, name)
        cell = next(c for c in table.cells() if (c.method, c.tag) == ("sTLP-IB", ""))
        for seed, top1 in ((0, 93.0), (1, 94.0)):
            job = table.pruned(extent, cell, seed)
            if name == "slasso_t1":
                finished(tmp_path, tables.dense(extent, cell, seed), "pretrain", top1=95, **full)
            cut = {"top1": 40.0, "macs": 390, "params": 75, "after/dropped_recomputed": top1 - 20}
            finished(tmp_path, job, "prune", **cut)
            if "finetune" in job.stages:
                finished(tmp_path, job, "finetune", top1=top1)
                finished(tmp_path, job, "measure", top1=top1)
    return extent, tmp_path


def test_rows_are_means_over_seeds_beside_the_published_ones(tables, measured):
    extent, root = measured
    sheet(tables, "slasso_t1").write(root, root / "out", extent)
    rows = written(root / "out", "slasso_t1")
    vgg = [row for row in rows if (row["data"], row["network"]) == ("CIFAR-10", "VGGNet-16")]
    base = next(row for row in vgg if row["method"] == "dense")
    assert (base["paper top-1"], base["top-1, dense"], base["top-1"]) == (
        *("93.96", "95.00 ± 0.00", "-"),
    )
    found = next(row for row in vgg if (row["method"], row["paper top-1"]) == ("sTLP-IB", "94.10"))
    assert (found["seeds"], found["top-1"], found["needs"]) == ("2", "93.50 ± 0.71", "")
    assert (found["MACs removed"], found["params removed"]) == ("61.00 ± 0.00", "85.00 ± 0.00")
    assert found["top-1, pruned"] == "40.00 ± 0.00"
    other = next(row for row in vgg if row["method"] == "sGLP-IB")
    assert (other["seeds"], other["top-1"]) == ("0", "not run") and "a GPU" in other["needs"]
    quoted = next(row for row in vgg if row["method"] == "CPMC")
    assert (quoted["top-1"], quoted["needs"]) == ("not run", "-")
    imagenet = [row["needs"] for row in rows if row["data"] == "ImageNet"]
    assert any("h at 10 TFLOP/s, experiment=stlp_resnet50_imagenet" in text for text in imagenet)
    text = (root / "out/slasso_t1.md").read_text()
    assert "nothing can be said" in text and "lost an exponent" in text


def test_accuracy_before_tuning_has_statistics_kept_and_recomputed(tables, measured):
    extent, root = measured
    sheet(tables, "slasso_before").write(root, root / "out", extent)
    rows = {(r["method"], r["kernel"]): r for r in written(root / "out", "slasso_before")}
    found = rows["sTLP-IB", "laplacian"]
    assert (found["paper top-1"], found["top-1, pruned"]) == ("43.68", "40.00 ± 0.00")
    assert found["top-1, statistics recomputed"] == "73.50 ± 0.71"
    assert rows["sGLP-IB", "sigmoid"]["top-1, pruned"] == "not run"


def test_a_share_out_of_reach_is_said_to_be(tables, measured):
    extent, root = measured
    table = sheet(tables, "slasso_ratio")
    job = table.pruned(extent, table.cells()[0], 0)
    finished(root, job, "prune", top1=1.0, macs=1, params=1)
    finished(root, job, "finetune", top1=2.0)
    finished(root, job, "measure", top1=2.0)
    table.write(root, root / "out", extent)
    rows = written(root / "out", "slasso_ratio")
    assert [row["seeds"] for row in rows] == ["1", *["0"] * 19]
    absent = [row["removed"] for row in rows if row["needs"].startswith("out of reach")]
    assert absent == ["FLOPs 70 %", "FLOPs 80 %"] * 2


def test_a_table_of_no_run_is_refused(tables, tmp_path):
    for table in tables.SHEETS:
        with pytest.raises(ArtifactError, match="nothing was measured for this table"):
            table.write(tmp_path, tmp_path / "out", tables.SCALES["paper"])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slasso_t1", "slasso_before"])
def test_from_start_to_end(tmp_path, name):
    line = [sys.executable, str(SCRIPTS / "reproduce_tables.py"), "--table", name]
    found = subprocess.run(
        [*line, "--scale", "smoke"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    rows = written(tmp_path / "outputs/tables", name)
    done = [row for row in rows if row["seeds"] == "1"]
    assert len(done) == (11 if name == "slasso_t1" else 8)
    for row in (row for row in done if row["method"] != "dense"):
        assert row["top-1, pruned"] != "not run" and 20 < float(row["MACs removed"]) < 80
