"""Jobs behind a table: what runs at the same time, and what runs alone."""

from __future__ import annotations

import threading
import time

import pytest

from scripts.reproduce import jobs
from scripts.reproduce.jobs import Job, run_all


@pytest.fixture
def started(monkeypatch):
    """The jobs in the order of their starts, each with those that were running then."""
    record, running, lock = [], [], threading.Lock()

    def run_one(job, root, more):
        with lock:
            record.append((job.name, job.stages, tuple(running)))
            running.append(job.name)
        time.sleep(0.01)
        with lock:
            running.remove(job.name)
        return int(job.name == "broken")

    monkeypatch.setattr(jobs, "run_one", run_one)
    return record


def job(name, *stages, after=None):
    return Job(name, (), stages, after)


def test_networks_are_timed_in_the_end_one_at_a_time(started, tmp_path):
    chain = [
        job("dense", "pretrain"),
        *(job(name, "prune", "measure", after="dense") for name in ("a", "b", "c")),
        job("only", "measure", after="a"),
    ]
    assert run_all(chain, tmp_path, 2, ()) == []
    timed = [one for one in started if "measure" in one[1]]
    assert [stages for _, stages, _ in timed] == [("measure",)] * 4
    assert all(not others for *_, others in timed)
    assert started[-4:] == timed and {one[0] for one in timed} == {"a", "b", "c", "only"}
    assert any(others for *_, others in started), "the others run two at a time"


def test_what_waits_for_a_failed_job_is_neither_run_nor_timed(started, tmp_path):
    chain = [
        job("broken", "prune", "measure"),
        job("later", "finetune", "measure", after="broken"),
        job("fine", "prune", "measure"),
    ]
    assert sorted(run_all(chain, tmp_path, 2, ())) == ["broken", "later"]
    assert [(name, stages) for name, stages, _ in started if "measure" in stages] == [
        ("fine", ("measure",))
    ]
