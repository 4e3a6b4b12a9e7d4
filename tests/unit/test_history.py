"""Networks remember their edits, so that files of networks that were cut twice hold both cuts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import prunekit
from prunekit.errors import ArtifactError
from prunekit.graph import ChannelGraph
from prunekit.methods.hinge import InsertMatrices, Placement, fold
from prunekit.surgery import save_model
from prunekit.surgery.history import history

X = torch.randn(2, 2, 9, 9, generator=torch.Generator().manual_seed(0))


class Net(nn.Sequential):
    def __init__(self, width=10):
        super().__init__(
            *(nn.Conv2d(2, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
            *(nn.Conv2d(width, 12, 3, bias=False), nn.Sigmoid()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)),
        )


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def same(one, other):
    with torch.no_grad():
        return torch.equal(one.eval()(X), other.eval()(X))


def step(model):
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(X).square().sum().backward()
    optimizer.step()
    return model.eval()


def copied(model):
    return copy.deepcopy(model)


def pickled(model):
    return pickle.loads(pickle.dumps(model))


def wrapped(model):
    return nn.DataParallel(model)


@pytest.mark.parametrize("between", [step, copied, pickled, wrapped], ids=lambda f: f.__name__)
def test_three_cuts_are_saved_with_whatever_lies_between(net, between, tmp_path):
    model = net
    for keep in (0.8, 0.7, 0.6):
        pruned = prunekit.prune(between(model), X, keep=keep)
        model = pruned.model
    pruned.save(tmp_path / "narrow.pt", share=0.6)
    for start in (net, Net()):
        saved = prunekit.load_model(tmp_path / "narrow.pt", module=start)
        assert same(saved.model, model) and saved.facts == {"share": 0.6}
    assert [edit.to_dict() for edit in saved.edits] == history(saved.model)
    assert same(prunekit.load_model(tmp_path / "narrow.pt", trust=[Net.__module__]).model, model)


def test_a_loaded_network_that_is_cut_again_is_saved_with_all(net, tmp_path):
    prunekit.prune(net, X, keep=0.7).save(tmp_path / "first.pt")
    loaded = prunekit.load_model(tmp_path / "first.pt", module=net).model
    second = prunekit.prune(loaded, X, keep=0.5, absorb=False)
    second.save(tmp_path / "second.pt")
    for start in (net, loaded):
        assert same(prunekit.load_model(tmp_path / "second.pt", module=start).model, second.model)
    other = prunekit.prune(net, X, keep=0.4).model
    with pytest.raises(ArtifactError, match="was cut from another network"):
        prunekit.load_model(tmp_path / "second.pt", module=other)


def test_a_cut_that_removes_nothing_loses_nothing(net, tmp_path):
    once = prunekit.prune(net, X, keep=0.5).model
    twice = prunekit.prune(once, X, keep=1.0)
    assert history(twice.model)[: len(history(once))] == history(once) != history(net) == []
    twice.save(tmp_path / "narrow.pt")
    assert same(prunekit.load_model(tmp_path / "narrow.pt", module=net).model, once)


def test_what_shrink_removed_is_saved_too(net, tmp_path):
    graph = ChannelGraph.trace(net, X)
    small = prunekit.shrink(net, graph, {"0": torch.tensor([0.0, 1] * 5)})
    pruned = prunekit.prune(small, X, keep=0.8)
    pruned.save(tmp_path / "narrow.pt")
    assert same(prunekit.load_model(tmp_path / "narrow.pt", module=net).model, pruned.model)


def test_folded_matrices_are_saved_too(net, tmp_path):
    placed = Placement(layers={"*": "columns"}).sites(net, X)
    inserted = copy.deepcopy(net)
    InsertMatrices(placed.sites, placed.whole).apply(inserted)
    folded = fold(prunekit.prune(inserted, X, keep=0.7).model, X).model
    pruned = prunekit.prune(folded, X, keep=0.7)
    pruned.save(tmp_path / "narrow.pt")
    assert same(prunekit.load_model(tmp_path / "narrow.pt", module=net).model, pruned.model)


def test_settings_of_the_narrow_network_need_no_edits(net, tmp_path):
    narrow = prunekit.prune(net, X, keep=0.5, absorb=False, ignore=["3"]).model
    arch = {"_target_": f"{Net.__module__}.Net", "width": 5}
    save_model(tmp_path / "narrow.pt", narrow, arch)
    saved = prunekit.load_model(tmp_path / "narrow.pt", trust=[Net.__module__])
    assert saved.edits == () and same(saved.model, narrow)
