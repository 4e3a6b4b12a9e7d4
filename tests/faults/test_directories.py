"""Directories of runs: whose they are, what is left in them, and what goes."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli.conftest import SMOKE, call
from faults.small import SMALL, STAGES, refused, told

from prunekit.errors import ArtifactError
from prunekit.runs import lock
from prunekit.runs.layout import foreign_paths
from prunekit.runs.rundir import RunDir
from prunekit.training import Checkpoint
from scripts.faults.children import Children
from scripts.faults.damage import files, flip_weights, networks

RUN = ("run", *SMALL, STAGES, "name=whole")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A directory with one finished run, `outputs/whole`; copy it before a change."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert call(RUN[0], *SMOKE, *RUN[1:]) == 0
    return place


@pytest.fixture
def whole(finished, tmp_path):
    """A copy of it in `tmp_path`, where commands run."""
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    return Path("outputs/whole")


def tree(place: Path) -> set[str]:
    """All files and folders below."""
    return {str(path.relative_to(place)) for path in place.rglob("*")}


def stamps(place: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}


@contextlib.contextmanager
def interrupt(monkeypatch, epoch: int = 1):
    """Inside it, training is interrupted after so many epochs are saved."""
    save = Checkpoint.save

    def stop(kept, state):
        save(kept, state)
        if len(state["history"]) == epoch:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", stop)
        yield


class TestLocks:
    """A lock belongs to the directory it was taken in."""

    @pytest.mark.parametrize("again", [False, True])
    def test_the_holder_notices_that_its_directory_is_gone_or_another(self, tmp_path, again):
        run = RunDir(tmp_path / "outputs/a")
        stage = run.stage("pretrain")
        with run.lock():
            stage.begin({"seed": 0}, source=None)
            kept = stage.checkpoint
            kept.save({"done": False})
            shutil.rmtree(run.path)
            with RunDir(run.path).lock() if again else contextlib.nullcontext():
                before = tree(tmp_path)
                for use in (
                    lambda: kept.save({"done": True}),
                    lambda: kept.load("cpu"),
                    lambda: stage.write_history([{"epoch": 1}]),
                    lambda: stage.note_time(),
                ):
                    with pytest.raises(ArtifactError, match="removed or replaced while"):
                        use()
                assert tree(tmp_path) == before, "nothing of it is written there"

    def test_a_live_process_ends_and_leaves_the_new_one_alone(self, tmp_path):
        """`rm -rf` under a run, and another one started in the same place."""
        last = tmp_path / "outputs/a/pretrain/last.pt"
        line = [sys.executable, "-m", "prunekit", "pretrain", *SMOKE, *SMALL, "name=a"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun = []

        def start(seed: int) -> subprocess.Popen:
            long = ("schedule.pretrain.epochs=100000", f"seed={seed}")
            begun.append(subprocess.Popen([*line, *long], cwd=tmp_path, **pipes))
            wait_for(lambda: last.exists() and begun[-1].poll() is None)
            return begun[-1]

        try:
            first = start(0)
            while (tmp_path / "outputs/a").exists():
                subprocess.run(["rm", "-rf", str(tmp_path / "outputs/a")], check=False)
            second = start(1)
            _, said = first.communicate(timeout=60)
            stamp = last.stat().st_mtime_ns
            wait_for(lambda: last.stat().st_mtime_ns > stamp)
            second.kill()
            second.wait()
        finally:
            for process in begun:
                process.kill()
                process.wait()
        assert first.returncode == 1
        assert len(said.splitlines()) == 1
        assert "outputs/a was removed or replaced while this process worked on it" in said
        stage = RunDir(tmp_path / "outputs/a").stage("pretrain")
        settings = json.loads((stage.path / "settings.json").read_text())
        assert settings.pop("format") and settings["seed"] == 1
        stage.begin(settings, source=None)
        assert torch.load(last, weights_only=True)["identity"] == stage.checkpoint.identity

    def test_it_goes_with_the_process_and_waits_where_asked(self, tmp_path):
        script = (
            "import sys, time; from pathlib import Path; from prunekit.runs import lock\n"
            "with lock.hold(Path('a')): Path('a/work').touch(); time.sleep(60)"
        )
        holder = subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path)
        try:
            wait_for(lambda: (tmp_path / "a/work").exists())
            with pytest.raises(ArtifactError, match="another process is working on"):
                lock.hold(tmp_path / "a").__enter__()
            with lock.try_hold(tmp_path / "a") as alone:
                assert not alone
            killer = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {holder.pid}"])
            began = time.monotonic()
            with lock.hold(tmp_path / "a", wait=True):
                assert time.monotonic() - began > 0.3
            killer.wait()
        finally:
            holder.kill()
            holder.wait()
        assert tree(tmp_path) == {"a", "a/work"}, "no stage was begun"

    def test_a_directory_in_which_nothing_was_done_goes(self, tmp_path):
        with lock.hold(tmp_path / "outputs/x/y"):
            assert (tmp_path / "outputs/x/y/.lock").is_file()
        assert tree(tmp_path) == set()
        (tmp_path / "mine").mkdir()
        with lock.hold(tmp_path / "mine"):
            pass
        assert tree(tmp_path) == {"mine"}


def wait_for(happened, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestFailedStarts:
    """What was refused before there was any work leaves nothing behind."""

    @pytest.mark.parametrize(
        "line",
        [
            ("pretrain", "dataset=mnist", "dataset.root=nowhere"),
            ("run", "dataset=cifar10", "dataset.root=nowhere", "name=x/y"),
            ("pretrain", "weights=nowhere.th"),
            ("pretrain", "weights=damaged.pt"),
            ("pretrain", "model.classes=7"),
            ("prune", "source=damaged.pt"),
            ("prune", "source=nowhere"),
            ("prune",),
            ("finetune", "schedule.finetune.optimizer.lr=-1"),
        ],
    )
    def test_a_command(self, cli, tmp_path, finished, line):
        shutil.copy(finished / "outputs/whole/pretrain/model.pt", tmp_path / "damaged.pt")
        flip_weights(tmp_path / "damaged.pt")
        refused(cli(*line))
        assert tree(tmp_path) == {"damaged.pt"}

    def test_a_job_of_a_sweep(self, cli, tmp_path):
        line = ("pretrain", "-m", "dataset=mnist", "dataset.root=nowhere", "seed=1,2", "name=s")
        assert cli(*line).code == 1
        left = {Path(name).name for name in tree(tmp_path) if (tmp_path / name).is_file()}
        assert left == {"multirun.yaml", "log.txt"}
        assert not list(tmp_path.rglob(".shared"))

    def test_what_was_to_be_overwritten_is_back(self, cli, whole, tmp_path):
        before = files(tmp_path)
        refused(cli(*RUN, "dataset.root=nowhere", "dataset=mnist", "overwrite=true"))
        assert files(tmp_path) == before
        assert cli(*RUN).out.count("finished before") == 4


class TestOverwrite:
    """It removes what prunekit wrote, from the first stage that differs on."""

    def test_what_does_not_differ_and_what_is_foreign_stays(self, cli, whole):
        (whole / "prune/notes.txt").write_text("mine")
        (whole / "prune/pictures").mkdir()
        before, old = stamps(whole), networks(whole)
        found = cli(*RUN, "selection.keep=0.4", "overwrite=true")
        assert told(found) == [
            f"outputs/whole/prune/{name} was not written by prunekit and stays"
            for name in ("notes.txt", "pictures")
        ]
        assert found.out.count("finished before") == 2
        assert (whole / "prune/notes.txt").read_text() == "mine"
        after, new = stamps(whole), networks(whole)
        for name in before:
            kept = "/pretrain/" in name or "/sparsify/" in name or name.endswith("notes.txt")
            assert kept == (after[name] == before[name]) or name.endswith(".lock"), name
        assert {name for name in new if new[name] != old[name]} == {
            *("prune/model.pt", "finetune/model.pt")
        }
        assert not list(whole.rglob(".former"))

    def test_with_nothing_that_differs_nothing_goes(self, cli, whole):
        before = stamps(whole)
        assert cli(*RUN, "overwrite=true").out.count("finished before") == 4
        assert stamps(whole) == before

    def test_interrupted_it_is_continued_and_ends_the_same(self, cli, whole, monkeypatch):
        other = (*RUN, "seed=1", "overwrite=true")
        with interrupt(monkeypatch):
            assert cli(*other).code == 130
        assert (whole / "pretrain/last.pt").is_file()
        assert cli(*other).code == 0
        assert cli(*RUN, "seed=1", "name=b").code == 0
        assert networks(whole) == networks(Path("outputs/b"))

    def test_killed_after_every_few_files_it_ends_the_same(self, cli, whole, tmp_path):
        other = [*SMOKE, *RUN[1:-1], "seed=1", "overwrite=true"]
        with Children() as children:
            line = ("run", *other)
            assert children.run(tmp_path, *line, "name=b").code == 0
            codes = [
                children.run(tmp_path, *line, "name=whole", kill_after_files=count).code
                for count in (1, 2, 6, 5, 100)
            ]
        assert codes == [-9] * 4 + [0]
        assert networks(whole) == networks(Path("outputs/b"))
        assert not list(whole.rglob(".former"))

    def test_the_refusal_says_what_is_at_stake_and_the_way(self, cli, whole):
        before = files(whole)
        other = ("selection.keep=0.4", "diagnose=true")
        said = refused(cli(*RUN, *other))
        reports = [
            json.loads((whole / f"{s}/report.json").read_text()) for s in ("prune", "finetune")
        ]
        lost = [f"{report['stage']} ({report['seconds']:.0f} s)" for report in reports]
        assert f"removes {', '.join(lost)}" in said
        way = "prunekit prune source=outputs/whole/sparsify name=whole-2"
        assert way in said and "selection.keep was 0.5, now 0.4" in said
        assert files(whole) == before
        assert cli(*way.split()[1:2], *SMALL, *way.split()[2:], *other).code == 0
        assert files(whole) == before and Path("outputs/whole-2/prune/model.pt").is_file()
        said = refused(cli(*RUN, "seed=1"))
        assert "source=" not in said and "removes pretrain (" in said


class TestClean:
    """Only what no run uses goes, and only what prunekit wrote."""

    SWEEP = ("run", "-m", *SMALL, "pipeline=[pretrain,sparsify]", "solver=proximal", "name=s")

    def test_shared_stages(self, cli, tmp_path):
        assert cli(*self.SWEEP, "regularizer.lam=0.1,0.2").code == 0
        assert "nothing to remove" in cli("clean").out
        entries = sorted(Path("outputs/.shared").iterdir())
        assert len(entries) == 3
        gone = next(Path("outputs/s").glob("*0.1*"))
        shutil.rmtree(gone)
        before = tree(tmp_path)
        shown = cli("clean", "--dry-run")
        assert tree(tmp_path) == before
        (line,) = (line for line in shown.out.splitlines() if "used by no run" in line)
        (entry,) = (entry for entry in entries if str(entry) in line)
        size = sum(map(len, files(entry).values()))
        assert float(line.split()[-2]) == pytest.approx(size / 1000, rel=0.02)
        (entry / "sparsify/mine.txt").write_text("mine")
        with lock.hold(entry):
            assert "is in use and stays" in cli("clean").out
            assert tree(tmp_path) == before | {str(entry / "sparsify/mine.txt")}
        assert "freed" in cli("clean", "outputs").out
        assert tree(entry) == {"sparsify", "sparsify/mine.txt"}, "what is foreign stays"
        rest = {name for name in before if not name.startswith(str(entry))}
        assert rest <= tree(tmp_path)
        assert cli(*self.SWEEP, "regularizer.lam=0.2").code == 0
        shutil.rmtree("outputs/s")
        shutil.rmtree(entry)
        assert cli("clean").code == 0
        assert not Path("outputs/.shared").exists()

    def test_shared_work_that_was_interrupted_is_wanted(self, cli, tmp_path, monkeypatch):
        with interrupt(monkeypatch):
            assert cli(*self.SWEEP, "regularizer.lam=0.1").code == 130
        before = tree(tmp_path)
        assert any(name.endswith("last.pt") for name in before)
        assert "nothing to remove" in cli("clean").out
        assert tree(tmp_path) == before

    def test_files_without_links_are_known_by_name(self, cli, monkeypatch, tmp_path):
        """Where the file system has no links, runs have copies."""

        def refuse(*_: object) -> None:
            raise OSError

        monkeypatch.setattr(os, "link", refuse)
        assert cli(*self.SWEEP, "regularizer.lam=0.1").code == 0
        assert "nothing to remove" in cli("clean", "outputs/.shared").out

    def test_parts_boards_and_what_was_set_aside(self, cli, whole, tmp_path):
        """Of processes that are gone, in runs that nobody works on."""
        before = files(tmp_path)
        gone = subprocess.Popen(["true"])
        gone.wait()
        board = Path(f"outputs/.sweep-{platform.node()}-{gone.pid}")
        alive = Path(f"outputs/.sweep-{platform.node()}-{os.getpid()}")
        other = Path(f"outputs/.sweep-another.machine-{gone.pid}")
        for place in (board, alive, other):
            place.mkdir()
            (place / "0.json").write_text("{}")
        waste = [whole / "prune" / name for name in (".model.pt.part7", "model.pt.damaged-2")]
        waste.append(whole / "finetune/last.pt.foreign")
        foreign_ones = [whole / "prune/.notes.part1", whole / "mine.damaged", whole / "last.pt"]
        for file in (*waste, *foreign_ones):
            file.write_bytes(b"x" * 1000)
        found = cli("clean")
        assert found.code == 0 and "3 kB freed" in found.out
        assert not any(file.exists() for file in (board, *waste))
        assert all(file.exists() for file in (alive, other, *foreign_ones))
        assert {key: files(tmp_path)[key] for key in before} == before

    def test_what_it_cannot_take(self, cli):
        assert "nowhere is no directory" in refused(cli("clean", "nowhere"))


class TestEarlier:
    """Directories of earlier versions: reports without digests, checkpoints without identity."""

    def aged(self, stage: Path) -> None:
        for name, keys in (("report.json", ("files", "digest")), ("settings.json", ("format",))):
            if (stage / name).is_file():
                held = json.loads((stage / name).read_text())
                kept = {key: value for key, value in held.items() if key not in keys}
                (stage / name).write_text(json.dumps(kept))

    def test_finished_ones_are_read_with_a_note(self, cli, whole):
        for stage in whole.iterdir():
            self.aged(stage)
        before = files(whole)
        assert any(
            "4 of 4 finished stages were made by an earlier version" in line
            for line in told(cli("report", "--no-html"))
        )
        found = cli("prune", *SMALL, "source=outputs/whole/sparsify", "name=b")
        lines = told(found)
        assert any("sparsify/model.pt" in line and "carries no digest" in line for line in lines)
        report = json.loads(Path("outputs/b/prune/report.json").read_text())
        assert any("carries no digest" in note for note in report["notes"])
        said = refused(cli(*RUN))
        assert "was finished by an earlier version" in said and "source=" in said
        assert files(whole) == before
        assert cli(*RUN, "overwrite=true").code == 0

    def test_unfinished_ones_are_refused(self, cli, monkeypatch):
        line = ("pretrain", *SMALL, "schedule.pretrain.epochs=3", "name=a")
        with interrupt(monkeypatch):
            assert cli(*line).code == 130
        stage = Path("outputs/a/pretrain")
        held = torch.load(stage / "last.pt", weights_only=True)
        del held["identity"]
        torch.save(held, stage / "last.pt")
        before = files(stage)
        assert "last.pt was written by an earlier version" in refused(cli(*line))
        self.aged(stage)
        said = refused(cli(*line))
        assert "was begun by an earlier version" in said and "overwrite=true" in said
        assert files(stage).keys() == before.keys()
        assert cli(*line, "overwrite=true").code == 0


def test_every_file_that_a_stage_leaves_is_known(cli, tmp_path):
    """A new one belongs into prunekit/runs/layout.py: else it is not checked, and never removed."""
    shares = ("sensitivity.shares=[0.5]", "sensitivity.timing=null", "features.perplexity=5")
    every = "pipeline=[pretrain,sparsify,sensitivity,prune,features,finetune,export,measure]"
    export = ("export=torch",)
    found = cli("run", *SMALL, every, *shares, *export, "name=a", "quantize=none")
    assert found.code == 0, found.err
    stages = [file.parent for file in Path("outputs/a").glob("*/report.json")]
    assert len(stages) == 8
    for stage in stages:
        assert foreign_paths(stage) == []
        digests = json.loads((stage / "report.json").read_text())["files"]
        assert set(digests) == {file.name for file in stage.iterdir()} - {"report.json"}
