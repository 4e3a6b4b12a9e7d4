"""Bad input: one line that names value, place and way out; nothing is lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from cli.conftest import SMOKE

from prunekit.models import LeNet5, resnet20
from prunekit.surgery import save_model


def refused(result, *parts: str) -> str:
    """Check that a command failed with one line, which holds the parts."""
    lines = result.err.splitlines()
    assert result.code not in (0, None), result.out
    assert len(lines) == 1, result.err
    assert lines[0].startswith("prunekit: ")
    for part in parts:
        assert part in lines[0]
    return lines[0]


def snapshot(place: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time of change and its content."""
    return {
        str(file.relative_to(place)): (file.stat().st_mtime_ns, file.read_bytes())
        for file in sorted(place.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["root="], ["root=''", "is empty"]),
        (["root=''"], ["root=''", "is empty"]),
        (["root=null"], ["root=None", "is empty"]),
        (["name=''"], ["name=''", "is empty"]),
        (["-m", "root=''", "seed=1,2"], ["root=''", "is empty"]),
        (["hydra.run.dir=/"], ["would write to /;", "root=..."]),
        (["hydra.run.dir=."], ["hydra.run.dir", "root=... and name=..."]),
    ],
)
def test_nothing_is_written_where_no_name_says_so(cli, tmp_path, overrides, parts):
    """An empty root would be that of the file system, and so is the parent of /."""
    before = {*os.listdir("/")}
    assert "full_key" not in refused(cli("pretrain", *overrides), *parts)
    assert {*os.listdir("/")} == before and not [*tmp_path.iterdir()]


def test_an_unknown_command_names_the_known_ones(cli):
    found = cli("prun", smoke=False)
    assert "prune" in refused(found, "'prun'")
    assert found.code == 2


@pytest.mark.parametrize(
    "dataset", ["mnist", "cifar10", "svhn", "image_folder", "tiny_imagenet", "cub200"]
)
def test_missing_data_say_what_to_set(cli, dataset):
    refused(
        cli("pretrain", f"dataset={dataset}", "dataset.root=nowhere"), "nowhere", "dataset.root="
    )


def test_a_model_that_does_not_fit_the_data(cli):
    refused(cli("run", "model.classes=7"), "model.classes=7", "10 classes", "model.classes=10")
    refused(cli("run", "model=resnet20"), "ResNet", "(1, 28, 28)", "another model or dataset")
    refused(cli("run", "dataset.channels=3"), "it reads 1 channels", "set model.in_channels=3")


def test_a_missing_source_or_checkpoint(cli):
    refused(cli("prune", "source=nowhere/model.pt"), "nowhere/model.pt", "give a model.pt")
    refused(cli("pretrain", "weights=nowhere.th"), "nowhere.th", "does not exist")
    refused(cli("run", "source=nowhere"), "source=nowhere", "pipeline=")


def test_a_failed_try_does_not_bind_the_next(cli):
    """The message says what to change; the changed command must not be refused for the change."""
    refused(cli("pretrain", "weights=nowhere.th"))
    assert cli("pretrain").code == 0


def test_a_stage_without_its_predecessor(cli):
    refused(cli("prune"), "prune", "holds none", "prunekit pretrain or sparsify", "source=")
    assert cli("pretrain").code == 0
    assert cli("prune", "criterion=l1_norm", "selection=per_layer").code == 0


def test_a_stage_does_not_skip_an_unfinished_predecessor(cli, tmp_path):
    assert cli("pretrain", "name=a").code == 0
    (tmp_path / "outputs/a/sparsify").mkdir()
    (tmp_path / "outputs/a/sparsify/last.pt").write_bytes(b"")
    refused(cli("prune", "name=a", "criterion=l1_norm"), "a/sparsify", "unfinished", "run sparsify")


def test_a_source_inside_its_own_stage_survives_overwrite(cli, tmp_path, finished):
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    before = snapshot(tmp_path / "outputs")
    source = "source=outputs/whole/finetune"
    refused(cli("finetune", "name=whole", source, "overwrite=true"), source, "choose name=")
    assert snapshot(tmp_path / "outputs") == before


def test_other_settings_are_refused_and_change_nothing(cli, tmp_path, finished):
    shutil.copytree(finished / "outputs", tmp_path / "outputs")
    before = snapshot(tmp_path / "outputs")
    changed = ("name=whole", "schedule.pretrain.batch=32", "seed=3")
    refused(
        cli("run", *changed),
        "outputs/whole/pretrain",
        "seed was 0, now 3",
        "schedule.pretrain.batch was 64, now 32",
        "name=",
        "overwrite=true",
    )
    assert snapshot(tmp_path / "outputs") == before


def test_an_unreachable_budget(cli, tmp_path, finished):
    source = f"source={finished / 'outputs/whole/pretrain'}"
    budget = ("criterion=l1_norm", "selection=macs", "selection.keep=1000")
    refused(cli("prune", source, *budget), "selection.keep=1000", "16026", "min_keep")
    assert not list(tmp_path.rglob("model.pt"))
    assert cli("prune", source, *budget, "selection.keep=16026").code == 0


class TestFiles:
    """Files that are damaged, foreign, or meant to harm."""

    def test_a_checkpoint_of_another_network(self, cli, tmp_path):
        torch.save(resnet20().state_dict(), tmp_path / "other.th")
        refused(cli("pretrain", "weights=other.th"), "other.th", "another network", "LeNet5")

    def test_scores_of_another_network(self, cli, tmp_path, finished):
        arch = {"_target_": "prunekit.models.LeNet5", "widths": [4, 5, 6]}
        save_model(tmp_path / "small.pt", LeNet5(widths=(4, 5, 6)), arch)
        scores = finished / "outputs/whole/sparsify/scores.pt"
        found = cli("prune", "source=small.pt", f"criterion.path={scores}")
        refused(found, "scores.pt", "20 scores for conv1", "another network")

    @pytest.mark.parametrize("damage", ["truncated", "text", "empty", "foreign"])
    @pytest.mark.parametrize("key", ["weights", "source", "criterion.path"])
    def test_damaged_files(self, cli, tmp_path, finished, key, damage):
        run = finished / "outputs/whole"
        good = run / ("sparsify/scores.pt" if key == "criterion.path" else "pretrain/model.pt")
        bad = tmp_path / "bad.pt"
        if damage == "foreign":
            torch.save({"numbers": [1, 2]}, bad)
        else:
            content = {"text": b"hello", "empty": b""}
            bad.write_bytes(content.get(damage, good.read_bytes()[:3000]))
        source = () if key != "criterion.path" else (f"source={run / 'sparsify'}",)
        stage = "pretrain" if key == "weights" else "prune"
        refused(cli(stage, f"{key}=bad.pt", *source), "bad.pt")

    @pytest.mark.parametrize("key", ["weights", "source", "criterion.path", "last.pt"])
    def test_a_pickle_that_wants_to_run_code(self, cli, tmp_path, finished, key):
        marker = tmp_path / "executed"
        torch.save(Bomb(str(marker)), tmp_path / "bomb.pt")
        (tmp_path / "raw.pt").write_bytes(pickle.dumps(Bomb(str(marker))))
        for file in ("bomb.pt", "raw.pt"):
            refused(self._feed(cli, tmp_path, finished, key, file))
            assert not marker.exists()

    def _feed(self, cli, tmp_path, finished, key, file):
        if key == "weights":
            return cli("pretrain", f"weights={file}")
        if key == "source":
            return cli("prune", f"source={file}")
        if key == "criterion.path":
            source = finished / "outputs/whole/sparsify"
            return cli("prune", f"source={source}", f"criterion.path={file}")
        stage = tmp_path / "outputs/planted/pretrain"
        if not stage.exists():
            stage.mkdir(parents=True)
            shutil.copy(finished / "outputs/whole/pretrain/settings.json", stage)
        shutil.copy(file, stage / "last.pt")
        return cli("pretrain", "name=planted")

    @pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b'{"stage": "prune"}', b"{}"])
    def test_a_damaged_report(self, cli, tmp_path, finished, content):
        """Without it the stage is not known to be finished: it is set aside and computed anew."""
        shutil.copytree(finished / "outputs", tmp_path / "outputs")
        stage = tmp_path / "outputs/whole/pretrain"
        before = (stage / "model.pt").read_bytes()
        (stage / "report.json").write_bytes(content)
        found = cli("pretrain", "name=whole")
        assert found.code == 0 and found.err.splitlines() == [
            "outputs/whole/pretrain/report.json is damaged and was set aside as "
            "report.json.damaged; pretrain is computed anew"
        ]
        assert (stage / "report.json.damaged").read_bytes() == content
        assert (stage / "model.pt").read_bytes() == before
        assert "finished before" in cli("run", "name=whole").out

    @pytest.mark.parametrize("content", [b"{", b"[]", None])
    def test_damaged_settings_of_a_finished_stage(self, cli, tmp_path, finished, content):
        """Its report knows them too."""
        shutil.copytree(finished / "outputs", tmp_path / "outputs")
        recorded = tmp_path / "outputs/whole/pretrain/settings.json"
        before = recorded.read_bytes()
        recorded.unlink()
        if content is not None:
            recorded.write_bytes(content)
        found = cli("pretrain", "name=whole")
        assert found.code == 0 and "finished before" in found.out
        (line,) = found.err.splitlines()
        assert "settings.json" in line and "written anew" in line
        assert recorded.read_bytes() == before
        assert cli("pretrain", "name=whole").err == ""

    @pytest.mark.parametrize("content", [b"{", b"[]", None])
    def test_damaged_settings_of_unfinished_work(self, cli, tmp_path, finished, content):
        shutil.copytree(finished / "outputs", tmp_path / "outputs")
        recorded = tmp_path / "outputs/whole/pretrain/settings.json"
        (recorded.parent / "report.json").unlink()
        recorded.unlink()
        if content is not None:
            recorded.write_bytes(content)
        before = snapshot(tmp_path / "outputs")
        refused(cli("pretrain", "name=whole"), "settings.json", "overwrite=true")
        assert snapshot(tmp_path / "outputs") == before
        assert cli("pretrain", "name=whole", "overwrite=true").code == 0

    def test_a_truncated_checkpoint_of_training(self, cli, tmp_path):
        assert cli("pretrain", "name=a").code == 0
        stage = tmp_path / "outputs/a/pretrain"
        whole = (stage / "model.pt").read_bytes()
        (stage / "report.json").unlink()
        (stage / "last.pt").write_bytes(whole[:2000])
        found = cli("pretrain", "name=a")
        line = "outputs/a/pretrain/last.pt is damaged and was set aside as last.pt.damaged; "
        assert found.code == 0 and f"{line}training starts anew" in found.err + found.out
        assert (stage / "last.pt.damaged").read_bytes() == whole[:2000]
        assert (stage / "model.pt").read_bytes() == whole

    def test_a_stage_whose_model_is_gone(self, cli, tmp_path, finished):
        shutil.copytree(finished / "outputs", tmp_path / "outputs")
        model = tmp_path / "outputs/whole/pretrain/model.pt"
        before = model.read_bytes()
        model.unlink()
        refused(cli("sparsify", "name=whole"), "pretrain/model.pt", "run the stage that makes it")
        found = cli("pretrain", "name=whole")
        assert found.code == 0 and "model.pt is gone; pretrain is computed anew" in found.err
        assert model.read_bytes() == before


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class TestTraining:
    """Training that cannot go on."""

    def test_a_loss_that_is_not_finite_stops_at_the_last_good_epoch(self, cli, tmp_path):
        """The rate rises a billionfold after the first epoch."""
        steps = "{_target_: prunekit.training.Steps, milestones: [1], by: 1e30}"
        blown = ("name=a", "schedule.pretrain.epochs=3", f"schedule.pretrain.decay={steps}")
        # the keys of the schedule's own decay are merged in, so they are taken out
        gone = ("~schedule.pretrain.decay", f"+schedule.pretrain.decay={steps}")
        found = cli("pretrain", *blown[:2], *gone)
        refused(found, "loss is", "epoch 2", "learning rate 5e+28", "lower the rate or set clip")
        kept = torch.load(tmp_path / "outputs/a/pretrain/last.pt", weights_only=True)
        assert len(kept["history"]) == 1
        assert all(tensor.isfinite().all() for tensor in kept["model"].values())
        assert not (tmp_path / "outputs/a/pretrain/report.json").exists()

    def test_without_validation_data_too(self, cli, tmp_path):
        # the only step makes the weights infinite
        huge = [f"schedule.pretrain.optimizer.{key}" for key in ("lr=1e38", "weight_decay=1e30")]
        refused(
            cli("pretrain", "dataset.val=0", "dataset.train=64", *huge), "loss is nan", "epoch 1"
        )
        assert not list(tmp_path.rglob("*.pt"))


def test_one_bad_job_of_a_sweep_does_not_stop_the_others(cli, tmp_path):
    rates = "schedule.pretrain.optimizer.lr=-1,0.01,1e30"
    found = cli("run", "-m", "name=sweep", "pipeline=[pretrain]", rates)
    assert found.code == 1
    *failures, last = found.err.splitlines()
    assert len(failures) == 2 and all(line.startswith("prunekit: ") for line in failures)
    assert "lr=-1" in failures[0] and "Invalid learning rate" in failures[0]
    assert "lr=1e+30" in failures[1] and "loss is" in failures[1]
    assert (
        "2 of 3 jobs failed" in last
        and "lr=-1" in last
        and "lr=1e+30" in last
        and "0.01" not in last
    )
    assert [file.parents[1].name for file in tmp_path.glob("outputs/sweep/*/*/report.json")] == [
        path.name for path in (tmp_path / "outputs/sweep").iterdir() if "lr=0.01" in path.name
    ]


def command(*overrides: str) -> list[str]:
    return [sys.executable, "-m", "prunekit", *overrides[:1], *SMOKE, *overrides[1:]]


def test_two_processes_on_one_run_directory(tmp_path):
    """The second says so and leaves; the first, paused meanwhile, finishes."""
    line = command("pretrain", "name=a", "schedule.pretrain.epochs=12")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen(line, cwd=tmp_path, **pipes)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "outputs/a/pretrain/last.pt").exists():
            assert first.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        first.send_signal(signal.SIGCONT)
        out, _ = first.communicate(timeout=120)
    finally:
        first.kill()
        first.wait()
    assert second.returncode == 1
    assert len(second.stderr.splitlines()) == 1
    assert "outputs/a" in second.stderr and "another process" in second.stderr
    assert first.returncode == 0 and "pretrain" in out
    rows = (tmp_path / "outputs/a/pretrain/metrics.csv").read_text().splitlines()
    assert len(rows) == 13


@pytest.mark.parametrize(
    "size", [200_000, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 2_000_000))]
)
def test_a_full_disk_leaves_no_half_file(cli, tmp_path, size):
    """Settings, checkpoint and model are cut off in turn; then the same command continues."""
    script = (
        "import resource, signal, sys; from prunekit.cli import main; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size})); main(sys.argv[1:])"
    )
    line = [sys.executable, "-c", script, "pretrain", *SMOKE, "name=a"]
    found = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 1, found.stderr
    assert len(found.stderr.splitlines()) == 1, found.stderr
    assert "could not be written" in found.stderr and "free space" in found.stderr
    stage = tmp_path / "outputs/a/pretrain"
    for file in stage.glob("*"):
        assert file.name == "settings.json"
        json.loads(file.read_text())
    assert cli("pretrain", "name=a").code == 0


def test_a_place_that_cannot_be_written(cli, tmp_path):
    (tmp_path / "file").write_text("in the way")
    refused(cli("pretrain", "root=file"), "file/", "Not a directory")
