"""The experiments of network slimming: what they set, and a tiny version of each, end to end."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.config import config_dir, resolve
from prunekit.methods.slimming import ChannelSelector
from prunekit.stages.pipeline import build_stages
from prunekit.surgery import load_model

RATIOS = {  # the share of scales that goes, in table 1 of Liu et al. 2017
    "vgg19": {"cifar10": 0.7, "cifar100": 0.5, "svhn": 0.6},
    "densenet40": {"cifar10": 0.4, "cifar100": 0.4, "svhn": 0.4},
    "preresnet164": {"cifar10": 0.4, "cifar100": 0.4, "svhn": 0.4},
}
EVERY = [(model, dataset) for model, ratios in RATIOS.items() for dataset in ratios]
PENALTIES = ("slim_l1", "lp", "tl1", "mcp", "scad")
TINY = {
    "vgg19": ("VGG", "+model.blocks=[[6],[8],[8],[8],[8]]", "+model.average=true"),
    "densenet40": ("DenseNet", "+model.layers=2", "+model.growth=4", "model.stem=6"),
    "preresnet164": ("PreResNet", "+model.blocks=1", "+model.widths=[4,4,6]", "+model.stem=6"),
}
IMAGES = (
    *("dataset.channels=3", "dataset.image_size=32"),
    *("dataset.train=64", "dataset.val=16", "dataset.test=16", "latency.batch=2"),
)


def settings(*overrides):
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return resolve(compose("run", overrides=list(overrides)))


@pytest.mark.parametrize(("model", "dataset"), EVERY)
def test_experiments_have_the_published_settings(model, dataset):
    found = settings(f"experiment=slim_{model}_{dataset}")
    assert found["name"] == f"slim_{model}_{dataset}-slim_l1"
    assert (found["model"]["name"], found["dataset"]["name"]) == (model, dataset)
    assert found["model"]["classes"] == (100 if dataset == "cifar100" else 10)
    assert found["model"]["scale"] == 0.5
    assert found["dataset"]["val"] == (6000 if dataset == "svhn" else 5000)
    assert found["dataset"].get("extra", False) == (dataset == "svhn")
    assert found["channel_selection"] == (model != "vgg19")
    assert found["regularizer"]["penalty"]["lam"] == (1e-4 if model == "vgg19" else 1e-5)
    selection = found["selection"]
    assert (selection["ratio"], selection["rule"]) == (RATIOS[model][dataset], "published")
    assert found["solver"]["threshold"] == 0 and found["absorb"] is False
    for phase in ("sparsify", "finetune"):
        schedule = found["schedule"][phase]
        assert (schedule["epochs"], schedule["batch"]) == (20 if dataset == "svhn" else 160, 64)
        wanted = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4}
        assert {key: schedule["optimizer"][key] for key in wanted} == wanted
        assert (schedule["decay"]["milestones"], schedule["decay"]["by"]) == ([0.5, 0.75], 0.1)
    build_stages(found, tuple(found["pipeline"]))


@pytest.mark.parametrize("solver", ["slimming", "proximal", "palm"])
@pytest.mark.parametrize("penalty", PENALTIES)
def test_penalties_and_solvers_are_chosen_by_name(penalty, solver):
    model = "densenet40"
    chosen = (f"regularizer={penalty}", f"solver={solver}", "schedule=slim_short")
    found = settings(f"experiment=slim_{model}_svhn", *chosen)
    assert found["name"] == f"slim_{model}_svhn-{penalty}"
    assert found["regularizer"]["penalty"]["lam"] == 1e-5
    phases = {key: found["schedule"][key]["epochs"] for key in ("sparsify", "finetune")}
    assert phases == {"sparsify": 8, "finetune": 4}
    build_stages(found, tuple(found["pipeline"]))


@pytest.mark.parametrize(("penalty", "key"), [("mcp", "gamma"), ("scad", "a")])
class TestWhereAPenaltyTurnsFlat:
    def test_it_stays_there_whatever_lam_is(self, penalty, key):
        for lam in (1e-5, 1e-4, 0.02):
            found = settings(f"regularizer={penalty}", f"regularizer.lam={lam}")["regularizer"]
            assert found["penalty"][key] * lam == pytest.approx(1.0, rel=1e-12)
        weak = (f"regularizer={penalty}", "regularizer.lam=1e-4")
        half = settings(*weak, "regularizer.flat=0.5")["regularizer"]
        assert half["penalty"] == {**half["penalty"], key: 5000.0, "lam": 1e-4}

    def test_the_published_parameter_can_be_given_itself(self, penalty, key):
        found = settings(f"regularizer={penalty}", f"regularizer.penalty.{key}=7.5")
        assert found["regularizer"]["penalty"][key] == 7.5

    @pytest.mark.parametrize(
        ("setting", "words"),
        [
            ("lam=0", "regularizer.lam=0 must be above 0"),
            ("lam=-1", "regularizer.lam=-1 must be above 0"),
            ("lam=much", "regularizer.lam='much' is not a finite number"),
            ("flat=0", "regularizer.flat=0 must be above 0"),
            ("flat=null", "regularizer.flat=None is not a finite number"),
        ],
    )
    def test_what_cannot_be_is_told_in_one_line(self, cli, penalty, key, setting, words, tmp_path):
        found = cli("run", f"regularizer={penalty}", f"regularizer.{setting}")
        assert (found.code, found.out) == (1, "")
        assert found.err.startswith(f"prunekit: {words}") and found.err.count("\n") == 1
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", TINY)
def test_each_experiment_goes_through_all_stages(cli, tmp_path, model):
    target, *sizes = TINY[model]
    narrow = (f"model._target_=prunekit.models.{target}", *sizes)
    found = cli("run", f"experiment=slim_{model}_cifar10", *narrow, *IMAGES)
    assert found.code == 0, found.err
    place = tmp_path / f"outputs/slim_{model}_synthetic-slim_l1"
    stages = ("sparsify", "prune", "finetune", "measure")
    assert {path.name for path in place.iterdir() if path.is_dir()} == set(stages)
    dense, narrow = (load_model(place / stage / "model.pt").model for stage in stages[::2])
    scales, left = (count(module, torch.nn.BatchNorm2d) for module in (dense, narrow))
    assert left == scales - (int(scales * RATIOS[model]["cifar10"]) + 1)  # the published rule
    assert bool(count(dense, ChannelSelector)) == (model != "vgg19")
    with open(place / "measure/comparison.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["network"] for row in rows][-1] == "fine-tuned"
    assert int(rows[-1]["params"]) < int(rows[0]["params"])
    report = json.loads((place / "prune/report.json").read_text())
    assert report["metrics"]["surgery_error"] < 1e-4


def count(model, kind):
    """Channels of all modules of a kind."""
    found = [module for module in model.modules() if isinstance(module, kind)]
    return sum(getattr(module, "num_features", None) or module.width for module in found)
