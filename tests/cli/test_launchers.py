"""Several jobs at once, searches, and what a person sees of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from prunekit.cli.sweep import Swept, best, headline, rows
from prunekit.runs.job_status import DONE, FAILED, Board, Notice, Status

TOYS = (
    *("dataset=synthetic", "schedule=smoke", "runtime.device=cpu", "latency.runs=5"),
    *("latency.warmup=1", "dataset.train=96", "dataset.val=32", "dataset.test=40"),
    *("model.widths=[4,6,12]", "solver=proximal", "selection=per_layer"),
)
JOBS = ("run", "-m", *TOYS, "name=s", "launch=joblib", "regularizer.lam=0.01,0.2,0.5")


def line(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "prunekit", *arguments]


def job(place: Path, lam: str) -> Path:
    """The directory of the job with this strength."""
    return next(place.glob(f"outputs/s/*regularizer.lam={lam},*"))


@pytest.mark.slow
def test_jobs_at_once_share_what_they_can(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    done = subprocess.run(line(*JOBS), cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/s/*/measure/report.json"))) == 3
    assert len(list(tmp_path.glob("outputs/.shared/pretrain-*"))) == 1
    models = [job(tmp_path, lam) / "pretrain/model.pt" for lam in ("0.01", "0.2", "0.5")]
    assert models[0].samefile(models[1]) and models[0].samefile(models[2])
    logs = "".join((job(tmp_path, lam) / "log.txt").read_text() for lam in ("0.01", "0.2", "0.5"))
    assert logs.count("shared with another run") == 2
    assert "#2  regularizer.lam=0.5  done" in done.stdout
    assert not list(tmp_path.glob("outputs/.sweep-*"))


@pytest.mark.slow
@pytest.mark.parametrize("alone", [True, False])
def test_a_killed_sweep_is_continued_by_the_same_command(tmp_path, alone):
    """At once: jobs that outlive a sweep which was killed `alone` are waited for, and end soon."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    slow = (*JOBS, "schedule.sparsify.epochs=40")
    first = subprocess.Popen(
        line(*slow), cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: list(tmp_path.glob("outputs/.shared/sparsify-*/sparsify/last.pt")))
    finally:
        (os.kill if alone else os.killpg)(first.pid, signal.SIGKILL)
        first.wait()
    assert not list(tmp_path.glob("outputs/s/*/measure/report.json"))
    pretrained = next(tmp_path.glob("outputs/.shared/pretrain-*/pretrain/model.pt"))
    made = pretrained.stat().st_mtime_ns
    again = subprocess.run(line(*slow), cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert len(list(tmp_path.glob("outputs/s/*/measure/report.json"))) == 3
    assert pretrained.stat().st_mtime_ns == made, "computed once, before and after the kill"
    assert not list(tmp_path.glob("outputs/.sweep-*")), "the dead one's board is gone too"
    with pytest.raises(ProcessLookupError):  # nobody of the first sweep is left
        os.killpg(first.pid, signal.SIGKILL)


def wait_for(condition, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_search_has_two_objectives_and_repeats_itself(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    search = line("run", "search=lam_tpe", "hydra.sweeper.n_trials=2", *TOYS, "name=s")
    found = []
    for _ in range(2):
        done = subprocess.run(search, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(OmegaConf.load(tmp_path / "outputs/optimization_results.yaml"))
    assert found[0] == found[1]
    runs = {file.parents[1] for file in tmp_path.glob("outputs/s/*/measure/report.json")}
    assert len(runs) == 2, "the second time nothing new was tried"
    metrics = [json.loads((run / "measure/report.json").read_text())["metrics"] for run in runs]
    reached = {(m["val_top1"], m["macs_ratio"]) for m in metrics}
    assert all(tuple(solution["values"]) in reached for solution in found[0].solutions)


def test_a_launcher_that_is_not_installed_says_how_to_get_it(cli, monkeypatch):
    found = cli("run", "-m", "launch=ray", "seed=1,2")
    if found.code == 0:
        pytest.skip("it is installed")
    assert "hydra/launcher=ray" in found.err and "pip install 'prunekit[ray]'" in found.err


def test_an_objective_must_be_reported(cli):
    found = cli("pretrain", "objectives=[speedd]")
    assert found.code == 1 and "objectives names 'speedd'" in found.err


def config(task: list[str], **sweeper) -> object:
    sweeper = {"_target_": "BasicSweeper", "params": None, **sweeper}
    return OmegaConf.create({"hydra": {"sweeper": sweeper, "overrides": {"task": task}}})


def test_what_a_sweep_changes_and_how_many_jobs_that_makes():
    swept = Swept.of(config(["name=s", "seed=1,2", "regularizer.lam=0.1,0.2,0.3"]))
    assert swept == Swept(frozenset({"seed", "regularizer.lam"}), 6)
    assert swept.told(["name=s", "seed=1", "regularizer.lam=0.1"]) == "seed=1, regularizer.lam=0.1"
    assert swept.told(["name=s"]) == "name=s"
    searched = config([], params={"regularizer.lam": "tag(log, interval(1e-5, 1e-1))"}, n_trials=7)
    assert Swept.of(searched) == Swept(frozenset({"regularizer.lam"}), 7)


def test_the_table_of_a_sweep():
    jobs = {
        0: Status("a", ("seed=1",), DONE, "measure", top1=91.0, val_top1=90.0),
        1: Status("b", ("seed=2",), DONE, "measure", top1=92.0, val_top1=89.0),
        2: Status("c", ("seed=3",), FAILED, "prune", error="no room"),
        3: Status("d", ("seed=4",), stage="sparsify", step="sparsify 2/3, 50%", top1=95.0),
    }
    assert best(jobs) == 0, "by images held out, among finished jobs"
    assert headline(jobs, 5) == "2 of 5 done, 1 at work, 1 failed"
    swept = Swept(frozenset({"seed"}), 5)
    table = rows(jobs, swept)
    assert table[0] == ["#0", "seed=1", "done", "measure", "", "91.00", "best"]
    assert table[2][4] == "no room" and table[3][4] == "sparsify 2/3, 50%"


def test_notices_are_read_where_the_board_is(tmp_path):
    board = Board(tmp_path)
    notice = Notice(board, 3, Status("place"))
    notice.stage("pretrain")
    notice.progress("pretrain 1/2", 0, 10)
    assert board.read()[3].step == "pretrain 1/2, 0%"
    notice.progress("pretrain 1/2", 1, 10)
    assert board.read()[3].step == "pretrain 1/2, 0%", "not twice within half a second"
    notice.stage("pretrain", {"top1": 50.0, "val_top1": None})
    assert board.read()[3] == Status("place", stage="pretrain", top1=50.0)
    (tmp_path / "4.json").write_text("{")
    assert list(board.read()) == [3], "a file that cannot be read is left for later"
