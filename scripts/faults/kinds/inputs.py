"""Inputs that change, or only move, between two starts of the same command."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from scripts.faults.campaign import Fault
from scripts.faults.damage import flip
from scripts.faults.sets import mnist, photographs
from scripts.faults.small import MNIST, SMALL
from scripts.faults.trial import Finding, Trial

Change = Callable[[Path], object]
_TRAIN = ("pretrain", *SMALL, "name=a")
_MNIST = ("pretrain", *MNIST, "name=a")
_FOLDER = ("pretrain", "dataset=image_folder", "dataset.root=photos", "dataset.image_size=16")
_PHOTOS = (
    *(*_FOLDER, "dataset.val=2", "dataset.workers=0", "model=custom", "model._target_=net.Net"),
    *("schedule=smoke", "runtime.device=cpu", "runtime.threads=1", "name=a"),
)
NET = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(4, 2))
"""


def faults() -> list[Fault]:
    """Return changes of images, weights, sources, code and settings."""
    raw = "data/MNIST/raw"
    changed: dict[str, tuple[Change, tuple[str, ...]]] = {
        "a pixel of a training image": (_flip(f"{raw}/train-images-idx3-ubyte", 5000), _MNIST),
        "a label": (_flip(f"{raw}/train-labels-idx1-ubyte", 30), _MNIST),
        "a pixel of a test image": (_flip(f"{raw}/t10k-images-idx3-ubyte", 900), _MNIST),
        "another set in the same place": (_other_set, _MNIST),
        "an image more": (_copy("photos/train/cat/0.png", "photos/train/cat/9.png"), _PHOTOS),
        "an image less": (lambda p: (p / "photos/train/dog/1.png").unlink(), _PHOTOS),
        "an image of another class": (_move("photos/train/cat/0.png", "train/dog/9"), _PHOTOS),
        "the content of an image": (
            _copy("photos/test/cat/0.png", "photos/test/dog/1.png"),
            _PHOTOS,
        ),
        "the name of a class": (_renamed_class, _PHOTOS),
        "code of an own network": (_edited("net.py", "nn.ReLU()", "nn.Tanh()"), _PHOTOS),
        "weights": (_other_weights, (*_TRAIN, "weights=given.pt")),
        "the source": (_other_source, ("prune", *SMALL, "source=from/sparsify", "name=a")),
        "the scores of the source": (
            _other_scores,
            ("prune", *SMALL, "source=from/sparsify", "name=a"),
        ),
        "the source of finetune": (
            _other_source,
            ("finetune", *SMALL, "source=from/prune", "name=a"),
        ),
        "the teacher": (
            _other_teacher,
            (
                "finetune",
                *SMALL,
                "source=from/prune",
                "distill=standard",
                "name=a",
                "distill.teacher=teacher.pt",
            ),
        ),
    }
    settings = (
        "seed=1",
        "schedule.pretrain.epochs=3",
        "schedule.pretrain.optimizer.lr=0.01",
        "dataset.train=97",
        "dataset.noise=2",
        "model.widths=[4,6,13]",
    )
    moved: dict[str, tuple[Change, tuple[str, ...], tuple[str, ...]]] = {
        "times of files": (_touched, _MNIST, ()),
        "the place of images": (_moved_images, _MNIST, ("dataset.root=elsewhere",)),
        "the place of a source": (
            _moved_source,
            ("prune", *SMALL, "source=from/sparsify", "name=a"),
            ("source=there/sparsify",),
        ),
        "threads": (lambda p: None, _TRAIN, ("runtime.threads=2",)),
    }
    return [
        *(
            Fault("inputs", f"changed: {name}", partial(_changed, change, line, ()))
            for name, (change, line) in changed.items()
        ),
        *(
            Fault(
                "inputs",
                f"changed: {setting}",
                partial(_changed, lambda p: None, _TRAIN, (setting,)),
            )
            for setting in settings
        ),
        *(
            Fault("inputs", f"moved: {name}", partial(_moved, change, line, more))
            for name, (change, line, more) in moved.items()
        ),
    ]


def _changed(change: Change, line: tuple[str, ...], more: tuple[str, ...], trial: Trial) -> Finding:
    """The second start is refused, or says what changed: an old result must not count for it."""
    _prepare(trial, line)
    change(trial.place)
    trial.protect()
    return trial.judge(trial.run(*line, *more), ["outputs/a"], same=lambda: False)


def _moved(change: Change, line: tuple[str, ...], more: tuple[str, ...], trial: Trial) -> Finding:
    """The second start finds the finished stage."""
    _prepare(trial, line)
    change(trial.place)
    trial.protect()
    ended = trial.run(*line, *more)
    return trial.judge(ended, same=lambda: "finished before" in ended.out, refusal=False)


def _prepare(trial: Trial, line: tuple[str, ...]) -> None:
    place = trial.place
    if line is _MNIST:
        mnist(place / "data", 0)
    if line is _PHOTOS:
        photographs(place / "photos")
        (place / "net.py").write_text(NET)
    if "from/" in " ".join(line) or "weights=given.pt" in line:
        whole = trial.small.path / "whole/outputs/whole"
        shutil.copytree(whole, place / "from")
        shutil.copy(whole / "pretrain/model.pt", place / "given.pt")
        shutil.copy(whole / "pretrain/model.pt", place / "teacher.pt")
    first = trial.run(*line)
    if first.code != 0:
        raise RuntimeError(f"{line} ended with {first.code}: {first.err}")


def _flip(name: str, at: int) -> Change:
    return lambda place: flip(place / name, at)


def _copy(name: str, other: str) -> Change:
    return lambda place: shutil.copy(place / name, place / other)


def _move(name: str, other: str) -> Change:
    return lambda place: (place / name).rename(place / "photos" / f"{other}.png")


def _edited(name: str, old: str, new: str) -> Change:
    return lambda place: (place / name).write_text((place / name).read_text().replace(old, new))


def _other_set(place: Path) -> None:
    shutil.rmtree(place / "data")
    mnist(place / "data", 1)


def _renamed_class(place: Path) -> None:
    for part in ("train", "test"):
        (place / "photos" / part / "cat").rename(place / "photos" / part / "eel")


def _other_weights(place: Path) -> None:
    shutil.copy(place / "from/sparsify/model.pt", place / "given.pt")


def _other_teacher(place: Path) -> None:
    shutil.copy(place / "from/sparsify/model.pt", place / "teacher.pt")


def _other_source(place: Path) -> None:
    """Put the model and the report of another stage there, as a run with other settings would."""
    for stage in ("sparsify", "prune"):
        shutil.copy(place / "from/pretrain/model.pt", place / "from" / stage / "model.pt")
        _update_digest(place / "from" / stage, "model.pt")


def _other_scores(place: Path) -> None:
    import torch

    file = place / "from/sparsify/scores.pt"
    content = torch.load(file, weights_only=True)
    torch.save(_negated(content), file)
    _update_digest(place / "from/sparsify", "scores.pt")


def _negated(node: object) -> object:
    import torch

    if isinstance(node, torch.Tensor):
        return node.flip(0)
    return {key: _negated(value) for key, value in node.items()} if isinstance(node, dict) else node


def _update_digest(stage: Path, name: str) -> None:
    """Let the report beside a file know it, so that the file counts as whole."""
    from prunekit.runs.files import digest_of, write_json
    from prunekit.runs.report import Report

    file = stage / "report.json"
    values = json.loads(file.read_text())
    values["files"][name] = digest_of(stage / name)
    write_json(file, Report.from_dict(values).with_digest().to_dict())


def _touched(place: Path) -> None:
    for file in (place / "data").rglob("*"):
        os.utime(file, (1_000_000_000, 1_000_000_000))


def _moved_images(place: Path) -> None:
    (place / "data").rename(place / "elsewhere")


def _moved_source(place: Path) -> None:
    (place / "from").rename(place / "there")
