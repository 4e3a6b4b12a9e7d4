"""Model files that somebody else made: they allocate, download and run nothing on their own."""

from __future__ import annotations

import resource
import threading
import zipfile

import pytest
import torch
from torch import nn

from prunekit import models
from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow, load_model, save_model
from prunekit.surgery import rebuild as rebuild_module

LENET = {"_target_": "prunekit.models.LeNet5", "widths": [3, 4, 6]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def content(**changes):
    """What `save_model` writes for a small LeNet, with other values for some keys."""
    weights = models.LeNet5(widths=(3, 4, 6)).state_dict()
    plain = {"arch": LENET, "edits": [], "weights": weights, "facts": {}}
    return {"format": "prunekit-model-1", "class": None, **plain, **changes}


def refused(path, values, **options):
    """Load a file with these values; return the one line that is said."""
    torch.save(values, path)
    with pytest.raises(ArtifactError) as caught:
        load_model(path, **options)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


HUGE = {
    "a wide layer": content(arch={**LENET, "widths": [3, 4, 40_000_000]}),
    "of torchvision": content(
        arch={"_target_": "torchvision.models.squeezenet1_1", "num_classes": 200_000_000}
    ),
    "a map of biases": content(
        edits=[{"edit": "bias_maps", "layers": {"conv1": [3, 200_000, 200_000]}}]
    ),
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_network_out_of_proportion_to_its_weights_takes_no_memory(path, kind):
    """Memory that is reserved and never written does not count; these would write up to 400 GB."""
    before = peak()
    message = refused(path, HUGE[kind])
    assert (
        "takes more than 1.07 GB, but the file holds" in message
        or "more memory than there is" in message
    )
    assert peak() - before < 500 << 20


def test_a_network_of_endless_modules_is_stopped(path, monkeypatch):
    monkeypatch.setattr(rebuild_module, "_MODULES", 50)
    weights = {"a": torch.zeros(1)}
    many = content(arch={"_target_": "prunekit.models.VGG", "blocks": [[4] * 90]}, weights=weights)
    assert "more than 150 modules, but the file holds 1 tensors" in refused(path, many)


def test_a_network_that_another_thread_builds_does_not_count(path, monkeypatch):
    monkeypatch.setattr(rebuild_module, "_SMALL", 1 << 20)
    weights = {"a": torch.zeros(2)}
    with rebuild_module.in_proportion(weights):
        other = threading.Thread(target=lambda: nn.Linear(1000, 1000))
        other.start()
        other.join()
        with pytest.raises(ArtifactError, match="takes more than"):
            nn.Linear(1000, 1000)
    nn.Linear(1000, 1000)  # and nothing is counted afterwards


def test_a_network_much_wider_than_its_file_is_still_built(path, monkeypatch):
    """One channel of ten is left everywhere: the dense network has 70 times its weights."""
    monkeypatch.setattr(rebuild_module, "_SMALL", 0)
    network = models.LeNet5()
    graph = ChannelGraph.trace(network, torch.zeros(1, 1, 28, 28))
    rest = {g.name: torch.arange(len(g.units)) >= len(g.units) // 10 for g in graph.groups}
    edit = Narrow.of(graph, graph.drop(rest))
    edit.apply(network)
    save_model(path, network, {"_target_": "prunekit.models.LeNet5"}, [edit])
    loaded = load_model(path).model
    assert loaded.conv1.out_channels == 2
    assert torch.equal(loaded.fc2.weight, network.fc2.weight)


def test_weights_that_claim_more_than_the_file_holds(path):
    weights = {**content()["weights"], "fc1.weight": torch.zeros(1).expand(100_000, 100_000)}
    assert "claims 40,0" in refused(path, content(weights=weights))


def test_a_packed_file_is_damaged(path):
    """torch does not compress; a file that does could unpack to any size."""
    plain = path.with_name("plain.pt")
    torch.save(content(facts={"zeros": torch.zeros(100_000)}), plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert load_model(plain).facts["zeros"].shape == (100_000,)
    with pytest.raises(ArtifactError, match="is damaged"):
        load_model(path)


SPARSE = torch.eye(3).to_sparse()
ODD = [None, 3, "text", b"bytes", [], [1], {}, {"a": 1}, {1: torch.ones(2)}, torch.ones(2), SPARSE]


@pytest.mark.parametrize("key", ["arch", "edits", "weights"])
@pytest.mark.parametrize("value", ODD, ids=lambda value: type(value).__name__)
def test_any_malformed_value_is_one_line(path, key, value):
    if key == "edits" and value in ([], {}):
        return  # a network without edits
    refused(path, content(**{key: value}))


@pytest.mark.parametrize(
    "arch",
    [
        {"_target_": 3},
        {"_target_": ["prunekit.models.LeNet5"]},
        {"_target_": "prunekit.models.LeNet5", "widths": "abc"},
        {"_target_": "prunekit.models.LeNet5", "widths": [3, None, 6]},
        {"_target_": "prunekit.models.LeNet5", "widths": [3, -4, 6]},
        {"_target_": "prunekit.models.LeNet5", "widths": [3, 4, 10**30]},
        {"_target_": "prunekit.models.LeNet5", "_partial_": True},
        {"_target_": "prunekit.models.VGG", "config": {"deeper": 1}},
        {"_target_": "torchvision.models.get_model", "name": 7},
        {"_target_": "torchvision.models.resnet18", "norm_layer": 3},
        {"_target_": "torchvision.models.resnet18", "num_classes": torch.ones(2)},
    ],
)
def test_any_malformed_setting_of_the_network_is_one_line(path, arch):
    refused(path, content(arch=arch))


@pytest.mark.parametrize("module", [False, True])
@pytest.mark.parametrize(
    "edit",
    [
        {"edit": "narrow"},
        {"edit": 3},
        {"edit": ["narrow"]},
        {"edit": "narrow", "layers": 3, "tensors": {}},
        {"edit": "narrow", "layers": {"conv1": {"in": [10**9], "out": ["a"]}}, "tensors": {}},
        {"edit": "narrow", "layers": {3: None}, "tensors": None},
        {"edit": "new_biases", "layers": [None]},
        {"edit": "new_biases"},
        {"edit": "bias_maps", "layers": {"conv1": [3, 200_000, 200_000]}},
        {"edit": "bias_maps", "layers": {"conv1": [3, -1, "b"]}},
        {"edit": "head", "classes": "many"},
        {"edit": "skip_block", "name": []},
    ],
)
def test_any_malformed_edit_is_one_line(path, edit, module):
    dense = models.LeNet5(widths=(3, 4, 6)) if module else None
    refused(path, content(edits=[edit]), module=dense)


@pytest.fixture
def fetched(monkeypatch):
    """The addresses that torchvision wants to load from."""
    addresses = []

    def load(url, *args, **kwargs):
        addresses.append(url)
        raise RuntimeError(url)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", load)
    return addresses


SEGMENTER = "lraspp_mobilenet_v3_large"  # the weights of its backbone are fetched by default


@pytest.mark.parametrize(
    "arch",
    [
        {"_target_": f"torchvision.models.segmentation.{SEGMENTER}"},
        {"_target_": "torchvision.models.get_model", "name": SEGMENTER},
        {"_target_": "torchvision.models.get_model", "name": "squeezenet1_1", "weights": "DEFAULT"},
        {"_target_": "torchvision.models.squeezenet1_1", "pretrained": True},
        {"_target_": "prunekit.models.torchvision_model", "arch": SEGMENTER},
        {
            "_target_": "prunekit.models.VGG",
            "config": [{"_target_": "torchvision.models.squeezenet1_1", "weights": "DEFAULT"}],
        },
    ],
)
def test_building_a_network_downloads_nothing(path, fetched, arch):
    refused(path, content(arch=arch))  # it is built, and has other weights
    assert not fetched


@pytest.mark.parametrize("key", ["weights_backbone", "pretrained_backbone"])
def test_weights_of_a_backbone_are_not_fetched_either(fetched, key):
    assert models.torchvision_model(SEGMENTER, classes=2)
    assert models.torchvision_model(SEGMENTER, classes=2, **{key: None})
    with pytest.raises(ConfigError, match=f"{key}=True would fetch"):
        models.torchvision_model(SEGMENTER, classes=2, **{key: True})
    assert not fetched
