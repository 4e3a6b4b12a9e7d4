"""A run that is killed and started again ends with the same numbers, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from prunekit.training.loop import _Trainer
from scripts.faults.children import Children, Command
from scripts.faults.results import result

TINY = (
    "dataset=synthetic",
    "dataset.train=200",
    "dataset.val=40",
    "dataset.test=60",
    "dataset.crop=2",
    "model.widths=[6,8,20]",
    "schedule=smoke",
    *(f"schedule.{stage}.epochs=3" for stage in ("pretrain", "sparsify", "finetune")),
    *(f"schedule.{stage}.batch=32" for stage in ("pretrain", "sparsify", "finetune")),
    "runtime.device=cpu",
    "runtime.threads=1",
    "latency.runs=5",
    "latency.warmup=1",
    "latency.seconds=0.5",
    "selection=per_layer",
)
BETWEEN = (
    "{_target_: prunekit.training.Schedule, epochs: 1, batch: 32, "
    "optimizer: {_target_: torch.optim.SGD, _partial_: true, lr: 0.01, momentum: 0.9}}"
)
# five steps an epoch and updates every four: an epoch ends in the middle of the inner loop
RUNS = {
    "aulm": ("regularizer.lam=0.02", "solver=aulm", "solver.inner=4"),
    "layerwise": ("solver=admm", "solver.inner=3", "order=layerwise", f"order.between={BETWEEN}"),
    "proximal": (
        *("model=resnet20", "dataset.channels=3", "dataset.image_size=8", "~model.widths"),
        *("regularizer=slim_l1", "solver=proximal", "order.norms=frozen"),
    ),
    "distilled": ("distill=standard", "regularizer.lam=0.02"),
}


class Driver:
    """The process that forks and kills runs in one folder."""

    def __init__(self, place: Path, children: Children) -> None:
        self.place, self.children, self.seconds = place, children, {}

    def attempt(
        self, name: str, kind: str, seconds: float | None = None, **trouble: int
    ) -> tuple[int, float]:
        """Start the run `name`; it is killed after so many seconds, or by the trouble."""
        overrides = [*TINY, *RUNS[kind]]
        gone = [key[1:] for key in overrides if key.startswith("~")]
        kept = [key for key in overrides if key.split("=")[0] not in gone and key[0] != "~"]
        command = Command(["run", *kept, f"name={name}"], trouble, seconds=seconds)
        (ended,) = self.children.run_all(self.place, [command])
        assert ended.code in (0, -9), ended.err
        return ended.code, ended.seconds

    def result(self, name: str) -> dict[str, object]:
        return result(self.place / "outputs" / name)


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """One process for all tests here; each kind of run is done once without interruption."""
    with Children() as children:
        yield Driver(tmp_path_factory.mktemp("killed"), children)


def reference(driver: Driver, kind: str) -> tuple[dict[str, object], float]:
    """What the run gives when nobody kills it, and how long it takes."""
    if kind not in driver.seconds:
        code, driver.seconds[kind] = driver.attempt(f"whole-{kind}", kind)
        assert code == 0
    return driver.result(f"whole-{kind}"), driver.seconds[kind]


def same(found: dict[str, object], expected: dict[str, object]) -> None:
    assert set(found) == set(expected)
    assert [key for key in expected if found[key] != expected[key]] == []


def test_the_reference_is_not_trivial(driver):
    """Comparing would find a difference if there were one."""
    expected, _ = reference(driver, "aulm")
    assert {"pretrain/model.pt", "sparsify/scores.pt", "prune/plan.json"} <= set(expected)
    assert len(expected["sparsify/metrics.csv"]) == 3
    assert "last.pt" not in "".join(expected)
    dense, tuned = (expected[f"{stage}/report.json"]["metrics"] for stage in ("prune", "finetune"))
    assert dense["loss"] != tuned["loss"] and {"top1", "macs", "nonzero"} <= set(dense)


def kill_after_files(driver: Driver, kind: str, limits: tuple[int, ...]) -> None:
    """One run, killed right after so many files, in turn, until it is finished."""
    expected, _ = reference(driver, kind)
    name = f"files-{kind}-{len(limits)}"
    for tries in range(200):
        if driver.attempt(name, kind, kill_after_files=limits[tries % len(limits)])[0] == 0:
            break
    assert 2 <= tries < 199
    same(driver.result(name), expected)


@pytest.mark.parametrize("kind", ["aulm", "layerwise"])
def test_killed_after_every_few_files(driver, kind):
    kill_after_files(driver, kind, (9, 14, 11))


def kill_at_random(driver: Driver, kind: str, points: int, seed: int) -> None:
    """Kill fresh runs once each, at times drawn over the whole duration, and let them finish."""
    expected, seconds = reference(driver, kind)
    draw = random.Random(seed)
    killed = 0
    for point in range(points):
        name = f"random-{kind}-{seed}-{point}"
        limit = seconds * (point + draw.random()) / points
        code, _ = driver.attempt(name, kind, seconds=limit)
        killed += code == -9
        assert driver.attempt(name, kind)[0] == 0
        same(driver.result(name), expected)
    assert killed >= points // 2


def test_killed_at_three_random_points(driver):
    kill_at_random(driver, "aulm", 3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_killed_at_twenty_random_points(driver, kind):
    kill_at_random(driver, kind, 20, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_killed_after_every_file(driver, kind):
    """The last files of a stage are written again by the next process, which so needs four."""
    kill_after_files(driver, kind, (1, 2, 3, 4))


@pytest.mark.parametrize("way", [(), ("-m",)], ids=["one", "sweep"])
def test_sigterm_ends_a_command_after_its_step_and_it_goes_on_there(cli, monkeypatch, way):
    """The step is the second of three in the third epoch."""
    settings = ("pipeline=[pretrain,sparsify]", "schedule.sparsify.epochs=3", *way)
    line = ("run", "dataset.train=280", "dataset.val=120", "name=a", *settings)

    def numbers() -> dict[str, object]:
        found = result(Path("outputs")).items()
        return {key: value for key, value in found if key.endswith((".pt", ".csv"))}

    assert cli(*line).code == 0
    expected = numbers()
    assert any("sparsify/metrics.csv" in key for key in expected)
    shutil.rmtree("outputs")
    steps, step = [], _Trainer.step

    def counted(trainer, chunk):
        steps.append(trainer.label)
        if steps.count("sparsify") == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, chunk)

    with monkeypatch.context() as patch:
        patch.setattr(_Trainer, "step", counted)
        found = cli(*line)
        assert found.code == 143
        told = found.err.splitlines()
        assert told[-1] == "prunekit: terminated; the same command continues"
        (last,) = Path("outputs").rglob("sparsify/last.pt")
        assert torch.load(last, weights_only=True)["progress"]["steps"] == 2
        steps.clear()
        steps.extend(["sparsify"] * 8)  # so that it is not stopped again
        assert cli(*line).code == 0
    assert len(steps) == 9
    same(numbers(), expected)


def stamps(place: Path) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in place.rglob("*") if file.is_file()}


def test_a_finished_run_is_only_shown_again(cli):
    """No file is touched and the same table is printed, also with other threads."""
    line = ("run", "name=a")
    first = cli(*line)
    assert first.code == 0, first.err
    before = stamps(Path("outputs"))
    for extra in ((), ("runtime.threads=2",), ("runtime=cpu",), ("overwrite=false",)):
        again = cli(*line, *extra)
        assert again.code == 0, again.err
        assert stamps(Path("outputs")) == before
        assert again.out.count("finished before") == 5
        assert table(again.out) == table(first.out)


def table(out: str) -> list[str]:
    lines = out.splitlines()
    return lines[lines.index(next(line for line in lines if "dense and narrow" in line)) :]


def test_overwrite_starts_anew(cli):
    assert cli("pretrain", "name=a").code == 0
    before = stamps(Path("outputs"))
    found = cli("pretrain", "name=a", "seed=1", "overwrite=true")
    assert found.code == 0 and "finished before" not in found.out
    after = stamps(Path("outputs"))
    report = next(key for key in before if key.endswith("report.json"))
    assert after[report] > before[report]
    assert json.loads(Path(report).read_text())["settings"]["seed"] == 1


def test_moved_data_are_the_same_data(cli, tmp_path):
    """The place of the images is no part of what a run is."""
    first = images(tmp_path / "here")
    line = ("pretrain", "name=a", "dataset=image_folder", "dataset.image_size=16", "model=resnet20")
    settings = ("model.classes=2", "dataset.workers=0", "dataset.val=0.25")
    assert cli(*line, *settings, f"dataset.root={first}").code == 0
    before = stamps(Path("outputs"))
    first.rename(tmp_path / "there")
    again = cli(*line, *settings, "dataset.root=there")
    assert again.code == 0, again.err
    assert "finished before" in again.out and stamps(Path("outputs")) == before


def images(root: Path) -> Path:
    from PIL import Image

    for split in ("train", "test"):
        for label, shade in (("dark", 10), ("light", 240)):
            folder = root / split / label
            folder.mkdir(parents=True)
            for index in range(4):
                Image.new("RGB", (32, 32), (shade, shade, shade + index)).save(
                    folder / f"{index}.png"
                )
    return root
