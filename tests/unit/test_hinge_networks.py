"""Hinge on the networks it was published for: attached, folded, cut; counts by hand."""

from __future__ import annotations

import copy

import laws
import pytest
import torch
import torchvision

from prunekit import models
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, counted_macs
from prunekit.methods.hinge import FoldedCost, InsertMatrices, Placement, fold, layers_with_matrix
from prunekit.surgery import Narrow, load_model, randomised, save_model

SMALL = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LARGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
slow = pytest.mark.slow
NETWORKS = {
    "resnet20": (models.resnet20, SMALL),
    "resnet56": (models.resnet56, SMALL),
    "resnet164": (models.resnet164, SMALL),
    "resnext20": (models.resnext20, SMALL),
    "resnext164": (models.resnext164, SMALL),
    "wrn16_10": (models.wrn16_10, SMALL),
    "vgg16": (models.vgg16_three_linear, SMALL),
    "densenet40": (models.densenet40, SMALL),
    "resnet50": (torchvision.models.resnet50, LARGE),
}
LONG = ("resnet56", "resnet164", "resnext164", "wrn16_10", "vgg16", "densenet40", "resnet50")


def named(*names):
    return [pytest.param(name, marks=slow) if name in LONG else name for name in names]


def with_matrices(name, placement=None):
    make, x = NETWORKS[name]
    torch.manual_seed(0)
    dense = randomised(make()).eval()
    model = copy.deepcopy(dense)
    edit = InsertMatrices.of(model, x[:1], placement or Placement())
    edit.apply(model)
    return dense, model, edit, x


@torch.no_grad()
def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", named(*NETWORKS))
def test_attach_and_fold_keep_the_logits(name):
    """Folded with nothing removed it is the network it was: the published compaction is not."""
    dense, model, _, x = with_matrices(name)
    with torch.no_grad():
        expected = dense(x)
        assert relative(model(x), expected) < 1e-5
        folded = fold(model, x)
        assert relative(folded.model(x), expected) < 1e-5
    assert not layers_with_matrix(folded.model) and not folded.edit.parted
    for key, tensor in folded.model.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, dense.state_dict()[key], rtol=1e-4, atol=1e-5)
    assert {type(m) for m in folded.model.modules()} <= {type(m) for m in dense.modules()}


@pytest.mark.parametrize("name", named(*NETWORKS))
def test_cut_and_folded_it_is_the_silenced_network(name, tmp_path):
    """Sizes are those that were predicted; a file repeats attaching, cutting and folding."""
    _, model, attach, x = with_matrices(name)
    graph = ChannelGraph.trace(model, x[:1])
    drop = graph.drop(laws.masks(graph, 0, 0.4))
    cost = FoldedCost(model, graph)
    narrow = copy.deepcopy(model)
    edit = Narrow.of(graph, drop)
    edit.apply(narrow)
    folded = fold(narrow, x)
    with torch.no_grad(), graph.silencer(model, drop):
        assert relative(folded.model(x), model(x)) < 1e-4
    assert cost.macs(drop) == counted_macs(folded.model, x[:1])
    assert cost.params(drop) == sum(p.numel() for p in folded.model.parameters())
    place = tmp_path / "model.pt"
    save_model(place, folded.model, None, (attach, edit, folded.edit))
    again = load_model(place, module=NETWORKS[name][0]()).model.eval()
    with torch.no_grad():
        assert torch.equal(again(x), folded.model(x))


def added_by_hand(name):
    """Multiply-adds of all matrices: r n at every position, with r = min(d, n)."""
    if name in ("resnet20", "resnet56"):
        blocks = 3 if name == "resnet20" else 9
        return blocks * 2 * (16**2 * 32**2 + 32**2 * 16**2 + 64**2 * 8**2)
    if name == "wrn16_10":  # the stride sits on the second convolution of a block
        sides = ((160, 32, 32), (320, 32, 16), (640, 16, 8))
        return sum(n**2 * (first**2 + 3 * last**2) for n, first, last in sides)
    if name == "vgg16":  # 12 of 13
        widths = [64, *[128] * 2, *[256] * 3, *[512] * 6]
        sides = [32, *[16] * 2, *[8] * 3, *[4] * 3, *[2] * 3]
        return sum(n**2 * side**2 for n, side in zip(widths, sides, strict=True))
    if name == "densenet40":  # 36 layers of 12 outputs, two transitions of their full width
        layers = 12 * 12**2 * (32**2 + 16**2 + 8**2)
        return layers + 168**2 * 32**2 + 312**2 * 16**2
    return 0  # bottlenecks and ResNeXt have their matrices already


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "resnet50"])
def test_start_ratios_in_multiply_adds(name):
    dense, model, _, x = with_matrices(name)
    before = CostModel(dense, ChannelGraph.trace(dense, x[:1])).macs()
    graph = ChannelGraph.trace(model, x[:1])
    after = CostModel(model, graph).macs()
    assert after == before + added_by_hand(name)
    assert FoldedCost(model, graph).macs() == before
    known = {"resnet20": 1.116, "resnet56": 1.113}
    bare = ("resnet164", "resnext20", "resnext164")
    assert round(after / before, 3) == known.get(
        name, 1.0 if name in bare else round(after / before, 3)
    )


@pytest.mark.parametrize(
    ("name", "count", "sides"),
    [
        ("resnet20", 18, {("rows",)}),
        ("resnet56", 54, {("rows",)}),
        ("resnet164", 108, {("rows",), ("columns",)}),
        ("resnext20", 12, {("groups",)}),
        ("wrn16_10", 12, {("rows",), ("columns",)}),
        ("vgg16", 12, {("rows",), ("rows", "columns")}),
        ("densenet40", 38, {("rows",)}),
        ("resnet50", 32, {("rows",), ("columns",)}),
    ],
)
def test_matrices_go_where_they_were_published(name, count, sides):
    make, x = NETWORKS[name]
    found = Placement().sites(make(), x[:1]).sites
    assert len(found) == count
    assert {site.sides for site in found} == sides
