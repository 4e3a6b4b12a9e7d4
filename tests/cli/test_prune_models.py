"""`prunekit prune` in an empty directory: networks of torchvision, timm and your own, in rounds."""

from __future__ import annotations

import csv
import itertools
import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from cli.test_errors import refused

from prunekit.errors import ConfigError
from prunekit.models import LeNet5, torchvision_model, torchvision_weights
from prunekit.surgery import load_model

HALF = ("criterion=l1_norm", "selection=macs", "selection.keep=0.5")
SMALL = ("model=torchvision", "model.arch=resnet18", "dataset.shape=[3,32,32]", "name=a", *HALF)
FAST = ("latency.runs=5", "latency.warmup=0", "latency.batch=2", "runtime.threads=1")


def report(place: Path, stage: str = "prune", run: str = "a") -> dict:
    return json.loads((place / "outputs" / run / stage / "report.json").read_text())


def metrics(place: Path, stage: str = "prune", run: str = "a") -> dict:
    return report(place, stage, run)["metrics"]


def table(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as lines:
        return [*csv.DictReader(lines)]


@pytest.fixture
def bare(cli):
    """The command line without the smoke settings: what people type, on one thread."""
    return lambda command, *settings: cli(command, *FAST, *settings, smoke=False)


class TestTorchvision:
    """One command on a fresh directory."""

    def test_one_command(self, bare, tmp_path):
        found = bare("prune", *SMALL)
        assert found.code == 0, found.err
        assert "top-1 not measured" in found.out
        assert "note: the network was randomly initialised" in found.out
        assert "note: accuracy was not measured: no data set was given" in found.out
        assert "narrow = silenced network up to" in found.out
        stage = tmp_path / "outputs/a/prune"
        assert {f.name for f in stage.iterdir()} == {
            *("settings.json", "plan.json", "model.pt", "report.json")
        }
        values, dense = metrics(tmp_path), torchvision.models.resnet18()
        assert "top1" not in values and values["surgery_error"] < 1e-4
        assert values["agreement_eval"] < 1e-4 and values["agreement_train"] < 1e-4
        assert values["asked/MACs"] == 0.5 and 0.49 < values["reached/MACs"] <= 0.5
        saved = load_model(stage / "model.pt")
        assert values["params"] == sum(p.numel() for p in saved.model.parameters())
        assert values["params"] < sum(p.numel() for p in dense.parameters())
        assert saved.arch["arch"] == "resnet18" and "weights" not in saved.arch
        assert saved.model(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
        plan = json.loads((stage / "plan.json").read_text())["groups"]
        assert saved.model.conv1.out_channels == plan["conv1"]["kept"] < 64
        again = bare("prune", *SMALL)
        assert again.code == 0 and "finished before" in again.out

    @pytest.mark.slow
    def test_as_people_type_it(self, cli, tmp_path):
        line = "model=torchvision model.arch=resnet50 criterion=l1_norm selection=macs"
        found = cli("prune", *line.split(), "selection.keep=0.5", smoke=False)
        assert found.code == 0, found.err
        values = metrics(tmp_path, run="resnet50-pruned")
        assert 0.495 < values["reached/MACs"] <= 0.5 and values["surgery_error"] < 1e-4

    def test_the_stages_after_it(self, bare, tmp_path):
        assert bare("prune", *SMALL).code == 0
        measured = bare("measure", *SMALL)
        assert measured.code == 0, measured.err
        rows = table(tmp_path / "outputs/a/measure/comparison.csv")
        assert [row["network"] for row in rows] == ["dense", "pruned"]
        assert 2.0 <= float(rows[1]["macs_ratio"]) < 2.1 and "top1" not in rows[1]
        assert "dense and narrow" in measured.out and "top-1 %" not in measured.out
        refused(bare("finetune", *SMALL), "dataset=none", "choose a data set")
        toy = ("dataset=synthetic", "dataset.channels=3", "dataset.image_size=32")
        few = ("dataset.train=16", "dataset.val=8", "dataset.test=8", "dataset.classes=1000")
        settings = [item for item in SMALL if not item.startswith("dataset")]
        tuned = bare("finetune", *settings, *toy, *few, "schedule=smoke")
        assert tuned.code == 0, tuned.err
        assert metrics(tmp_path, "finetune")["params"] == metrics(tmp_path)["params"]

    def test_weights_of_a_file(self, bare, tmp_path):
        torch.manual_seed(5)
        net = torchvision.models.resnet18()
        net.layer1[0].conv1.weight.data[3].fill_(7.0)
        torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, "w.pth")
        whole = ("selection=per_layer", "selection.keep=1", "absorb=false")
        found = bare("prune", *SMALL[:4], "criterion=l1_norm", *whole, "model.weights=w.pth")
        assert found.code == 0, found.err
        assert "started from w.pth" in found.out and "randomly initialised" not in found.out
        saved = load_model(tmp_path / "outputs/a/prune/model.pt").model
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in saved.state_dict().items())
        both = bare("prune", *SMALL, "model.weights=w.pth", "weights=w.pth")
        refused(both, "weights=w.pth and model.weights=w.pth", "give one")
        other = ("name=b", "model.weights=w.pth", "model.arch=resnet34")
        refused(
            bare("prune", *SMALL, *other), "w.pth holds the weights of another network", "layer"
        )

    @pytest.mark.parametrize(
        ("settings", "parts"),
        [
            (["model.arch=resnet5O"], ["resnet5O", "did you mean resnet50"]),
            (["model.weights=IMAGENET1K_V3"], ["IMAGENET1K_V3", "resnet18", "IMAGENET1K_V1"]),
            (["model.weights=nowhere/x.pth"], ["nowhere/x.pth", "neither a file nor weights"]),
            (["model.classes=0"], ["classes=0", "at least 1"]),
            (["+model.depth=3"], ["resnet18 refuses", "depth=3"]),
            (["dataset.shape=[1,32,32]"], ["ResNet", "(1, 32, 32)", "dataset.shape="]),
            (["dataset.shape=[]"], ["shape=[]", "[3, 224, 224]"]),
            (["selection.keep=1.5"], ["selection.keep=1.5"]),
            (["selection.ignore=[layer9.*]"], ["layer9.*", "layer"]),
            (["selection.rounds=3"], ["selection.rounds=3", "dataset=none", "no images"]),
            (["selection.rounds=0"], ["selection.rounds=0", "at least 1"]),
            (["absorb=maybe"], ["absorb='maybe'", "auto"]),
            (["criterion=taylor"], ["dataset=none", "data set"]),
            (["criterion=stored"], ["criterion=stored", "holds none", "l1_norm"]),
        ],
    )
    def test_one_line_for_what_is_wrong(self, bare, tmp_path, settings, parts):
        refused(bare("prune", *SMALL, *settings), *parts)
        assert not list(tmp_path.rglob("model.pt"))

    def test_what_has_to_be_told(self, bare):
        refused(bare("prune", "model=torchvision", *HALF), "model.arch is not set", "model.arch=")
        refused(bare("prune", "model=custom", *HALF), "model._target_ is not set")
        refused(bare("run", *SMALL), "dataset=none", "choose a data set")

    @pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
    def test_building_is_quiet_and_offline(self, arch, monkeypatch):
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
        with warnings.catch_warnings(), torch.device("meta"):
            warnings.simplefilter("error")
            net = torchvision_model(arch, classes=7)
        assert net.fc.out_features == 7 and net.aux_logits

    def test_structure_that_goes_with_published_weights(self):
        needed, _ = torchvision_weights("googlenet", "DEFAULT", {})
        assert needed == {"transform_input": True, "aux_logits": False}
        assert torchvision_weights("inception_v3", "IMAGENET1K_V1", {})[0] == {
            "transform_input": True
        }
        assert torchvision_weights("resnet50", "IMAGENET1K_V2", {})[0] == {}
        with pytest.raises(ConfigError, match="would fetch or read weights"):
            torchvision_model("resnet18", pretrained=True)

    def test_published_weights_are_loaded_and_not_named_in_the_file(
        self, bare, tmp_path, monkeypatch
    ):
        """The download is played; the structure comes from the settings in the file."""
        torch.manual_seed(1)
        net = torchvision.models.googlenet(init_weights=False)  # the heads are not in use
        monkeypatch.setattr(
            torchvision.models.GoogLeNet_Weights,
            "get_state_dict",
            lambda self, **settings: net.state_dict(),
        )
        settings = ["model=torchvision", "model.arch=googlenet", "model.weights=DEFAULT", "name=g"]
        settings += ["dataset.shape=[3,64,64]", "selection.keep=0.9", *HALF[:2], "absorb=false"]
        found = bare("prune", *settings)
        assert found.code == 0, found.err
        monkeypatch.undo()
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", None)
        saved = load_model(tmp_path / "outputs/g/prune/model.pt")
        assert saved.model.transform_input and saved.model.aux1 is None
        assert saved.arch.items() >= {"transform_input": True, "aux_logits": False}.items()

    def test_without_a_network_one_line_says_so(self, bare, monkeypatch):
        def offline(*args, **settings):
            raise OSError("no route to host")

        monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", offline)
        found = bare("prune", *SMALL, "model.weights=DEFAULT")
        refused(found, "cannot be fetched from https://", "no route to host", "path of the file")


def test_timm(bare, tmp_path):
    pytest.importorskip("timm", reason="timm is not installed")
    settings = ("model=timm", "dataset.shape=[3,32,32]", "name=a", *HALF)
    assert bare("prune", *settings, "model.arch=resnet10t").code == 0
    saved = load_model(tmp_path / "outputs/a/prune/model.pt")
    assert saved.model(torch.zeros(2, 3, 32, 32)).shape == (2, 1000)
    refused(bare("prune", *settings, "model.arch=resnet18x", "name=b"), "did you mean resnet18")
    named = ("model.arch=resnet18", "model.weights=a9_in1k", "name=b")
    refused(bare("prune", *settings, *named), "a9_in1k", "resnet18 in timm", "did you mean a")


def test_timm_that_is_not_installed(bare, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    refused(bare("prune", "model=timm", "model.arch=resnet18", *HALF), "prunekit[timm]")


NETWORK = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3)
        self.norm = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
"""


def test_a_class_of_your_own(bare, tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("model=custom", "model._target_=own_nets.Net", "+model.width=6", "name=a", *HALF)
    found = bare("prune", *own, "dataset.shape=[3,8,8]")
    assert found.code == 0, found.err
    file = tmp_path / "outputs/a/prune/model.pt"
    assert load_model(file, trust=["own_nets"]).model.conv.out_channels == 3
    import own_nets

    narrow = load_model(file, module=own_nets.Net(6)).model
    assert narrow.conv.out_channels == 3
    assert bare("measure", *own, "dataset.shape=[3,8,8]").code == 0
    refused(bare("prune", *own, "model._target_=own_nets.Nte", "name=b"), "own_nets.Nte")
    sys.modules.pop("own_nets")


class TestRounds:
    """Score, cut, train, and again."""

    SETTINGS = (
        *("model.widths=[6,8,20]", "dataset.train=160", "dataset.val=32", "dataset.test=50"),
        *("name=a", "criterion=l1_norm"),
    )

    def test_the_end_is_the_budget(self, cli, tmp_path):
        assert cli("pretrain", *self.SETTINGS).code == 0
        found = cli("prune", *self.SETTINGS, *HALF[1:], "selection.rounds=3")
        assert found.code == 0, found.err
        assert "round 3: narrow = silenced network up to" in found.out
        stage = tmp_path / "outputs/a/prune"
        values = metrics(tmp_path)
        assert 0.4 < values["reached/MACs"] <= 0.5
        dense = metrics(tmp_path, "pretrain")
        assert values["macs"] == round(values["reached/MACs"] * dense["macs"])
        saved = load_model(stage / "model.pt")
        assert sum(edit.kind == "narrow" for edit in saved.edits) == 3
        plan = json.loads((stage / "plan.json").read_text())["groups"]
        assert saved.model.conv1.out_channels == plan["conv1"]["kept"]
        assert len(plan["fc1"]["indices"]) == saved.model.fc1.out_features
        rows = table(stage / "metrics.csv")
        assert [(row["round"], row["epoch"]) for row in rows] == [("1", "1"), ("2", "1")]
        assert not [*stage.glob("last*")]

    def test_widths_fall_evenly_and_the_same_twice(self, cli, tmp_path, monkeypatch):
        from prunekit import engine

        seen, plain = [], engine.cut

        def cut(model, graph, keep, *args, **settings):
            seen.append([int(keep[name].sum()) for name in ("conv1", "conv2", "fc1")])
            return plain(model, graph, keep, *args, **settings)

        monkeypatch.setattr(engine, "cut", cut)
        settings = (*self.SETTINGS, "selection=per_layer", "selection.rounds=3", "diagnose=false")
        assert cli("prune", *settings).code == 0
        assert [row[2] for row in seen] == [17, 13, 10] and seen[-1] == [3, 4, 10]
        assert all(
            a >= b for one, two in itertools.pairwise(seen) for a, b in zip(one, two, strict=True)
        )
        assert cli("prune", *settings, "name=b").code == 0
        one, two = (load_model(tmp_path / f"outputs/{n}/prune/model.pt").model for n in "ab")
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)
        )

    def test_a_run_that_was_killed_continues(self, cli, tmp_path, monkeypatch):
        from prunekit.stages import prune as stage

        settings = (*self.SETTINGS, "selection=per_layer", "selection.rounds=3")
        assert cli("prune", *settings, "name=b").code == 0
        plain = stage.fit

        def killed(model, *args, **options):
            if options["label"] == "round 2":
                raise KeyboardInterrupt
            return plain(model, *args, **options)

        monkeypatch.setattr(stage, "fit", killed)
        assert cli("prune", *settings).code == 130
        assert (tmp_path / "outputs/a/prune/last-round1.pt").exists()
        monkeypatch.setattr(stage, "fit", plain)
        assert cli("prune", *settings).code == 0
        one, two = (load_model(tmp_path / f"outputs/{n}/prune/model.pt").model for n in "ab")
        assert all(
            torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True)
        )

    def test_scores_of_another_stage_are_for_one_round(self, cli):
        assert cli("pretrain", *self.SETTINGS).code == 0
        stored = ("criterion=stored", "selection=per_layer", "selection.rounds=2")
        refused(cli("prune", *self.SETTINGS, *stored), "selection.rounds=2", "criterion=stored")


class TestAbsorb:
    """The setting that says what becomes of constants."""

    def run(self, cli, *settings):
        LeNet = ("model.widths=[6,8,20]", "selection=per_layer", "criterion=l1_norm")
        found = cli("prune", *LeNet, *settings, smoke=False)
        assert found.code == 0, found.err
        return found.out

    def test_on_off_and_auto(self, cli, tmp_path):
        torch.manual_seed(0)
        net = LeNet5((6, 8, 20))
        net.conv1.bias.data.fill_(1.0)
        torch.save(net.state_dict(), "w.pth")
        given = ("weights=w.pth", "dataset=synthetic", "reconstruct=none")
        absorbed = self.run(cli, *given, "name=a")
        told = (
            f"narrow and dense network differ by {metrics(tmp_path, run='a')['dense_distance']:.2%}"
        )
        assert "constants absorbed" in absorbed and told in absorbed
        assert "constants absorbed" not in self.run(cli, *given, "name=b", "absorb=false")
        assert "constants absorbed" in self.run(cli, *given, "name=c", "absorb=true")
        assert metrics(tmp_path)["absorbed"] > 0 and metrics(tmp_path)["absorbed_change"] > 0
        assert metrics(tmp_path, run="b")["absorbed"] is None
        one, two = (load_model(tmp_path / f"outputs/{n}/prune/model.pt").model for n in "ab")
        assert torch.equal(one.conv2.weight, two.conv2.weight)
        assert not torch.equal(one.conv2.bias, two.conv2.bias)

    def test_maps_at_the_end_of_all_rounds(self, bare, tmp_path, monkeypatch):
        """Between rounds layers keep their names, so means are taken there."""
        (tmp_path / "padded.py").write_text(PADDED)
        monkeypatch.syspath_prepend(tmp_path)
        few = ("dataset=synthetic", "dataset.train=32", "dataset.val=8", "dataset.test=8")
        settings = ("model=custom", "model._target_=padded.Net", *few, "schedule=smoke", "name=a")
        twice = ("selection=per_layer", "selection.rounds=2", "criterion=l1_norm", "absorb=maps")
        found = bare("prune", *settings, *twice)
        assert found.code == 0, found.err
        saved = load_model(tmp_path / "outputs/a/prune/model.pt", trust=["padded"])
        assert [edit.kind for edit in saved.edits] == ["narrow", "narrow", "bias_maps"]
        assert saved.model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)
        tuned = bare("finetune", *settings, *twice)
        assert tuned.code == 0, tuned.err


PADDED = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 6, 3, padding=1, stride=2), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1),
            nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10),
        )
        nn.init.constant_(self[0].bias, 1.0)
"""


class TestOverNorms:
    """Channels that layer norms run over go on request only, and that is told."""

    def test_prune_and_inspect(self, bare, tmp_path, monkeypatch):
        (tmp_path / "normed.py").write_text(NORMED)
        monkeypatch.syspath_prepend(tmp_path)
        settings = ("model=custom", "model._target_=normed.Net", "dataset.shape=[16]", "name=a")
        half = ("criterion=l1_norm", "selection=per_layer")
        for flag, width, told in (("false", 8, False), ("true", 4, True)):
            found = bare("prune", *settings, *half, f"over_norms={flag}", f"name=norms-{flag}")
            assert found.code == 0, found.err
            seen = bare("inspect", *settings, f"over_norms={flag}")
            assert seen.code == 0, seen.err
            for out in (found.out, seen.out):
                assert ("(over_norms)" in out) is told
            assert ("not exact, because norms over channels lost some: 1" in found.out) is told
            saved = load_model(tmp_path / f"outputs/norms-{flag}/prune/model.pt", trust=["normed"])
            assert saved.model[0].out_features == width
        other = bare("prune", *settings, *half, "over_norms=false", "name=norms-true")
        refused(other, "over_norms", "overwrite=true")
        refused(bare("prune", *settings, *half, "over_norms=3"), "over_norms=3", "true, false")


NORMED = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Linear(16, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)
        )
"""


def test_lazy_layers_are_refused_before_a_file_is_written_that_cannot_be_read(
    bare, tmp_path, monkeypatch
):
    (tmp_path / "idle.py").write_text(LAZY)
    monkeypatch.syspath_prepend(tmp_path)
    settings = ("model=custom", "model._target_=idle.Net", "dataset.shape=[3,8,8]", "name=a")
    found = bare("prune", *settings, "criterion=l1_norm", "selection=per_layer")
    refused(found, "model=Net", "lazy layers", "input sizes")
    assert not list(tmp_path.rglob("model.pt"))


LAZY = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.LazyConv2d(8, 3), nn.LazyConv2d(3, 3))
"""


def test_scores_that_need_no_scale_are_told_of_one(bare):
    """One threshold over scaled scores undoes what the criterion has done in its own way."""
    settings = ("model=lenet5", "dataset=none", "dataset.shape=[1,28,28]", "criterion=lamp")
    note = "these scores compare between layers as they are"
    scaled = "selection.normalise={_target_: prunekit.selection.MeanNorm}"
    everywhere = ("selection=macs", "selection.scope=global")
    for index, (extra, told) in enumerate(
        [
            ((*everywhere, scaled), True),
            ((*everywhere, "selection.normalise=null"), False),
            (everywhere, False),
            (("selection=macs", scaled), False),
            (("selection=per_layer",), False),
            ((*everywhere, scaled, "criterion=l1_norm"), False),
        ]
    ):
        found = bare("prune", *settings, *extra, f"name=n{index}")
        assert found.code == 0, found.err
        assert (note in found.out) is told, extra
