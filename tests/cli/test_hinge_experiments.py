"""The experiments of Hinge: what they set, and a tiny version of each kind, end to end."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.build import build
from prunekit.config import config_dir, groups, resolve
from prunekit.methods.hinge import Hinged
from prunekit.stages.pipeline import check
from prunekit.surgery import load_model


@dataclass(frozen=True)
class Run:
    """A published run: its share of FLOPs, strength, and where it differs from most others."""

    keep: float
    blocks: dict
    lam: float = 2e-4
    penalty: str = "L1"
    threshold: float = 5e-3
    annealing: tuple | None = None  # levels, and what they are over
    exponent: float = 1.35
    floor: float = 0.2
    floor: float = 0.2
    same_ratio: bool = True
    balance: bool = True
    rate: float = 0.1  # of tuning
    decay: float = 1e-4
    nesterov: bool = False
    distil: bool = True
    phases: tuple = (200, 300)
    milestones: tuple = ((150, 225), (150, 225))


BASIC = {"basic": ["rows", "rows"]}
BOTTLENECK = {"bottleneck": ["columns", "rows"]}
GROUPS = {"grouped": ["groups", "groups"]}
RESNET164 = {"blocks": BOTTLENECK, "threshold": 1e-3}
RESNEXT = {"blocks": GROUPS, "exponent": 0, "same_ratio": False}
PUBLISHED = {
    "resnet56_cifar10": Run(0.5, BASIC, penalty="Lp", annealing=((10, 5), "blocks")),
    "resnet56_24_cifar10": Run(
        0.24, BASIC, penalty="Lp", annealing=((10, 5), "blocks"), floor=0.1875
    ),
    "resnet20_cifar10": Run(0.4516, BASIC, annealing=((20, 15), "blocks")),
    "resnet20_cifar100": Run(0.3298, BASIC, annealing=((30, 25), "blocks")),
    "resnet164_cifar10": Run(0.5353, **RESNET164),
    "resnet164_cifar100": Run(0.5533, **RESNET164),
    "resnext164_cifar10": Run(0.4438, **RESNEXT),
    "resnext164_cifar100": Run(0.4769, **RESNEXT),
    "resnext20_cifar10": Run(0.5921, annealing=((75, 60), "layers"), **RESNEXT),
    "resnext20_cifar100": Run(0.5351, annealing=((100, 75), "layers"), **RESNEXT),
    "vgg16_cifar10": Run(
        0.609,
        {"plain": ["rows+columns"]},
        threshold=5e-2,
        annealing=((400, 200), "layers"),
        exponent=0,
        same_ratio=False,
        balance=False,
        rate=0.01,
        decay=5e-4,
        distil=False,
    ),
    "densenet40_cifar10": Run(
        0.5522,
        {"dense": ["rows"]},
        threshold=1e-3,
        exponent=0,
        same_ratio=False,
        balance=False,
        rate=0.01,
        nesterov=True,
    ),
    "wrn16_10_cifar100": Run(
        0.5731,
        {"preactivation": ["columns", "rows"]},
        lam=4e-4,
        annealing=((400, 350), "layers"),
        rate=0.01,
        distil=False,
        phases=(200, 200),
        milestones=((60, 120, 160), (60, 120, 160)),
    ),
}


def settings(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return resolve(compose("run", overrides=list(overrides)))


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_penalised_and_kept_is_as_published(name):
    run, found = PUBLISHED[name], settings(f"experiment=hinge_{name}")
    penalty, target = found["regularizer"]["penalty"], found["regularizer"]["target"]
    assert penalty["_target_"] == f"prunekit.penalties.{run.penalty}"
    assert (penalty["lam"], target["balance"]) == (run.lam, run.balance)
    assert {key: list(sides) for key, sides in found["placement"]["blocks"].items()} == run.blocks
    selection = found["selection"]
    chosen = (selection["keep"], selection["floor"], selection["same_ratio"])
    assert chosen == (run.keep, run.floor, run.same_ratio)
    until = found["order"]["until"]
    assert (until["threshold"], until["within"]) == (run.threshold, 0.1)
    assert until["selection"] == selection
    solver = found["solver"]
    assert (solver["exponent"], solver["slowed"], solver["every"]) == (run.exponent, "first", 1)
    if run.annealing is None:
        assert solver["annealing"] is None
    else:
        wanted = {"factor": 2.0, "unit": "norm", "at": [*run.annealing[0]]}
        assert {key: solver["annealing"][key] for key in wanted} == wanted
        assert solver["annealing"]["over"] == run.annealing[1]
    assert (found["distill"].get("weight"), found["distill"].get("temperature")) == (
        (0.4, 4.0) if run.distil else (None, None)
    )
    check(found, tuple(found["pipeline"]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_it_is_trained_as_published(name):
    run, found = PUBLISHED[name], settings(f"experiment=hinge_{name}")
    assert found["order"]["others"] == 0.01
    phases = [found["schedule"][phase] for phase in ("pretrain", "sparsify", "finetune")]
    assert tuple(phase["epochs"] for phase in phases) == (300, *run.phases)
    milestones = [tuple(phase["decay"]["milestones"]) for phase in phases]
    assert milestones == [(150, 225), *run.milestones]
    assert all((phase["batch"], phase["decay"]["by"]) == (64, 0.1) for phase in phases)
    optimizers = [
        {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
        {"lr": 0.1, "momentum": 0.9, "weight_decay": run.decay},
        {"lr": run.rate, "momentum": 0.9, "weight_decay": run.decay},
    ]
    nesterov = {"nesterov": True} if run.nesterov else {}
    for phase, wanted, more in zip(phases, optimizers, ({}, nesterov, nesterov), strict=True):
        given = {k: v for k, v in phase["optimizer"].items() if not k.startswith("_")}
        assert given == wanted | more
    data, classes = found["dataset"], 100 if name.endswith("100") else 10
    assert (data["name"], found["model"]["classes"]) == (f"cifar{classes}", classes)
    assert data["mean"] == pytest.approx([x / 255 for x in (125.3, 123.0, 113.9)], abs=1e-5)
    assert data["std"] == pytest.approx([x / 255 for x in (63.0, 62.1, 66.7)], abs=1e-5)


def every():
    return [name for name in groups()["experiment"] if name.startswith("hinge")]


def test_every_published_run_has_a_file():
    others = {"hinge", "hinge_resnet20_exact", "hinge_resnet50_imagenet"}
    assert {f"hinge_{name}" for name in PUBLISHED} | others == set(every())


@pytest.mark.parametrize("name", every())
def test_experiments_build_with_their_own_and_the_short_schedule(name):
    for more in ((), ("schedule=hinge_short",)):
        found = settings(f"experiment={name}", *more)
        assert found["name"].startswith("hinge_")
        for phase in ("pretrain", "sparsify", "finetune"):
            schedule = build(found["schedule"][phase], f"schedule.{phase}")
            assert not more or schedule.epochs <= 8
        assert build(found["order"], "order").until.selection.keep == found["selection"]["keep"]
        check(found, tuple(found["pipeline"]))


IMAGES = (
    *("dataset.channels=3", "dataset.image_size=32"),
    *("dataset.train=64", "dataset.val=16", "dataset.test=16", "latency.batch=2"),
)
TINY = {
    "resnet20_cifar10": ("ResNet", "+model.blocks=1", "+model.widths=[4,8,8]"),
    "resnet164_cifar10": ("BottleneckResNet", "+model.blocks=3", "+model.widths=[4,4,8]"),
    "resnext20_cifar10": ("ResNeXt", "+model.blocks=1", "+model.cardinality=8", "+model.stem=8"),
    "vgg16_cifar10": ("VGG", "+model.blocks=[[6],[8],[8],[8],[8]]", "+model.average=true"),
    "densenet40_cifar10": ("DenseNet", "+model.layers=2", "+model.growth=6", "model.stem=6"),
    "wrn16_10_cifar100": ("WideResNet", "+model.blocks=1", "+model.widen=1", "model.classes=10"),
}


QUICK = ("resnet20_cifar10", "resnext20_cifar10")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in TINY]
)
def test_each_kind_goes_through_all_stages(cli, tmp_path, name):
    target, *sizes = TINY[name]
    narrow = (f"model._target_=prunekit.models.{target}", *sizes, f"name={name}")
    found = cli("run", f"experiment=hinge_{name}", *narrow, *IMAGES)
    assert found.code == 0, found.err
    place = tmp_path / "outputs" / name
    stages = ("pretrain", "sparsify", "prune", "finetune", "measure")
    assert {path.name for path in place.iterdir() if path.is_dir()} == set(stages)
    models = {stage: load_model(place / stage / "model.pt").model for stage in stages[:4]}
    hinged = {s: any(isinstance(m, Hinged) for m in net.modules()) for s, net in models.items()}
    assert [stage for stage, has in hinged.items() if has] == ["sparsify"]
    with open(place / "measure/comparison.csv") as file:
        first, *_, last = csv.DictReader(file)
    assert last["network"] == "fine-tuned"
    share = int(last["macs"]) / int(first["macs"])
    assert share == pytest.approx(PUBLISHED[name].keep, abs=0.15)  # few units, so coarse steps
    report = json.loads((place / "prune/report.json").read_text())
    assert report["metrics"]["surgery_error"] < 1e-4
