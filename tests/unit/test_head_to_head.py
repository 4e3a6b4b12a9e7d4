"""The head-to-head: what is compared at which cost, and how it is ranked."""

from __future__ import annotations

import csv
import importlib
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.build import build
from prunekit.config import config_dir, resolve
from prunekit.errors import ArtifactError
from prunekit.stages.pipeline import build_stages, stage_names
from prunekit.stages.sparsify import build_regularizer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
DATA = "../shared/data"


@pytest.fixture(scope="module")
def jobs():
    """The script with the jobs, its neighbours importable."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("head_to_head")
    sys.path[:] = [place for place in sys.path if place != str(SCRIPTS)]


@pytest.fixture(scope="module")
def tables(jobs):
    return importlib.import_module("head_to_head_tables")


def scales(jobs):
    return {**jobs.SCALES, **{f"lenet {key}": one for key, one in jobs.LENET_SCALES.items()}}


def every(jobs, extent, root):
    rounds = (jobs.trials(extent, root, DATA), jobs.comparing(extent, root, DATA))
    return [*jobs.choosing(extent), *(job for one in rounds for job in one)]


def test_there_are_ten_methods_and_the_floor(jobs):
    (network,) = jobs.SCALES["short"].networks
    assert set(jobs.FLOOR) < set(network.methods) and len(network.methods) >= 10
    assert jobs.SCALES["short"].seeds == (0, 1, 2)
    for extent in scales(jobs).values():
        assert all(set(jobs.FLOOR) < set(network.methods) for network in extent.networks)
    assert [[*network.budgets] for network in jobs.SCALES["gpu"].networks] == [
        ["30% of MACs", "50% of MACs", "70% of MACs"]
    ] * 2


def test_a_run_starts_from_one_before_it_and_has_a_name_of_its_own(jobs, tmp_path):
    for extent in scales(jobs).values():
        seen = {}
        for job in every(jobs, extent, tmp_path):
            assert job.waits_for() <= seen.keys(), job.name
            assert seen.setdefault(job.name, job) == job
            scratch = "/from-scratch/" in job.name or job.stages == ("pretrain",)
            assert (job.after is None) == scratch


def settings(job):
    line = [word for word in job.command("outputs") if not word.startswith("source=")]
    return resolve(compose("run", overrides=line))


def test_all_train_for_equal_epochs_at_one_rate(jobs, tmp_path):
    """Sparsification and tuning together, whatever the method; the rate of thin pairs aside."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        for extent in (jobs.SCALES["short"], jobs.LENET_SCALES["short"]):
            one = replace(extent, seeds=(0,))
            found = {job.name: job for job in every(jobs, one, tmp_path)}
            for name, job in found.items():
                if "finetune" not in job.stages or "/from-scratch/" in name:
                    continue
                parent = found[job.after]
                sparse = {*job.stages, *parent.stages} & {"sparsify"}
                schedule = settings(job)["schedule"]
                before = schedule["sparsify"]["epochs"] if sparse else 0
                assert before + schedule["finetune"]["epochs"] == 10, name
                rate = schedule["finetune"]["optimizer"]["lr"]
                thin = "/Hinge" in name
                assert rate == (0.003 if thin else 0.1 if "lenet" in name else 0.01)
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(
    "scale",
    [
        *("smoke", "lenet smoke"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("short", "lenet short", "gpu")),
    ],
)
def test_every_kind_of_job_composes_and_builds(jobs, tmp_path, scale):
    extent = replace(scales(jobs)[scale], seeds=(0,))
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        for job in every(jobs, extent, tmp_path):
            found = settings(job)
            assert stage_names(found) == job.stages
            build_stages(found, job.stages)
            build(found["selection"], "selection")
            build(found["criterion"], "criterion")
            if "sparsify" in job.stages:
                build_regularizer(found)
            wanted = "lenet" in scale
            assert build(found["dataset"], "dataset").shape == (
                (1, 28, 28) if wanted else (3, 32, 32)
            )
    GlobalHydra.instance().clear()


def finished(root, run, top1, right, val=0.0, seconds=1.0, stages=("prune", "finetune", "measure")):
    values = {"top1": top1, "val_top1": val, "params": 1000, "macs": 5, "cpu_ms": 2.0, "speedup": 3}
    for stage in stages:
        folder = root / run / stage
        folder.mkdir(parents=True, exist_ok=True)
        report = {"metrics": values, "seconds": seconds}
        (folder / "report.json").write_text(json.dumps(report))
    if "measure" in stages:
        found = {"pruned": torch.zeros(len(right), dtype=torch.bool), "fine-tuned": right}
        torch.save(found, root / run / "measure/correct.pt")


def rows(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


def test_methods_are_ranked_with_verdicts_and_seconds(jobs, tables, tmp_path):
    extent = replace(jobs.SCALES["short"], seeds=(0, 1))
    (network,) = extent.networks
    (budget,) = network.budgets
    source = torch.Generator().manual_seed(0)
    shares = {"L1 norm": 0.9, "random channels": 0.5, "Hinge": 0.9, "slimming, l1": 0.7}
    for seed in extent.seeds:
        for method, share in shares.items():
            lam = jobs.chosen(tmp_path, extent, network, method)
            right = torch.rand(400, generator=source) < share
            run = jobs.named(network, method, budget, seed, lam)
            finished(tmp_path, run, 100 * float(right.float().mean()), right)
        sparse = jobs.named(network, "slimming, l1", "sparse", seed, 0.0072)
        finished(tmp_path, sparse, 1.0, None, seconds=10.0, stages=("sparsify",))
    tables.write_tables("x", tmp_path, tmp_path / "out", extent)
    found = {row["method"]: row for row in rows(tmp_path / "out/x.csv")}
    assert len(found) == len(network.methods)
    assert {found[m]["rank"] for m in ("L1 norm", "Hinge")} == {"1", "2"}
    assert (found["slimming, l1"]["rank"], found["random channels"]["rank"]) == ("3", "4")
    assert found["slimming, l1"]["seconds"] == "12 ± 0"  # sparsified once for all budgets, 10 s
    assert found["Hinge"]["seconds"] == "2 ± 0"
    second = next(row for row in found.values() if row["rank"] == "2")
    assert second["verdict"] == "undecided" and found["random channels"]["verdict"] == "worse"
    assert (found["FPGM"]["rank"], found["FPGM"]["tuned %"]) == ("-", "not run")
    floor = rows(tmp_path / "out/x_verdicts.csv")
    tuned = [r for r in floor if r["network is"] == "fine-tuned"]
    against = {r["method"]: r["verdict"] for r in tuned if r["against"] == "random channels"}
    assert against == {"L1 norm": "better", "Hinge": "better", "slimming, l1": "better"}
    assert "**" not in (tmp_path / "out/x.md").read_text()


def test_the_strength_is_the_best_on_validation_images(jobs, tmp_path):
    extent = jobs.SCALES["short"]
    (network,) = extent.networks
    (budget,) = network.budgets
    assert jobs.chosen(tmp_path, extent, network, "L1 norm") is None
    assert jobs.chosen(tmp_path, extent, network, "SSR-L2,1") == 0.05  # before any was tried
    for lam, val, test in ((0.05, 80.0, 99.0), (0.1, 82.0, 1.0), (0.2, 81.0, 50.0)):
        run = jobs.named(network, "SSR-L2,1", budget, 0, lam)
        finished(tmp_path, run, test, None, val, stages=("finetune",))
    assert jobs.chosen(tmp_path, extent, network, "SSR-L2,1") == 0.1
    names = {job.name for job in jobs.comparing(extent, tmp_path, DATA)}
    assert jobs.named(network, "SSR-L2,1", budget, 2, 0.1) in names
    assert jobs.named(network, "SSR-L2,1", budget, 2, 0.05) not in names


def test_a_comparison_of_no_run_is_refused(jobs, tables, tmp_path):
    for extent in scales(jobs).values():
        with pytest.raises(ArtifactError, match="nothing was measured for this table"):
            tables.write_tables("x", tmp_path, tmp_path / "out", extent)
    assert not list(tmp_path.iterdir())
