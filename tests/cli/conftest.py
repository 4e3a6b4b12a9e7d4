"""Commands run in this process, in an empty directory, on toy images."""

from __future__ import annotations

import logging
import os
import sys
from dataclasses import dataclass

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from prunekit.cli import main

SMOKE = (
    "dataset=synthetic",
    "schedule=smoke",
    "runtime.device=cpu",
    "runtime.threads=1",
    "latency.runs=5",
    "latency.warmup=1",
)


@dataclass(frozen=True)
class Result:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def call(*arguments: str) -> int:
    """Run a command; returns the exit code and leaves no trace in this process."""
    argv, handlers = sys.argv, list(logging.getLogger().handlers)
    level, threads = logging.getLogger().level, torch.get_num_threads()
    try:
        main(arguments)
        return 0
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = argv
        logging.getLogger().handlers[:] = handlers
        logging.getLogger().setLevel(level)
        GlobalHydra.instance().clear()
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Call as `cli("run", "seed=1")`: in `tmp_path`, with the smoke settings put in front."""
    monkeypatch.chdir(tmp_path)

    def run(command: str, *overrides: str, smoke: bool = True) -> Result:
        capfd.readouterr()
        tool = command in ("report", "clean")
        code = call(command, *(SMOKE if smoke and not tool else ()), *overrides)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory with one finished run, `outputs/whole`, made once a module; do not change it."""
    place, before = tmp_path_factory.mktemp("finished"), os.getcwd()
    os.chdir(place)
    try:
        assert call("run", *SMOKE, "name=whole") == 0
    finally:
        os.chdir(before)
    return place


@pytest.fixture
def go(finished, monkeypatch, cli):
    """Run a command where the finished run is; returns what it printed."""

    def run(*arguments, code=0):
        monkeypatch.chdir(finished)
        found = cli(*arguments)
        assert found.code == code, found.err
        return found.err if code else found.out

    return run
