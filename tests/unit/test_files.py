"""Tests of model files and of the errors for files that cannot be read."""

from __future__ import annotations

import argparse
import copy
import os
import pickle
import sys
from pathlib import Path

import networks
import pytest
import torch
import torchvision
from torch import nn

from prunekit import models
from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.surgery import Narrow, load_model, load_weights, save_model

SHARED = Path(__file__).resolve().parents[3] / "shared" / "weights"
ARCH = {"_target_": "networks.Network", "blocks": [["Plain", 4]]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "model.pt"


@pytest.fixture
def net():
    return networks.Network([["Plain", 4]])


def refused(path, **options):
    with pytest.raises(ArtifactError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(path))
    return message.removeprefix(f"{path} ")


def write(path, content):
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path)


def test_facts_come_back(net, path):
    save_model(path, net, ARCH, top1=91.5, plan={"ratio": 0.5, "scores": torch.ones(2)}, note=None)
    saved = load_model(path, trust=["networks.Network"])
    assert saved.facts["top1"] == 91.5 and saved.facts["note"] is None
    assert torch.equal(saved.facts["plan"]["scores"], torch.ones(2))
    assert saved.edits == () and saved.arch == ARCH


def test_only_plain_values_are_saved(net, path):
    with pytest.raises(ArtifactError, match=r"^facts.a.1 is a PosixPath; a model file holds"):
        save_model(path, net, ARCH, a=[1, path])
    assert not path.exists()


def test_a_failed_write_leaves_the_old_file(net, path, monkeypatch):
    save_model(path, net, ARCH)
    before = path.read_bytes()

    def full(content, file):
        with open(file, "wb") as stream:
            stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(ArtifactError, match="could not be written: No space left on device"):
        save_model(path, net, ARCH)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == ["model.pt"]


def test_missing_and_damaged_files(net, path):
    assert refused(path) == "does not exist; give the path of a file"
    assert refused(path.parent.parent) == "is no file; remove it, or give the path of a file"
    save_model(path, net, ARCH)
    path.write_bytes(path.read_bytes()[:1000])
    assert refused(path) == "is damaged or no file of torch; make it again"
    path.write_bytes(b"")
    assert refused(path) == "is damaged or no file of torch; make it again"
    path.write_text("settings: 1\n")
    assert refused(path) == "is damaged or no file of torch; make it again"


def test_foreign_files(net, path):
    write(path, net.state_dict())
    assert refused(path) == (
        "is not a prunekit model file: it holds a bare state dict, which load_weights reads; give "
        "one of prunekit"
    )
    write(path, {"epoch": 3, "optimizer": {}, "state_dict": net.state_dict()})
    assert "file: it holds epoch, optimizer, state_dict; give one of prunekit" in refused(path)
    write(path, torch.ones(2))
    assert "is not a prunekit model file: it holds a Tensor; give" in refused(path)
    write(path, {"format": "prunekit-model-9"})
    assert "format is 'prunekit-model-9', this version reads 'prunekit-model-1'" in refused(path)
    write(path, {"format": "prunekit-model-1", "arch": ARCH})
    assert refused(path) == "is a damaged model file: it has no edits; save or compute it again"
    write(path, {"format": "prunekit-model-1", "arch": 5})
    assert refused(path).startswith("is a damaged model file: arch in it is of type int; save or")


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("dump", [torch.save, lambda what, to: to.write_bytes(pickle.dumps(what))])
def test_a_pickle_cannot_run_code(dump, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path.parent.mkdir()
    dump({"format": "prunekit-model-1", "arch": Evil()}, path)
    assert refused(path) == "is not loaded, since it could run code; make it again"
    assert not (tmp_path / "evil").exists()


def test_a_whole_pickled_network_is_not_loaded(path):
    write(path, nn.Linear(2, 2))
    assert "since it could run code" in refused(path)


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "prunekit.build.build",
        "prunekit.build.locate",
        "prunekit.surgery.save_model",
        "prunekit.surgery.files.Path",
        "prunekit.surgery.files.write_torch",
        "torchvision.models._api.load_state_dict_from_url",
        "torchvision.modelsx.net",
        "networks.Network",
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_settings_in_a_file_cannot_call_what_they_like(target, nested, net, path):
    arch = {"_target_": target, "command": "true"}
    if nested:
        arch = {"_target_": "prunekit.models.VGG", "config": [{"deeper": arch}]}
    save_model(path, net, arch)
    assert f"wants to call {target!r}, which is no network of prunekit" in refused(path)
    assert f"if you trust the file, load it with trust=[{target!r}]" in refused(path)


def test_trust_names_classes_or_packages(net, path):
    save_model(path, net, ARCH)
    for trust in (["networks"], ["networks.Network"]):
        assert isinstance(load_model(path, trust).model, networks.Network)
    for trust in ([], ["network"], ["networks.Net"], ["networks.Network.x"]):
        assert "wants to call" in refused(path, trust=trust)


def test_networks_of_torchvision_come_back_without_a_download(path):
    arch = {"_target_": "torchvision.models.squeezenet1_1", "num_classes": 3}
    net = torchvision.models.squeezenet1_1(num_classes=3)
    save_model(path, net, {**arch, "weights": "DEFAULT"})
    saved = load_model(path)
    assert saved.arch["weights"] == "DEFAULT"
    assert torch.equal(saved.model.classifier[1].weight, net.classifier[1].weight)


def test_what_cannot_be_rebuilt(net, path):
    trust = ["networks", "torch.Size"]
    save_model(path, net, {**ARCH, "blocks": [["Plain", 8]]})
    assert refused(path, trust=trust) == (
        "holds the weights of another network than this Network: of another size: "
        "blocks.0.conv.weight is (4, 3, 3, 3) in the file, (8, 3, 3, 3) here, "
        "blocks.0.conv.bias is (4,) in the file, (8,) here, "
        "blocks.0.bn.weight is (4,) in the file, (8,) here and 4 more; "
        "give the network that it belongs to"
    )
    save_model(path, net, {**ARCH, "depth": 3})
    assert "cannot be rebuilt: arch.depth is" in refused(path, trust=trust)
    save_model(path, net, {"_target_": "torch.Size"})
    assert "arch describes a Size, not a network" in refused(path, trust=trust)


def test_weights_of_another_network(net, path):
    def message(content, model=net):
        write(path, content)
        with pytest.raises(ArtifactError) as caught:
            load_weights(model, path)
        return str(caught.value)

    other = nn.Sequential(nn.Linear(2, 2))
    assert message(other.state_dict()) == (
        f"{path} holds the weights of another network than this Network: missing: "
        "blocks.0.conv.weight, blocks.0.conv.bias, blocks.0.bn.weight and 7 more; "
        "unexpected: 0.weight, 0.bias; give the network that it belongs to"
    )
    assert "of another size: 0.weight is (3, 2) in the file, (2, 2) here" in message(
        nn.Sequential(nn.Linear(2, 3)).state_dict(), other
    )
    assert f"{path} holds no state dict: it holds epoch; save one" in message({"epoch": 1})
    state = net.state_dict()
    name = next(iter(state))
    for odd in (5, "text", None):
        assert f"no state dict: {name} in it is no tensor; save" in message({**state, name: odd})
    for odd in (state[name].to("meta"), state[name].to_sparse()):
        assert f"{name!r} in it is no plain tensor; save or" in message({**state, name: odd})
    assert f"{name} holds whole numbers in the file, real numbers here" in message(
        {**state, name: state[name].long()}
    )
    assert "unexpected: xxxxx" in (said := message({**state, "x" * 10_000: state[name]}))
    assert len(said.removeprefix(str(path))) < 200
    assert "no state dict: 5 in it is no tensor" in message({**state, 5: state[name]})
    write(path, Evil())
    with pytest.raises(ArtifactError, match="since it could run code; save its state dict alone"):
        load_weights(net, path)


def same(net, other):
    theirs = other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("key", [None, "state_dict", "model", "weights", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_checkpoints_of_other_tools(net, path, key, prefix):
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    write(path, weights if key is None else {key: weights, "epoch": 1})
    other = networks.Network([["Plain", 4]], seed=1)
    load_weights(other, path)
    assert same(net, other)


def test_wrappers_of_torch_themselves(net, path):
    """Load what DataParallel, torch.compile and weight averaging really write."""
    averaged = torch.optim.swa_utils.AveragedModel(net)
    inside = networks.Network([["Plain", 4]])
    inside.load_state_dict(net.state_dict())
    inside.blocks = torch.compile(inside.blocks)
    for wrapped in (nn.DataParallel(net), torch.compile(net), averaged, inside):
        write(path, wrapped.state_dict())
        other = networks.Network([["Plain", 4]], seed=1)
        load_weights(other, path)
        assert same(net, other)


def test_a_prefix_that_is_the_networks_own_stays(net, path):
    write(path, nn.ModuleDict({"module": net}).state_dict())
    other = nn.ModuleDict({"module": networks.Network([["Plain", 4]], seed=1)})
    load_weights(other, path)
    assert same(net, other["module"])


def test_old_files_nested_wrappers_and_recorded_command_lines(net, path):
    content = {"model": {"state_dict": net.state_dict()}, "args": argparse.Namespace(lr=0.1)}
    path.parent.mkdir()
    torch.save(content, path, _use_new_zipfile_serialization=False)
    other = networks.Network([["Plain", 4]], seed=1)
    load_weights(other, path)
    assert same(net, other)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
        self.second.weight = self.first.weight


def test_safetensors(net, path):
    safetensors = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
    path = path.parent.with_suffix(".safetensors")
    safetensors.save_file(net.state_dict(), path)
    other = networks.Network([["Plain", 4]], seed=1)
    load_weights(other, path)
    assert same(net, other)
    tied, again = Tied(), Tied()
    safetensors.save_model(tied, str(path))  # stores a shared tensor once
    load_weights(again, path)
    assert same(tied, again) and again.first.weight is again.second.weight
    path.write_bytes(b"{}")
    with pytest.raises(ArtifactError, match="is damaged or no file of safetensors"):
        load_weights(net, path)


def test_safetensors_that_are_not_installed(net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    (tmp_path / "x.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pip install 'prunekit\[safetensors\]'"):
        load_weights(net, tmp_path / "x.safetensors")


class Nameless(nn.Module):
    """A network that is built without arguments."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().mean((2, 3)))


class TestAnyClass:
    """Tests of files of networks without settings."""

    def narrow(self, net, shape=(1, 3, 8, 8)):
        like = next(net.parameters())
        graph = ChannelGraph.trace(net, torch.zeros(shape, dtype=like.dtype))
        drop = graph.drop({graph.groups[0].name: torch.arange(len(graph.groups[0].units)) > 1})
        edit = Narrow.of(graph, drop)
        edit.apply(net)
        return edit

    def test_a_class_that_needs_no_arguments_is_named(self, path):
        net = Nameless()
        edit = self.narrow(net)
        save_model(path, net, edits=[edit])
        name = f"{__name__}.Nameless"
        assert torch.load(path, weights_only=True)["arch"] == {"_target_": name}
        assert f"load it with trust=[{name!r}]" in refused(path)
        saved = load_model(path, trust=[name])
        assert same(net, saved.model) and saved.edits == (edit,)

    def test_a_class_that_makes_another_network_by_default_is_not(self, path):
        for net in (models.LeNet5(widths=(3, 4, 5)), models.LeNet5(relu_convs=False)):
            save_model(path, net)
            assert torch.load(path, weights_only=True)["arch"] is None
        save_model(path, models.LeNet5())
        assert torch.load(path, weights_only=True)["arch"] == {
            "_target_": "prunekit.models.lenet.LeNet5"
        }

    def test_trying_the_class_is_quiet(self, path):
        """GoogLeNet warns when it is made; pytest would make that an error."""
        save_model(path, models.torchvision_model("googlenet"))
        assert torch.load(path, weights_only=True)["class"].endswith("GoogLeNet")

    def test_a_network_that_is_passed_in(self, path, monkeypatch):
        def fail(*args):
            raise AssertionError("nothing is traced")

        net = networks.Network([["Plain", 4]]).eval()
        edit = self.narrow(net)
        save_model(path, net, edits=[edit], top1=3)
        assert refused(path) == (
            "does not say how its networks.Network is built; pass the dense network, "
            "load_model(path, module=Network(...))"
        )
        monkeypatch.setattr(ChannelGraph, "trace", fail)
        dense = networks.Network([["Plain", 4]], seed=1).eval().float()
        before = copy.deepcopy(dense.state_dict())
        saved = load_model(path, module=dense)
        assert same(net, saved.model) and saved.arch is None and saved.facts == {"top1": 3}
        assert saved.model.training is False and saved.edits == (edit,)
        assert next(saved.model.parameters()).dtype == torch.float64  # as stored
        assert dense.state_dict().keys() == before.keys() and same(dense, dense)
        assert all(torch.equal(dense.state_dict()[name], before[name]) for name in before)

    def test_a_network_that_does_not_fit(self, path):
        net = networks.Network([["Plain", 4]])
        save_model(path, net, edits=[self.narrow(net)])
        wider = networks.Network([["Plain", 8]])
        assert refused(path, module=wider).startswith(
            "was cut from another network than this Network"
        )
        net = networks.Network([["Plain", 4]])
        save_model(path, net)
        assert "of another size: blocks.0.conv.weight is (4," in refused(path, module=wider)
        assert "missing: conv.weight" in refused(path, module=Nameless())

    def test_state_that_is_no_tensor(self, path):
        class Odd(Nameless):
            def get_extra_state(self):
                return {"a": 1}

        with pytest.raises(ArtifactError, match="the network keeps _extra_state, a dict"):
            save_model(path, Odd())


def test_old_checkpoints_do_not_count_batches(net, path):
    weights = {name: t for name, t in net.state_dict().items() if "batches" not in name}
    write(path, weights)
    load_weights(net, path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no pretrained weights at ../shared/weights")
@pytest.mark.parametrize("depth", [20, 56])
def test_published_weights_fit_and_their_network_is_traced(depth):
    net = getattr(models, f"resnet{depth}")()
    load_weights(net, next(SHARED.glob(f"resnet{depth}-*.th")))
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 32, 32))
    # three stages tied by padded shortcuts, and the first convolution of every block
    assert len(graph.groups) == 3 + (depth - 2) // 2 - 2
    assert CostModel(net, graph).params() == {20: 269_722, 56: 853_018}[depth]
