"""The tables of sGLP-IB and sTLP-IB: rows as published, runs behind them, figures beside them."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import pytest
from reproduced import composed, composing, finished, jobs_of, lines, rows_of, table, written

from prunekit.errors import ArtifactError
from prunekit.stages.pipeline import check, pipeline
from scripts.reproduce import tables
from scripts.reproduce.rows import head_of
from scripts.reproduce.sheets import write

SIZES = {
    "slasso_t1": 46 + 8 + 15,
    "slasso_kernels": 8,
    "slasso_batch": 10,
    "slasso_ratio": 20,
    "slasso_layers": 8,
    "slasso_before": 8,
}


def paper(row, name):
    """The published figures of a row."""
    cells = head_of(tables.contents(name)["head"], row)
    return {key: value for key, value in cells.items() if key.startswith("paper")}


def test_every_published_row_is_in_a_table(tmp_path):
    assert {name: len(table(name, "paper", tmp_path).rows) for name in SIZES} == SIZES


def test_figures_are_those_of_the_files(tmp_path):
    def rows(name, *keys):
        found = table(name, "paper", tmp_path).rows
        return {tuple(row.get(key, "") for key in keys): paper(row, name) for row in found}

    found = rows("slasso_t1", "data_name", "model", "name", "tag")
    assert found["CIFAR-10", "VGGNet-16", "sTLP-IB", ""] == {
        **{"paper top-1": "94.10", "paper FLOPs removed": "61", "paper params removed": "85"}
    }
    assert found["CIFAR-10", "VGGNet-16", "sGLP-IB", "_macs-0.35"]["paper top-1"] == "93.98"
    assert found["CIFAR-10", "VGGNet-16", "sTLP-IB", "_macs-0.36"]["paper top-1"] == "94.01"
    assert found["ImageNet", "ResNet-50", "dense", ""]["paper top-1"] == "76.15"
    assert found["CIFAR-10", "ResNet-110", "MPF", ""]["paper params removed"] == "-"
    ratios = rows("slasso_ratio", "method", "removed")
    assert ratios["sGLP-IB", "params 90 %"] == {
        **{"paper top-1": "93.97", "paper FLOPs removed": "64", "paper params removed": "90"}
    }
    assert ratios["sTLP-IB", "FLOPs 60 %"]["paper params removed"] == "84"
    layers = rows("slasso_layers", "variant", "method")
    assert layers["no initial layer", "sTLP-IB"]["paper top-1"] == "93.88"
    assert layers["no Gram matrix", "sGLP-IB"]["paper top-1"] == "94.06"


def test_rows_that_cannot_be_run_say_why(tmp_path):
    ratios = table("slasso_ratio", "paper", tmp_path)
    unrun = [row for row in ratios.rows if not ratios.is_run(row)]
    assert [row["removed"] for row in unrun] == ["FLOPs 70 %", "FLOPs 80 %"] * 2
    one = table("slasso_t1", "paper", tmp_path)
    others = [row for row in one.rows if row["name"] not in ("dense", "sGLP-IB", "sTLP-IB")]
    assert len(others) == 46 + 8 + 15 - 6 - 14 and not any(map(one.is_run, others))
    run = [row for row in one.rows if one.is_run(row)]
    assert len(run) == 5 + 12 and not any(row["data_name"] == "ImageNet" for row in run)


def runs(scale, root):
    return {name: jobs_of(table(name, scale, root)) for name in SIZES}


@pytest.mark.parametrize("scale", ["smoke", "short", "paper"])
def test_tables_share_jobs_and_agree_about_them(scale, tmp_path):
    jobs = [job for found in runs(scale, tmp_path).values() for job in found]
    assert len(set(jobs)) == len({job.name for job in jobs}) < len(jobs)


def kinds(scale, root):
    """Runs by the last part of their names, one of those that differ in nothing but a number."""
    found = {}
    for job in (job for jobs in runs(scale, root).values() for job in jobs):
        found.setdefault(job.name.rstrip("0123456789."), job)
    return {job.name.partition("/cifar10/")[2]: job for job in found.values()}


@pytest.mark.parametrize("scale", ["smoke", pytest.param("short", marks=pytest.mark.slow)])
def test_every_kind_of_run_composes(scale, tmp_path):
    with composing():
        for job in kinds(scale, tmp_path).values():
            found = composed(job)
            assert pipeline(found) == job.stages
            check(found, job.stages)


def settings_of(name, root):
    """The settings of VGG-16's run of this name."""
    jobs = [job for found in runs("short", root).values() for job in found]
    return composed(next(job for job in jobs if job.name.endswith(f"vgg16/seed0/{name}")))


@pytest.mark.parametrize(
    ("name", "key", "wanted"),
    [
        ("sGLP-IB_kernel-linear", "columns.kernel._target_", "prunekit.methods.gram_lasso.Linear"),
        ("sTLP-IB", "columns.kernel._target_", "prunekit.methods.gram_lasso.Laplacian"),
        ("sTLP-IB_batch_size-512", "calibration.count", 512),
        ("sGLP-IB_no-gram", "columns._target_", "prunekit.methods.gram_lasso.RawMaps"),
    ],
)
def test_what_a_table_varies_arrives(tmp_path, name, key, wanted):
    similarity = settings_of(name, tmp_path)["criterion"]["similarity"]
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
def test_what_is_kept_arrives(tmp_path, name, wanted):
    selection = settings_of(name, tmp_path)["selection"]
    assert {key: selection[key] for key in wanted} == wanted
    assert selection["scope"] == "local"


@pytest.fixture
def root(tmp_path):
    """Runs of VGG-16's dense network and of sTLP-IB, two seeds, tuned and before tuning."""
    full = {"macs": 1000, "params": 500}
    for name in ("slasso_t1", "slasso_before"):
        one = table(name, "paper", tmp_path, seeds=(0, 1))
        row = rows_of(one, method="sTLP-IB", tag="")[0]
        for seed, top1 in ((0, 93.0), (1, 94.0)):
            dense, job = one.jobs(row, seed)
            finished(tmp_path, dense.name, "pretrain", top1=95, **full)
            cut = {"top1": 40.0, "macs": 390, "params": 75, "after/dropped_recomputed": top1 - 20}
            finished(tmp_path, job.name, "prune", **cut)
            finished(tmp_path, job.name, *job.stages[1:], top1=top1)
    return tmp_path


def test_rows_are_means_over_seeds_beside_the_published_ones(root):
    rows = written(table("slasso_t1", "paper", root, seeds=(0, 1)))
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


def test_accuracy_before_tuning_has_statistics_kept_and_recomputed(root):
    found = written(table("slasso_before", "paper", root, seeds=(0, 1)))
    rows = {(row["method"], row["kernel"]): row for row in found}
    found = rows["sTLP-IB", "laplacian"]
    assert (found["paper top-1"], found["top-1, pruned"]) == ("43.68", "40.00 ± 0.00")
    assert found["top-1, statistics recomputed"] == "73.50 ± 0.71"
    assert rows["sGLP-IB", "sigmoid"]["top-1, pruned"] == "not run"


def test_a_share_out_of_reach_is_said_to_be(root):
    one = table("slasso_ratio", "paper", root, seeds=(0, 1))
    job = one.jobs(one.rows[0], 0)[-1]
    finished(root, job.name, "prune", top1=1.0, macs=1, params=1)
    finished(root, job.name, "finetune", "measure", top1=2.0)
    rows = written(one)
    assert [row["seeds"] for row in rows] == ["1", *["0"] * 19]
    absent = [row["removed"] for row in rows if row["needs"].startswith("out of reach")]
    assert absent == ["FLOPs 70 %", "FLOPs 80 %"] * 2


def test_a_table_of_no_run_is_refused(tmp_path):
    for name in SIZES:
        with pytest.raises(ArtifactError, match="nothing was measured for this table"):
            write(table(name, "paper", tmp_path), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slasso_t1", "slasso_before"])
def test_from_start_to_end(tmp_path, name):
    line = [sys.executable, "-m", "scripts.reproduce", "--table", name, "--scale", "smoke"]
    env = {**os.environ, "PYTHONPATH": str(tables.HERE.parents[1])}
    found = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    rows = lines(tmp_path / f"outputs/tables/{name}.csv")
    done = [row for row in rows if row["seeds"] == "1"]
    assert len(done) == (11 if name == "slasso_t1" else 8)
    for row in (row for row in done if row["method"] != "dense"):
        assert row["top-1, pruned"] != "not run" and 20 < float(row["MACs removed"]) < 80
