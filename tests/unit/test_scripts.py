"""The job lists behind the tables, and one table from start to end."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
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

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
SSR = ("ssr_t1", "ssr_f3", "ssr_f56", "ssr_lambda")
ALL = (*SSR, "ns_t1", "slim_resnet20", "hinge_t1", "hinge_resnet20", "slasso_resnet20")


@pytest.fixture(scope="module")
def reproduce():
    """The script as a module, with its neighbours importable."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("reproduce_tables")
    sys.path[:] = [place for place in sys.path if place != str(SCRIPTS)]


def lists(reproduce):
    """The first jobs of every table, or those that follow where it has no others.

    Transcripts print published rows beside runs of these tables, and have jobs where those do.
    """
    return {
        (name, scale): table.jobs(extent) or first(table, extent)
        for name, table in reproduce.TABLES.items()
        for scale, extent in table.scales.items()
        if name not in {one.name for one in reproduce.transcripts.TRANSCRIPTS}
    }


def first(table, extent):
    rounds = (following(extent, Path("outputs"), "../shared/data") for following in table.then)
    return next(filter(None, rounds), [])


def test_every_table_has_jobs_at_every_scale(reproduce):
    assert set(ALL) <= set(reproduce.TABLES)
    assert all(lists(reproduce).values())
    assert all({"short", "smoke"} <= {s for n, s in lists(reproduce) if n == name} for name in ALL)


def test_names_are_unique(reproduce):
    for key, jobs in lists(reproduce).items():
        assert len({job.name for job in jobs}) == len(jobs), key


def test_what_a_job_comes_after_is_there_and_comes_before(reproduce):
    for key, jobs in lists(reproduce).items():
        seen: set[str] = set()
        for job in jobs:
            assert job.waits_for() <= seen, (key, job.name)
            seen.add(job.name)


def test_a_job_starts_from_a_source_unless_it_trains_a_network_from_scratch(reproduce):
    for (table, _), jobs in lists(reproduce).items():
        for job in jobs:
            scratch = ("pretrain", "sparsify") if table.startswith("ns_") else ("pretrain",)
            untrained = "/from-scratch" in job.name  # cut before any training
            whole = table == "every"  # all stages of a file in one job
            assert (job.after is None) == (whole or job.stages[0] in scratch or untrained), job.name


def test_tables_that_share_a_job_agree_about_it(reproduce):
    for scale in ("short", "smoke"):
        jobs = [job for name in SSR for job in lists(reproduce)[name, scale]]
        assert len(set(jobs)) == len({job.name for job in jobs})


def kinds(reproduce, scale: str):
    """One job of each kind, with its table: the same overrides but for seeds, widths and shares."""
    found = {}
    loose = ("seed=", "selection.widths=", "model.widths=", "selection.ratio=")
    for (table, of), jobs in lists(reproduce).items():
        for job in jobs if of == scale and table in ALL else ():
            kind = tuple(word for word in job.overrides if not word.startswith(loose))
            found[job.stages, kind] = table, job
    return list(found.values())


@pytest.mark.slow  # CI runs every experiment for itself
@pytest.mark.parametrize("scale", ["smoke", "short"])
def test_every_kind_of_job_composes_and_builds(reproduce, tmp_path, scale):
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        for table, job in kinds(reproduce, scale):
            for other in job.needs:
                (tmp_path / other).mkdir(parents=True, exist_ok=True)
                (tmp_path / other / "plan.json").write_text('{"groups": {}}')
            line = [word for word in job.command(str(tmp_path)) if not word.startswith("source=")]
            settings = resolve(compose(config_name="run", overrides=line))
            names = stage_names(settings)
            assert names == job.stages, job.name
            build_stages(settings, names)
            shape = (1, 28, 28) if table in SSR else (3, 32, 32)
            assert build(settings["dataset"], "dataset").shape == shape
    GlobalHydra.instance().clear()


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPTS / "reproduce_tables.py"), *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


def smoke(table: str, cwd: Path, written: str | None = None) -> list[dict[str, str]]:
    """The rows that a table's smallest scale writes, run from start to end."""
    found = script("--table", table, "--scale", "smoke", cwd=cwd)
    assert found.returncode == 0, found.stderr
    with open(cwd / f"outputs/tables/{written or table}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_published_slimming_cells_are_those_of_the_files(reproduce):
    cells = reproduce.slimming_tables.published()
    rows = {(c.dataset, c.network, c.percent, p) for c, found in cells.items() for p in found}
    assert ("CIFAR-10", "DenseNet-40", 70, "l1") in rows  # of the paper alone
    assert ("CIFAR-10", "DenseNet-40", 60, "l1") in rows  # of the port alone
    assert sum("Liu error" in row for found in cells.values() for row in found.values()) == 23
    vgg = next(found for cell, found in cells.items() if cell.network == "VGG-19" and cell.percent)
    assert vgg["l1"] == {
        **{"Liu error": "6.2", "Liu params": "2.30M", "Liu FLOPs": "3.91e8"},
        **{"port error, pruned": "67.46", "port error": "6.22", "port params": "2.25M"},
    }


def finished(root, job, stage, top1, right=None):
    folder = root / job.name / stage
    folder.mkdir(parents=True)
    values = {"top1": top1, "params": 1000, "macs": 1}
    (folder / "report.json").write_text(json.dumps({"metrics": values}))
    if right is not None:
        torch.save({"pruned": torch.tensor(right)}, folder / "correct.pt")


def test_slimming_rows_are_means_over_seeds_beside_the_published_ones(
    reproduce, tmp_path, monkeypatch
):
    tables = reproduce.slimming_tables
    monkeypatch.setattr(tables, "_flops", lambda file: 3.91e8)
    extent = replace(tables.SCALES["paper"], seeds=(0, 1))
    cell = tables.Cell("CIFAR-10", "VGG-19", 70)
    for seed, error in ((0, 6.0), (1, 7.0)):
        for penalty, right in (("l1", [True, True, False]), ("TL1", [True, True, True])):
            job = tables.pruned(extent, cell, seed, penalty)
            finished(tmp_path, job, "prune", 40.0)
            finished(tmp_path, job, "finetune", 100 - error)
            finished(tmp_path, job, "measure", 100 - error, right)
    tables.write_table1(tmp_path, tmp_path / "out", extent)
    with open(tmp_path / "out/ns_t1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("data", "network", "pruned %", "penalty")
    found = {tuple(row[key] for key in keys): row for row in rows}
    l1 = found["CIFAR-10", "VGG-19", "70", "l1"]
    assert (l1["Liu error"], l1["seeds"], l1["error"]) == ("6.2", "2", "6.50 ± 0.71")
    assert (l1["error, pruned"], l1["FLOPs"], l1["needs"]) == ("60.00 ± 0.00", "3.91e+08 ± 0", "")
    other = found["CIFAR-10", "VGG-19", "70", "MCP"]
    assert (other["Liu error"], other["error"]) == ("-", "not run") and "a GPU" in other["needs"]
    assert rows[-1]["penalty"].startswith("Bayesian") and rows[-1]["needs"] == "not identified"
    verdicts = (tmp_path / "out/ns_t1_verdicts.csv").read_text().splitlines()
    assert len(verdicts) == 2 and "TL1" in verdicts[1] and "-33.333" in verdicts[1]
    text = (tmp_path / "out/ns_t1.md").read_text()
    assert "not at hand" in text and text.count("not identified") == 1


def test_published_hinge_cells_are_those_of_the_files(reproduce):
    cells = reproduce.hinge_tables.published()
    assert len(cells) == 16 and {cell.method for cell in cells} >= {"Hinge"}
    half = next(row for cell, row in cells.items() if cell.network == "ResNet56")
    assert half == {
        **{"paper error": "6.31", "paper BL": "7.05"},
        **{"paper FLOPs %": "50.0", "paper params %": "48.73"},
    }
    configs = [cell.experiment()[0].removeprefix("experiment=") for cell in cells]
    assert all((config_dir() / f"experiment/{name}.yaml").is_file() for name in configs)


def test_every_hinge_row_starts_from_the_dense_network_of_its_seed(reproduce):
    tables = reproduce.hinge_tables
    jobs = {job.name: job for job in tables.table1(tables.SCALES["paper"])}
    rows = [job for job in jobs.values() if job.after]
    assert (
        len(rows) == 3 * 16 and len(jobs) - len(rows) == 3 * 12
    )  # WRN has four rows, ResNet56 two
    assert all(jobs[job.after].overrides[-1] == job.overrides[-1] for job in rows)  # the seed
    wide = [job.overrides for job in rows if "wrn16_10/seed0" in job.name]
    kept = ["selection.keep=0.7556" in given for given in wide]
    fixed = ["solver.annealing=null" in given for given in wide]
    assert sorted(zip(kept, fixed, strict=True)) == [
        *((False, False), (False, True)),
        *((True, False), (True, True)),
    ]


def test_hinge_rows_are_shares_of_the_dense_network(reproduce, tmp_path):
    tables = reproduce.hinge_tables
    extent = replace(tables.SCALES["paper"], seeds=(0, 1))
    cell = next(cell for cell in tables.published() if cell.network == "VGG16")
    for seed, error in ((0, 6.0), (1, 7.0)):
        job, base = (make(extent, cell, seed) for make in (tables.pruned, tables.dense))
        finished(tmp_path, base, "pretrain", 94.0)
        finished(tmp_path, job, "prune", 50.0)
        finished(tmp_path, job, "finetune", 100 - error)
        report = tmp_path / job.name / "finetune/report.json"
        report.write_text(report.read_text().replace('"params": 1000', '"params": 200'))
        (tmp_path / job.name / "sparsify").mkdir()
        (tmp_path / job.name / "sparsify/metrics.csv").write_text("epoch\n1\n2\n")
    tables.write_table1(tmp_path, tmp_path / "out", extent)
    with open(tmp_path / "out/hinge_t1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 16
    found = next(row for row in rows if row["network"] == "VGG16")
    assert (found["paper error"], found["paper params %"]) == ("6.41", "19.95")
    assert (found["seeds"], found["error"], found["needs"]) == ("2", "6.50 ± 0.71", "")
    assert (found["error, dense"], found["error, pruned"]) == ("6.00 ± 0.00", "50.00 ± 0.00")
    assert (found["params %"], found["MACs %"]) == ("20.00 ± 0.00", "100.00 ± 0.00")
    assert found["epochs of search"] == "2.00 ± 0.00"
    other = next(row for row in rows if row["network"] == "WRN")
    assert (other["seeds"], other["error"]) == ("0", "not run") and "a GPU" in other["needs"]
    text = (tmp_path / "out/hinge_t1.md").read_text()
    assert "Table 3" in text


@pytest.mark.slow
def test_hinge_from_start_to_end(tmp_path):
    rows = smoke("hinge_t1", tmp_path)
    done = {row["network"]: row for row in rows if row["seeds"] == "1"}
    assert set(done) == {"ResNet20", "ResNeXt20"}
    assert abs(float(done["ResNet20"]["MACs %"]) - 45.16) < 1


def test_a_slimming_table_of_no_run_is_refused(reproduce, tmp_path):
    tables = reproduce.slimming_tables
    with pytest.raises(ArtifactError, match="nothing was measured for this table"):
        tables.write_table1(tmp_path, tmp_path / "out", tables.SCALES["paper"])
    assert not list(tmp_path.iterdir())


def test_a_scale_that_a_table_lacks_is_refused(reproduce, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", "--table", "ssr_t1", "--scale", "papr"])
    assert reproduce.main() == 1
    assert "--scale papr: ssr_t1 has none; accepted: short, smoke" in capsys.readouterr().err


@pytest.mark.slow
def test_a_table_without_runs_says_so(tmp_path):
    found = script("--table", "ssr_t1", "--scale", "smoke", "--only-collect", cwd=tmp_path)
    assert found.returncode == 1 and "nothing was measured" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_table_from_start_to_end(tmp_path):
    line = ("--table", "ssr_f56", "--scale", "smoke")
    rows = smoke("ssr_f56", tmp_path, "ssr_f5_f6")
    assert [row["run"] for row in rows] == ["AULM l2,1", "ADMM l2,1", "SGD l2,1", "AULM l2,0"]
    assert (tmp_path / "outputs/tables/ssr_f5.png").stat().st_size > 1000
    reports = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("report.json")}
    assert len(reports) == 5 and script(*line, cwd=tmp_path).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("report.json")} == reports


@pytest.mark.slow
def test_slimming_from_start_to_end(tmp_path):
    rows = smoke("ns_t1", tmp_path)
    done = [(row["pruned %"], row["penalty"]) for row in rows if row["seeds"] == "1"]
    assert done == [("0", "none"), ("0", "l1"), ("0", "TL1"), ("40", "l1"), ("40", "TL1")]
    assert all(row["error"] != "not run" for row in rows if row["seeds"] == "1")
    assert (tmp_path / "outputs/tables/ns_t1_verdicts.csv").is_file()


def test_strengths_are_chosen_on_validation_and_used_for_every_seed(reproduce, tmp_path):
    jobs = reproduce.slim_resnet20
    extent = replace(jobs.SCALES["short"], penalties=("l1", "TL1"), seeds=(0, 1))
    values = {("l1", 0.006): 70.0, ("l1", 0.012): 80.0, ("l1", 0.02): 80.0, ("TL1", 0.02): 60.0}
    for (method, lam), top1 in values.items():
        folder = tmp_path / jobs.trial(extent, method, lam).name / "finetune"
        folder.mkdir(parents=True)
        metrics = {"val_top1": top1, "top1": 100 - top1}  # the test set would choose otherwise
        (folder / "report.json").write_text(json.dumps({"metrics": metrics}))
    assert jobs.chosen(extent, tmp_path) == {"l1": 0.012, "TL1": 0.02}
    found = {job.name: job for job in jobs.judging(extent, tmp_path, "data")}
    assert {name.removeprefix("slim_resnet20/") for name in found} == {
        *("given", "seed0/no-penalty", "seed1/no-penalty", "seed0/l1", "seed1/l1"),
        *("seed0/TL1", "seed1/TL1", "strong/l1"),  # TL1 is at the strongest already
    }
    assert "regularizer.lam=0.012" in found["slim_resnet20/seed1/l1"].overrides
    assert "regularizer.lam=0.0" in found["slim_resnet20/seed1/no-penalty"].overrides
    assert "regularizer.lam=0.02" in found["slim_resnet20/strong/l1"].overrides
    assert all(job.after == "slim_resnet20/given" for job in [*found.values()][1:])
