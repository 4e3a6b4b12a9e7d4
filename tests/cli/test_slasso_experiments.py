"""The experiments of sGLP-IB and sTLP-IB: what they set, and a tiny version of each kind."""

from __future__ import annotations

import copy
import csv
import functools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.build import build
from prunekit.config import config_dir, groups, resolve
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.runs.files import read_json
from prunekit.stages import network
from prunekit.stages.pipeline import check
from prunekit.stages.weights import Dense

PUBLISHED = Path(__file__).parents[2] / "scripts" / "reproduce" / "published"
STRUCTURES = {
    "sglp": "prunekit.methods.gram_lasso.Graph",
    "stlp": "prunekit.methods.gram_lasso.Hierarchy",
}
PAIRS = {  # percent of FLOPs and of parameters removed; the row that is the experiment's
    "sglp_vgg16_cifar10": ("cifar10", "VGGNet-16", 61, 85),
    "stlp_vgg16_cifar10": ("cifar10", "VGGNet-16", 61, 85),
    "sglp_resnet56_cifar10": ("cifar10", "ResNet-56", 53, 52),
    "stlp_resnet56_cifar10": ("cifar10", "ResNet-56", 53, 52),
    "sglp_resnet110_cifar10": ("cifar10", "ResNet-110", 64, 68),
    "stlp_resnet110_cifar10": ("cifar10", "ResNet-110", 62, 68),
    "sglp_googlenet_cifar10": ("cifar10", "GoogleNet", 69, 63),
    "stlp_googlenet_cifar10": ("cifar10", "GoogleNet", 69, 63),
    "sglp_vgg16_cifar100": ("cifar100", "VGGNet-16", 55, 71),
    "stlp_vgg16_cifar100": ("cifar100", "VGGNet-16", 55, 71),
    "sglp_resnet50_imagenet": ("imagenet", "ResNet-50", 57, 55),
    "stlp_resnet50_imagenet": ("imagenet", "ResNet-50", 57, 55),
}
OURS = [f"{m}_{n}" for m in STRUCTURES for n in ("vgg16_imagenet", "resnet50_tiny_imagenet")]
# percent of parameters that go with the share of MACs, and groups that are cut
REMOVED = {
    "sglp_vgg16_cifar10": (87.5, 9),
    "sglp_resnet56_cifar10": (52.9, 27),
    "sglp_resnet110_cifar10": (65.3, 52),
    "sglp_googlenet_cifar10": (64.4, 27),
    "sglp_vgg16_cifar100": (78.9, 9),
    "sglp_resnet50_imagenet": (55.7, 30),
}


@functools.cache
def settings(*overrides):
    """Composed once; do not change them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return resolve(compose("run", overrides=list(overrides)))


def every():
    return [n for n in groups()["experiment"] if n.startswith(("sglp", "stlp"))]


def test_every_published_run_has_a_file():
    assert {*PAIRS, *OURS, *STRUCTURES} == set(every())


@pytest.mark.parametrize("name", PAIRS)
def test_the_share_is_the_published_one(name):
    data, model, flops, params = PAIRS[name]
    method = {"sglp": "sGLP-IB", "stlp": "sTLP-IB"}[name[:4]]
    with open(PUBLISHED / f"slasso_{data}.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["model"] == model]
    found = {
        (row["flops_reduction_pct"], row["params_reduction_pct"])
        for row in rows
        if row["method"] == method
    }
    assert (str(flops), str(params)) in found
    assert settings(f"experiment={name}")["selection"]["keep"] == pytest.approx(1 - flops / 100)


@pytest.mark.parametrize("name", every())
def test_settings_are_as_published(name):
    found = settings(f"experiment={name}")
    assert found["name"].startswith(name[:4])
    assert found["pipeline"] == ["pretrain", "prune", "finetune", "measure"]
    assert found["criterion"]["structure"]["_target_"] == STRUCTURES[name[:4]]
    assert found["criterion"]["shared"] is None  # streams stay
    similarity = found["criterion"]["similarity"]
    assert similarity["columns"]["kernel"]["_target_"] == "prunekit.methods.gram_lasso.Laplacian"
    assert similarity["columns"]["centring"] == "hkh"
    assert similarity["calibration"]["count"] == 128
    assert (found["selection"]["scope"], found["absorb"]) == ("local", False)
    tuning = found["schedule"]["finetune"]
    imagenet = name.endswith("imagenet") and "tiny" not in name
    assert (tuning["epochs"], tuning["batch"]) == (150 if imagenet else 400, 128)
    assert tuning["optimizer"]["_target_"] == "torch.optim.SGD"
    assert tuning["decay"] == {"_target_": "prunekit.training.Cosine", "final": 0.0, "warmup": 0.0}
    check(found, tuple(found["pipeline"]))


@pytest.mark.parametrize("name", ["sglp_vgg16_cifar10", "stlp_resnet110_cifar10"])
def test_the_short_schedule_fits(name):
    found = settings(f"experiment={name}", "schedule=slasso_short")["schedule"]
    phases = [build(found[phase], phase) for phase in ("pretrain", "finetune", "between")]
    assert [phase.epochs for phase in phases] == [8, 4, 1]


def test_names_of_runs_differ():
    names = [settings(f"experiment={n}")["name"] for n in every() if n not in STRUCTURES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if "50" in n else ()) for n in REMOVED]
)
def test_what_goes_by_the_share_is_near_the_published_pair(name):
    """The same share of every layer that is not spared: widths do not depend on the scores."""
    _, cost, kept = cut(name)
    drop = kept.removed
    macs, params = (100 - 100 * of(drop) / of() for of in (cost.macs, cost.params))
    wanted, count = REMOVED[name]
    narrowed = [group for group, mask in kept.items() if not mask.all()]
    assert len(narrowed) == count
    assert PAIRS[name][2] <= macs < PAIRS[name][2] + 0.5
    assert params == pytest.approx(wanted, abs=0.1)
    if name != "sglp_vgg16_cifar100":  # that pair does not fit the rule of four layers
        assert params == pytest.approx(PAIRS[name][3], abs=3)


def cut(name):
    """The masks of an experiment on its own network, with scores drawn at random."""
    found = copy.deepcopy(settings(f"experiment={name}"))
    found["model"].pop("weights", None)
    model = network.built(Dense.of(found), SimpleNamespace(device="cpu")).model
    shape = build(found["dataset"], "dataset").shape
    graph = ChannelGraph.trace(model, torch.zeros(1, *shape))
    cost = CostModel(model, graph)
    source = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(len(g.units), generator=source) for g in graph.groups}
    return graph, cost, build(found["selection"], "selection").choose(scores, graph, cost)


def test_the_first_four_convolutions_of_vgg_stay():
    _, _, kept = cut("sglp_vgg16_cifar10")
    whole = [name for name, mask in kept.items() if mask.all()]
    first = [f"features.conv{block}_{index}" for block in (1, 2) for index in (1, 2)]
    assert whole == [*first, "classifier.fc1"]


def test_streams_of_residual_networks_stay():
    graph, _, kept = cut("sglp_resnet56_cifar10")
    for group in graph.groups:
        assert bool(kept[group.name].all()) == (len(group.producers) > 1), group.name


IMAGES = (
    *("dataset.channels=3", "dataset.image_size=32"),
    *("dataset.train=64", "dataset.val=16", "dataset.test=16", "latency.batch=2"),
)
STAGES = ("pretrain", "prune", "finetune", "measure")
TINY = {
    "vgg16_cifar10": (
        *("VGG", "+model.hidden=[8]"),
        "+model.blocks=[[6,6],[6,6],[12,12,12],[16,16,16],[16,16,16]]",
    ),
    "resnet56_cifar10": ("ResNet", "+model.blocks=1"),
    "googlenet_cifar10": (
        *("GoogLeNet", "+model.stem=8"),
        "+model.stages=[[[4,16,8,16,16,4]],[[4,16,8,16,16,4]]]",
    ),
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        pytest.param(method, name, marks=pytest.mark.slow)
        for method in ("sglp", "stlp")
        for name in TINY
    ],
)
def test_each_kind_goes_through_all_stages(cli, tmp_path, method, name):
    target, *sizes = TINY[name]
    narrow = (f"model._target_=prunekit.models.{target}", *sizes, "name=a")
    found = cli("run", f"experiment={method}_{name}", *narrow, *IMAGES, "selection.keep=0.7")
    assert found.code == 0, found.err
    place = tmp_path / "outputs" / "a"
    assert {path.name for path in place.iterdir() if path.is_dir()} == set(STAGES)
    dense, pruned, tuned = (read_json(place / s / "report.json")["metrics"] for s in STAGES[:3])
    assert 0.5 < pruned["macs"] / dense["macs"] <= 0.7
    assert tuned["params"] == pruned["params"] < dense["params"]
    assert pruned["surgery_error"] < 1e-4
    plan = read_json(place / "prune" / "plan.json")["groups"]
    shares = [group["kept"] / group["of"] for group in plan.values() if group["kept"] < group["of"]]
    assert shares and max(shares) - min(shares) <= 1 / 6  # the same share of every layer
