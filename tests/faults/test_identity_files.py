"""Weights, scores, plans, curves, the user's network, number formats: others make another run."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from faults.sets import TOYS, identity_of, reports
from torch import nn

from prunekit.criteria import save_scores
from prunekit.errors import ArtifactError
from prunekit.models import LeNet5
from prunekit.runs.identity import network_of
from prunekit.stages.identity import Start
from prunekit.training.schedule import number_format

FEW = ("criterion=l1_norm", "selection=per_layer")
NET = """
import torch
from torch import nn
from torch.nn import functional as F

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Conv2d(1, width, 5, stride=4)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Linear(width * 36, 10)

    def forward(self, x):
        return self.last(F.relu(self.norm(self.first(x))).flatten(1))
"""


def weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(LeNet5([4, 6, 12]).state_dict(), path)
    return path


def settings_of(stage: str) -> dict:
    return json.loads(Path("outputs", stage, "settings.json").read_text())


def refused(found, key: str) -> None:
    assert found.code == 1 and f"{key} was sha256:" in found.err, found.err
    assert found.err.count("\n") == 1


def test_replaced_weights_make_another_run(cli, tmp_path):
    weights(tmp_path / "old.pth", 1)
    line = ("pretrain", "name=a", *TOYS, "schedule.pretrain.epochs=0")
    assert cli(*line, "weights=old.pth").code == 0
    before = reports(Path("outputs"))
    shutil.copy("old.pth", "renamed.pth")
    same = cli(*line, "weights=renamed.pth")
    assert same.code == 0 and "finished before" in same.out, same.err
    weights(tmp_path / "old.pth", 2)
    refused(cli(*line, "weights=old.pth"), "weights")
    assert cli(*line).code == 1
    assert reports(Path("outputs")) == before and settings_of("a/pretrain")["weights"]


def test_the_pool_hands_no_old_weights_to_new_runs(cli, tmp_path):
    """A sweep, and the same sweep under another name after the file was replaced."""
    line = ("pretrain", "-m", *TOYS, "schedule.pretrain.epochs=0", "weights=old.pth", "seed=0")
    losses = {}
    for name, seed in (("one", 1), ("two", 2), ("three", 1)):
        weights(tmp_path / "old.pth", seed)
        found = cli(*line, f"name={name}")
        assert found.code == 0, found.err
        (file,) = tmp_path.glob(f"outputs/{name}/*/pretrain/report.json")
        losses[name] = json.loads(file.read_text())["metrics"]["loss"]
    assert losses["one"] == losses["three"] != losses["two"]
    assert len([*tmp_path.glob("outputs/.shared/pretrain-*")]) == 2


def test_replaced_scores_beside_the_source_make_another_run(cli, tmp_path):
    place = tmp_path / "given"
    assert cli("pretrain", "name=a", *TOYS, "schedule.pretrain.epochs=0").code == 0
    shutil.copytree("outputs/a/pretrain", place)
    sizes = {"conv1": 4, "conv2": 6, "fc1": 12}
    save_scores(place / "scores.pt", {name: torch.arange(1.0, n + 1) for name, n in sizes.items()})
    line = ("prune", "name=b", "source=given/model.pt", "dataset.val=16", *FEW[1:])
    line += ("criterion=stored", "dataset.train=64", "dataset.test=16")
    assert cli(*line).code == 0
    before = reports(Path("outputs"))
    shutil.copytree(place, tmp_path / "moved/given")
    moved = cli(*line, "source=moved/given/model.pt")
    assert moved.code == 0 and "finished before" in moved.out, moved.err
    save_scores(place / "scores.pt", {name: torch.arange(n, 0.0, -1) for name, n in sizes.items()})
    refused(cli(*line), "scores")
    assert reports(Path("outputs")) == before


def test_a_replaced_plan_makes_another_run(cli, tmp_path):
    size = ("schedule.pretrain.epochs=0", "criterion=l1_norm")
    asked = ("pipeline=[pretrain,prune]", *TOYS, *size, "selection=per_layer")
    for name, keep in (("half", 0.5), ("quarter", 0.25)):
        assert cli("run", f"name={name}", *asked, f"selection.keep={keep}").code == 0
    shutil.copytree("outputs/half/prune", "like")
    line = ("prune", "name=c", "source=outputs/half/pretrain", "dataset.val=16", "dataset.train=64")
    line += ("dataset.test=16", "criterion=l1_norm", "selection=like_run", "selection.path=like")
    assert cli(*line).code == 0
    before = reports(Path("outputs"))
    moved = cli(*line, "selection.path=outputs/half")
    assert moved.code == 0 and "finished before" in moved.out, moved.err
    shutil.copy("outputs/quarter/prune/plan.json", "like/plan.json")
    refused(cli(*line), "plan")
    assert reports(Path("outputs")) == before


def test_replaced_curves_make_another_run(tmp_path):
    """Those of the same run as those that are named; moved with their stage they are the same."""
    budget = {"_target_": "prunekit.selection.MacsTarget", "keep": 0.5}
    selection = {"_target_": "prunekit.selection.Sensitivity", "budget": budget, "path": None}
    settings = {"dataset": {"_target_": "prunekit.data.Synthetic"}, "selection": selection}
    file = tmp_path / "run" / "sensitivity" / "sensitivity.csv"
    with pytest.raises(ArtifactError, match="run prunekit sensitivity first"):
        identity_of(settings, Start(None, None, tmp_path / "run"))
    file.parent.mkdir(parents=True)
    file.write_text("group,removed,units,val_top1\na,0,2,90.0\n")
    first = identity_of(settings, Start(None, None, tmp_path / "run"))
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    assert identity_of(settings, Start(None, None, tmp_path / "moved")) == first
    file.write_text(file.read_text().replace("90.0", "91.0"))
    assert identity_of(settings, Start(None, None, tmp_path / "run"))["curves"] != first["curves"]
    named = {**selection, "path": str(tmp_path / "moved")}
    found = identity_of({**settings, "selection": named}, Start(None, None, tmp_path / "run"))
    assert found["curves"] == first["curves"] and "path" not in found["selection"]


def test_a_comparison_with_another_dense_network_is_another(cli):
    """It stands beside what was cut from it, and need not be the source."""
    few = ("schedule.pretrain.epochs=0", *FEW)
    line = ("name=a", *TOYS, *few)
    assert cli("run", "pipeline=[pretrain,prune,measure]", *line).code == 0
    assert "finished before" in cli("measure", *line).out
    before = Path("outputs/a/measure/report.json").read_bytes()
    Path("outputs/b").mkdir()
    shutil.copytree("outputs/a/pretrain", "outputs/b/pretrain")
    assert cli("pretrain", "name=c", *TOYS, *few, "seed=1").code == 0
    shutil.rmtree("outputs/a/pretrain")
    Path("outputs/c/pretrain").rename("outputs/a/pretrain")
    refused(cli("measure", *line), "models.pretrain")
    assert Path("outputs/a/measure/report.json").read_bytes() == before


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Write the module of the user's network; the next command finds it new."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(old: str = "", new: str = "") -> None:
        assert old in NET
        (tmp_path / "ownnet.py").write_text(NET.replace(old, new) if old else NET)
        sys.modules.pop("ownnet", None)
        importlib.invalidate_caches()

    yield write
    sys.modules.pop("ownnet", None)


OWN = ("model=custom", "model._target_=ownnet.Net", "~dataset.name")
EDITS = {
    "layer": ("nn.BatchNorm2d(width)", "nn.Identity()"),
    "setting": ("stride=4)", "stride=4, dilation=1, padding_mode='circular')"),
    "forward": ("F.relu(", "F.silu("),
    "constant": ("F.relu(", "2 * F.relu("),
    "default": ("width=4", "width=5"),
}


def test_an_edited_network_of_the_users_is_another_run(cli, own):
    own()
    toys = [setting for setting in TOYS if not setting.startswith("model.")]
    chosen = (*OWN, "dataset=synthetic", *toys)
    line = ("run", "name=a", "pipeline=[pretrain,finetune]", *chosen)
    assert cli(*line).code == 0
    before = reports(Path("outputs"))
    own("import torch\n", "import torch\n\n# a remark\n")
    again = cli(*line)
    assert again.code == 0 and again.out.count("finished before") == 2, again.err
    own(*EDITS["forward"])
    refused(cli(*line), "network.structure")
    refused(cli("finetune", "name=a", *chosen), "network.structure")
    assert reports(Path("outputs")) == before


@pytest.mark.parametrize("edit", EDITS)
def test_what_is_seen_of_a_network(own, edit):
    own()
    arch, shape = {"_target_": "ownnet.Net"}, (1, 28, 28)
    first = network_of(arch, shape)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    assert network_of(arch, shape) == first and {*first} == {"structure"}
    assert torch.equal(torch.get_rng_state(), state)
    own(*EDITS[edit])
    assert network_of(arch, shape) != first


class Untraceable(nn.Module):
    """Needs numbers to be built, and decides by them."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(4, width)
        self.scale = float(self.first.weight.detach().norm()) * 0 + 1

    def forward(self, x):
        return self.first(x) if x.sum() > 0 else -self.first(x)


def test_a_network_that_cannot_be_followed_is_its_state_and_modules():
    target = f"{Untraceable.__module__}.Untraceable"
    first = network_of({"_target_": target}, (4,))
    assert network_of({"_target_": target}, (4,)) == first
    assert network_of({"_target_": target, "width": 5}, (4,)) != first


def test_networks_by_name_are_known_by_the_version_of_their_package():
    import torchvision

    arch = {"_target_": "prunekit.models.torchvision_model", "arch": "resnet18"}
    assert network_of(arch, (3, 32, 32)) == {"torchvision": torchvision.__version__.split("+")[0]}
    assert network_of({"_target_": "prunekit.models.LeNet5"}, (1, 28, 28)) == {}


def schedule(precision: str) -> dict:
    return {"epochs": 1, "optimizer": {"_target_": "torch.optim.SGD"}, "precision": precision}


def test_numbers_are_what_a_precision_comes_to(tmp_path, monkeypatch):
    """On a GPU convolutions in float32 round to tf32, unless that is switched off."""
    assert number_format("float32", "cpu") == "float32, channels_last"
    assert (
        number_format("bfloat16", "cuda")
        == number_format("bfloat16", "cpu")
        == "bfloat16, channels_last"
    )
    settings = {
        "seed": 0,
        "dataset": {"_target_": "prunekit.data.Synthetic"},
        "schedule": {"pretrain": schedule("float32")},
    }
    found = {}
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", allowed)
        found[allowed] = identity_of(settings, Start(None, None, tmp_path, kind="cuda"))["numbers"]
    assert found == {True: "tf32, channels_last", False: "float32, channels_last"}
    half = {**settings, "schedule": {"pretrain": schedule("bfloat16")}}
    mixed = {**half, "order": {"between": schedule("float32")}}
    start = Start(None, None, tmp_path)
    assert identity_of(half, start)["numbers"] == "bfloat16, channels_last"
    assert identity_of(mixed, start)["numbers"] == "bfloat16, channels_last; float32, channels_last"


@pytest.mark.parametrize("rounds", [1, 2])
def test_numbers_between_rounds_count_where_there_is_training(tmp_path, rounds):
    settings = {
        "dataset": {"_target_": "prunekit.data.Synthetic"},
        "selection": {"_target_": "prunekit.selection.PerLayer", "keep": 0.5, "rounds": rounds},
        "schedule": {"between": schedule("float32")},
    }
    found = identity_of(settings, Start(None, None, tmp_path))
    assert ("numbers" in found) == (rounds > 1)
