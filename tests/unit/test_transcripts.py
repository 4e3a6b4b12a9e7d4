"""Published tables row by row, and every experiment file made small and taken at full width."""

from __future__ import annotations

import re

import pytest
from reproduced import (
    PUBLISHED,
    REFERENCE,
    composed,
    composing,
    finished,
    jobs_of,
    lines,
    table,
    written,
)

from prunekit.build import build
from prunekit.config import groups
from prunekit.errors import ArtifactError
from prunekit.stages.pipeline import build_stages, stage_names
from scripts.reproduce import every, tables
from scripts.reproduce.jobs import Job
from scripts.reproduce.rows import text_of
from scripts.reproduce.sheets import write

FILES = sorted(file.stem for file in PUBLISHED.glob("*.csv"))
WHOLE = [name for name in tables.names() if tables.contents(name).get("head") == "paper"]
LEFT_OUT = {  # where in the source a row was found, and what was computed from it
    *("seed_line", "seed_place", "note", "acc_delta_stated", "acc_delta_recomputed"),
    *("delta_consistent", "base_flops_cell_as_printed", "base_params_cell_as_printed"),
}


@pytest.mark.parametrize("name", FILES)
def test_facts_are_those_of_the_reference(name):
    if not REFERENCE.is_dir():
        pytest.skip("the published tables as transcribed are not beside this checkout")
    found = [
        {key: value for key, value in row.items() if key not in LEFT_OUT}
        for row in lines(REFERENCE / f"{name}.csv")
    ]
    assert lines(PUBLISHED / f"{name}.csv") == found


def test_every_published_file_has_a_table():
    assert set(FILES) <= set(tables.names())
    shown = {file for name in tables.names() for file in tables.contents(name).get("published", ())}
    assert shown == set(FILES)
    if REFERENCE.is_dir():
        assert {file.stem for file in REFERENCE.glob("*.csv")} == set(FILES)


@pytest.mark.parametrize("name", WHOLE)
def test_every_published_row_is_printed_and_none_is_filled_in(name, tmp_path):
    known = [row for file in tables.contents(name)["published"] for row in tables.facts(file)]
    for scale in tables.contents(name)["scales"]:
        one, out = table(name, scale, tmp_path / "runs"), tmp_path / scale
        with pytest.raises(ArtifactError, match=f"nothing was measured for {name}"):
            write(one, out)
        rows = lines(out / f"{name}.csv")
        assert len(rows) == len(known)
        for row, fact in zip(rows, known, strict=True):
            assert {key: row[f"paper: {key}"] for key in fact} == {
                key: value or "-" for key, value in fact.items()
            }
            ours = {key: value for key, value in row.items() if not key.startswith("paper: ")}
            assert ours.pop("seeds") == "0" and ours.pop("needs")
            assert set(ours.values()) <= {"not run", "-"}


def test_what_is_not_run_says_what_it_needs(tmp_path):
    def needs(name):
        one = table(name, next(iter(tables.contents(name)["scales"])), tmp_path)
        return [text_of(row["needs"], row) for row in one.rows]

    alexnet = needs("ssr_table3")
    assert (
        "ImageNet, a GPU: 3.3e+17 FLOPs a run, 9.1 h" in alexnet[11]
    )  # 6 x 714e6 x 1,281,167 x 60
    assert alexnet[-1] == alexnet[11]  # SSR-GAP takes no more than SSR
    assert "ThiNet" not in needs("ssr_table4")[4] and "not built" in needs("ssr_table4")[4]
    birds = needs("ssr_table7")
    assert "0.3 h" in birds[0] and "ImageNet weights" in birds[0]  # 6 x 15.47e9 x 5,994 x 21
    assert "SSR-L2,1-GAP in ssr_table4" in birds[-1]
    assert all("VOC" in text for text in needs("ssr_table8"))
    assert "52.4 h at" in needs("hinge_table4")[5]  # 6 x 4.089e9 x 1,281,167 x 60
    hinge = needs("hinge_table1")
    assert hinge[0] == "another method, quoted" and re.search(r"CIFAR-10, a GPU: .* h at", hinge[9])
    assert "selection.keep=0.32" in needs("hinge_plots")[1]
    passes = needs("ns_liu2017_table4_multipass_vgg")
    assert all("after the pass before" in text for text in passes)


def test_a_measured_row_stands_beside_its_own(tmp_path):
    one = table("ssr_table5", "paper", tmp_path)
    last = one.rows[-1]
    assert (last["model"], last["method"], last["group"]) == ("ResNet-50", "SSR-L2,0", 2)
    for job, top1, macs in zip(one.jobs(last, 0), (76.0, 73.5), (4, 2), strict=True):
        values = {"top1": top1, "top5": 90.0, "macs": macs, "params": 7, "speedup": 1.5}
        finished(tmp_path, job.name, "measure", **values)
    rows = written(one)
    assert [row["seeds"] for row in rows] == ["0"] * 12 + ["1"]
    last = rows[-1]
    assert (last["paper: top1_err_increase_pct"], last["top-1 increase"]) == ("3.65", "+2.50")
    assert (last["MACs"], last["CPU speed-up"], last["needs"]) == ("2", "1.50", "")


@pytest.mark.parametrize(
    ("name", "run", "place", "cells"),
    [
        (
            "hinge_table4",
            "hinge_imagenet/seed0",
            5,
            {"top-1 error": "25.00", "increase": "1.00", "MACs %": "50.00", "params %": "25.00"},
        ),
        (
            "ssr_table7",
            "ssr_cub/vgg16/seed0/SSR-L21-GAP-group1",
            8,
            {"top-1 error": "25.00", "MACs": "4", "params": "2"},
        ),
    ],
)
def test_a_run_fills_its_own_row_alone(tmp_path, name, run, place, cells):
    values = {"top1": 75.0, "dense_top1": 76.0, "macs": 4, "params": 2}
    finished(tmp_path, run, "measure", **values, dense_macs=8, dense_params=8)
    rows = written(table(name, "paper", tmp_path))
    assert [index for index, row in enumerate(rows) if row["seeds"] == "1"] == [place]
    assert {key: rows[place][key] for key in cells} == cells and rows[place]["needs"] == ""


@pytest.mark.parametrize(
    "name",
    [
        "ssr_table3",
        "ssr_table5",
        "ssr_table7",
        "hinge_table4",
        "slasso_imagenet",
        "ns_liu2017_table4_multipass_vgg",
    ],
)
@pytest.mark.parametrize("scale", ["smoke", "paper"])
def test_jobs_of_transcripts_compose(tmp_path, name, scale):
    found = {}
    for job in jobs_of(table(name, scale, tmp_path)):
        words = tuple(w for w in job.overrides if not w.startswith(("seed=", "selection.path=")))
        found.setdefault((job.stages, words), job)
    with composing():
        for job in found.values():
            for other in job.needs:
                (tmp_path / other).mkdir(parents=True, exist_ok=True)
                (tmp_path / other / "plan.json").write_text('{"groups": {}}')
            settings = composed(job, tmp_path)
            assert stage_names(settings) == job.stages
            build_stages(settings, job.stages)


def test_every_experiment_file_is_run_once(tmp_path):
    jobs = every.jobs("smoke")
    assert [job.name for job in jobs] == [
        f"every/{name}" for name in sorted(groups()["experiment"])
    ]
    assert all(job.stages[-1] == "measure" for job in jobs)
    untuned = [job.name for job in jobs if "finetune" not in job.stages]
    assert untuned == ["every/refit_resnet20_exact"]
    with pytest.raises(ArtifactError, match="not run to the end: demo"):
        every.write("short", tmp_path, tmp_path / "out")
    finished(tmp_path, "every/demo", *every.jobs("short")[0].stages, params=7)
    every.write("short", tmp_path, tmp_path / "out")
    (row,) = lines(tmp_path / "out/experiments.csv")
    assert row["stages"].startswith("pretrain sparsify") and row["parameters left"] == "7"


QUICK = ("ssr_alexnet_imagenet", "hinge_resnet50_imagenet", "slim_vgg19_cifar100", "sglp")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in groups()["experiment"]],
)
def test_a_small_experiment_composes_and_is_small(name):
    job = next(job for job in every.jobs("smoke") if job.name == f"every/{name}")
    settings = composed(job)
    own = composed(Job("own", (f"experiment={name}",), job.stages))
    assert stage_names(settings) == job.stages
    build_stages(settings, job.stages)
    assert settings["dataset"]["_target_"] == "prunekit.data.Synthetic"
    model = {
        key: value for key, value in settings["model"].items() if key not in ("name", "weights")
    }
    network = build(model, "model")
    assert sum(p.numel() for p in network.parameters()) < 8e6
    for key in ("solver", "placement", "absorb"):
        assert settings[key] == own[key]
    assert settings["order"]["_target_"] == own["order"]["_target_"]
