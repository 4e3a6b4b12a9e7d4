"""Published tables row by row, and every experiment file made small and taken at full width."""

from __future__ import annotations

import csv
import importlib
import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.build import build
from prunekit.config import config_dir, groups, resolve
from prunekit.errors import ArtifactError
from prunekit.runs.files import write_json
from prunekit.stages.pipeline import build_stages, stage_names

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
REFERENCE = SCRIPTS.parents[1] / "shared" / "reference"
FILES = sorted(file.stem for file in (SCRIPTS / "published").glob("*.csv"))
LEFT_OUT = {  # where in the source a row was found, and what was computed from it
    *("seed_line", "seed_place", "note", "acc_delta_stated", "acc_delta_recomputed"),
    *("delta_consistent", "base_flops_cell_as_printed", "base_params_cell_as_printed"),
}


@pytest.fixture(scope="module")
def reproduce():
    """The script as a module, with its neighbours importable."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("reproduce_tables")
    sys.path[:] = [place for place in sys.path if place != str(SCRIPTS)]


def lines(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize("name", FILES)
def test_facts_are_those_of_the_reference(name):
    if not REFERENCE.is_dir():
        pytest.skip("the published tables as transcribed are not beside this checkout")
    found = [
        {key: value for key, value in row.items() if key not in LEFT_OUT}
        for row in lines(REFERENCE / f"{name}.csv")
    ]
    assert lines(SCRIPTS / "published" / f"{name}.csv") == found


def test_every_published_file_has_a_table(reproduce):
    assert set(FILES) <= set(reproduce.TABLES)
    if REFERENCE.is_dir():
        assert {file.stem for file in REFERENCE.glob("*.csv")} == set(FILES)


def transcripts():
    sys.path.insert(0, str(SCRIPTS))
    try:
        return importlib.import_module("transcripts").TRANSCRIPTS
    finally:
        sys.path.remove(str(SCRIPTS))


@pytest.mark.parametrize("one", transcripts(), ids=lambda one: one.name)
def test_every_published_row_is_printed_and_none_is_filled_in(one, tmp_path):
    for scale, extent in one.scales.items():
        out = tmp_path / scale
        with pytest.raises(ArtifactError, match=f"nothing was measured for {one.name}"):
            one.write(tmp_path / "runs", out, extent)
        rows = lines(out / f"{one.name}.csv")
        known = lines(SCRIPTS / "published" / f"{one.name}.csv")
        assert len(rows) == len(known)
        for row, fact in zip(rows, known, strict=True):
            assert {key: row[f"paper: {key}"] for key in fact} == {
                key: value or "-" for key, value in fact.items()
            }
            ours = {key: value for key, value in row.items() if not key.startswith("paper: ")}
            assert ours.pop("seeds") == "0" and ours.pop("needs")
            assert set(ours.values()) <= {"not run", "-"}


def test_what_is_not_run_says_what_it_needs(reproduce, tmp_path):
    def needs(name):
        one = next(t for t in reproduce.transcripts.TRANSCRIPTS if t.name == name)
        known, extent = reproduce.transcripts.facts(name), next(iter(one.scales.values()))
        return [row["needs"] for row in one.measured(tmp_path, extent, known)]

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


def test_a_measured_row_stands_beside_its_own(reproduce, tmp_path):
    imagenet = reproduce.transcripts.imagenet
    extent = imagenet.SCALES["paper"]
    known = reproduce.transcripts.facts("ssr_table5")
    line = imagenet.lines(known)[-1]
    assert (line.network, line.method, line.group) == ("ResNet-50", "SSR-L2,0", 2)
    base = imagenet.dense("ResNet-50", extent, 0).name
    for run, top1, macs in ((base, 76.0, 4), (line.run(0), 73.5, 2)):
        values = {"top1": top1, "top5": 90.0, "macs": macs, "params": 7, "speedup": 1.5}
        (tmp_path / run / "measure").mkdir(parents=True)
        write_json(tmp_path / run / "measure/report.json", {"metrics": values})
    one = next(t for t in reproduce.transcripts.TRANSCRIPTS if t.name == "ssr_table5")
    one.write(tmp_path, tmp_path / "out", extent)
    rows = lines(tmp_path / "out/ssr_table5.csv")
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
def test_a_run_fills_its_own_row_alone(reproduce, tmp_path, name, run, place, cells):
    values = {"top1": 75.0, "dense_top1": 76.0, "macs": 4, "params": 2}
    (tmp_path / run / "measure").mkdir(parents=True)
    report = {"metrics": {**values, "dense_macs": 8, "dense_params": 8}}
    write_json(tmp_path / run / "measure/report.json", report)
    one = next(t for t in reproduce.transcripts.TRANSCRIPTS if t.name == name)
    one.write(tmp_path, tmp_path / "out", one.scales["paper"])
    rows = lines(tmp_path / f"out/{name}.csv")
    assert [index for index, row in enumerate(rows) if row["seeds"] == "1"] == [place]
    assert {key: rows[place][key] for key in cells} == cells and rows[place]["needs"] == ""


def test_jobs_of_every_transcript_come_in_order(reproduce):
    for one in reproduce.transcripts.TRANSCRIPTS:
        for scale, extent in one.scales.items():
            seen: set[str] = set()
            for job in one.jobs(extent):
                assert job.waits_for() <= seen, (one.name, scale, job.name)
                seen.add(job.name)


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
def test_jobs_of_transcripts_compose(reproduce, tmp_path, name, scale):
    one = next(t for t in reproduce.transcripts.TRANSCRIPTS if t.name == name)
    kinds = {}
    for job in one.jobs(one.scales[scale]):
        words = tuple(w for w in job.overrides if not w.startswith(("seed=", "selection.path=")))
        kinds.setdefault((job.stages, words), job)
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        for job in kinds.values():
            for other in job.needs:
                (tmp_path / other).mkdir(parents=True, exist_ok=True)
                (tmp_path / other / "plan.json").write_text('{"groups": {}}')
            line = [word for word in job.command(str(tmp_path)) if not word.startswith("source=")]
            settings = resolve(compose("run", overrides=line))
            assert stage_names(settings) == job.stages
            build_stages(settings, job.stages)
    GlobalHydra.instance().clear()


def test_every_experiment_file_is_run_once(reproduce):
    every = reproduce.every_experiment
    jobs = every.jobs(every.SCALES["smoke"])
    assert [job.name for job in jobs] == [
        f"every/{name}" for name in sorted(groups()["experiment"])
    ]
    assert all(job.stages[-1] == "measure" and "finetune" in job.stages for job in jobs)


QUICK = ("ssr_alexnet_imagenet", "hinge_resnet50_imagenet", "slim_vgg19_cifar100", "sglp")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in groups()["experiment"]],
)
def test_a_small_experiment_composes_and_is_small(reproduce, name):
    job = reproduce.every_experiment.Experiment.read(name).small()
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        settings = resolve(compose("run", overrides=job.command("outputs")))
        own = resolve(compose("run", overrides=[f"experiment={name}"]))
    GlobalHydra.instance().clear()
    assert stage_names(settings) == job.stages == stage_names(own)
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
