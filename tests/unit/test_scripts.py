"""The job lists behind the tables, and one table from start to end."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.build import build
from prunekit.config import config_dir, resolve
from prunekit.stages.pipeline import check, pipeline

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TABLES = ("ssr_t1", "ssr_f3", "ssr_f56", "ssr_lambda")


@pytest.fixture(scope="module")
def reproduce():
    """The script as a module, with its neighbours importable."""
    sys.path.insert(0, str(SCRIPTS))
    yield importlib.import_module("reproduce_tables")
    sys.path[:] = [place for place in sys.path if place != str(SCRIPTS)]


def lists(reproduce):
    scales = reproduce.SCALES.items()
    return {(t, name): reproduce.JOBS[t](scale) for t in TABLES for name, scale in scales}


def test_every_table_has_jobs_and_a_writer(reproduce):
    assert set(reproduce.JOBS) == set(reproduce.WRITE) == set(TABLES)
    assert all(lists(reproduce).values())


def test_names_are_unique(reproduce):
    for key, jobs in lists(reproduce).items():
        assert len({job.name for job in jobs}) == len(jobs), key


def test_what_a_job_comes_after_is_there_and_comes_before(reproduce):
    for key, jobs in lists(reproduce).items():
        seen: set[str] = set()
        for job in jobs:
            assert job.after is None or job.after in seen, (key, job.name)
            seen.add(job.name)


def test_a_job_starts_from_a_source_unless_it_trains_the_dense_network(reproduce):
    for jobs in lists(reproduce).values():
        for job in jobs:
            assert (job.after is None) == ("pretrain" in job.stages)


def test_tables_that_share_a_job_agree_about_it(reproduce):
    for scale in reproduce.SCALES.values():
        jobs = [job for table in TABLES for job in reproduce.JOBS[table](scale)]
        assert len(set(jobs)) == len({job.name for job in jobs})


def shapes(reproduce, scale: str):
    """One job of each kind: the same overrides but for seeds and widths."""
    found = {}
    for table in TABLES:
        for job in reproduce.JOBS[table](reproduce.SCALES[scale]):
            loose = ("seed=", "selection.widths=", "model.widths=")
            kind = tuple(word for word in job.overrides if not word.startswith(loose))
            found[job.stages, kind] = job
    return list(found.values())


@pytest.mark.parametrize("scale", ["smoke", pytest.param("short", marks=pytest.mark.slow)])
def test_every_kind_of_job_composes_and_builds(reproduce, tmp_path, scale):
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        for job in shapes(reproduce, scale):
            line = [word for word in job.command(str(tmp_path)) if not word.startswith("source=")]
            settings = resolve(compose(config_name="run", overrides=line))
            names = pipeline(settings)
            assert names == job.stages, job.name
            check(settings, names)
            assert build(settings["dataset"], "dataset").shape == (1, 28, 28)
    GlobalHydra.instance().clear()


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(SCRIPTS / "reproduce_tables.py"), *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_table_without_runs_says_so(tmp_path):
    found = script("--table", "ssr_t1", "--scale", "smoke", "--only-collect", cwd=tmp_path)
    assert found.returncode == 1 and "nothing was measured" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_table_from_start_to_end(tmp_path):
    line = ("--table", "ssr_f56", "--scale", "smoke")
    found = script(*line, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    with open(tmp_path / "outputs/tables/ssr_f5_f6.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["AULM l2,1", "ADMM l2,1", "SGD l2,1", "AULM l2,0"]
    assert (tmp_path / "outputs/tables/ssr_f5.png").stat().st_size > 1000
    reports = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("report.json")}
    assert len(reports) == 5 and script(*line, cwd=tmp_path).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("report.json")} == reports
