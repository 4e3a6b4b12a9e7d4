"""Model files: what they refuse, and how they say so."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import networks
import pytest
import torch
import torchvision
from torch import nn

from prunekit import models
from prunekit.errors import ArtifactError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.surgery import load_model, load_weights, save_model

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
    assert refused(path) == "does not exist"
    assert refused(path.parent.parent) == "is no file"
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
        "is not a prunekit model file: it holds a bare state dict, which load_weights reads"
    )
    write(path, {"epoch": 3, "optimizer": {}, "state_dict": net.state_dict()})
    assert refused(path) == ("is not a prunekit model file: it holds epoch, optimizer, state_dict")
    write(path, torch.ones(2))
    assert refused(path) == "is not a prunekit model file: it holds a Tensor"
    write(path, {"format": "prunekit-model-9"})
    assert "format is 'prunekit-model-9', this version reads 'prunekit-model-1'" in refused(path)
    write(path, {"format": "prunekit-model-1", "arch": ARCH})
    assert refused(path) == "is a damaged model file: KeyError('weights')"


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
        "blocks.0.bn.weight is (4,) in the file, (8,) here and 4 more"
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
        "unexpected: 0.weight, 0.bias"
    )
    assert "of another size: 0.weight is (3, 2) in the file, (2, 2) here" in message(
        nn.Sequential(nn.Linear(2, 3)).state_dict(), other
    )
    assert message({"epoch": 1}) == f"{path} holds no state dict: it holds epoch"
    write(path, Evil())
    with pytest.raises(ArtifactError, match="since it could run code; save its state dict alone"):
        load_weights(net, path)


@pytest.mark.parametrize("key", [None, "state_dict", "model", "weights"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoints_of_other_tools(net, path, key, prefix):
    weights = {prefix + name: value for name, value in net.state_dict().items()}
    write(path, weights if key is None else {key: weights, "epoch": 1})
    other = networks.Network([["Plain", 4]], seed=1)
    load_weights(other, path)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))


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
