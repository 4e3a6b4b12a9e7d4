"""Truncated SVD out of the parts: against numpy's decomposition of the flattened weights."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import counted_macs
from prunekit.methods.hinge import (
    Fold,
    FoldedCost,
    InsertMatrices,
    MatrixNorm,
    Placement,
    Site,
    Threshold,
    fold,
)
from prunekit.models import resnet20
from prunekit.selection import MacsTarget, PerLayer, Scored, Widths
from prunekit.surgery import Narrow

EXAMPLE = torch.zeros(1, 3, 32, 32)
LOW_RANK = Placement(blocks={}, start="svd", layers={"*": "rows"})


@pytest.fixture(scope="module")
def net():
    """ResNet-20, its convolutions decomposed, and their singular values by numpy."""
    torch.manual_seed(0)
    dense = resnet20().eval()
    model = copy.deepcopy(dense)
    InsertMatrices.of(model, EXAMPLE, LOW_RANK).apply(model)
    graph = ChannelGraph.trace(model, EXAMPLE)
    layers = {n: m for n, m in dense.named_modules() if n.startswith("layer") and weighs(m)}
    return SimpleNamespace(
        dense=dense,
        model=model,
        graph=graph,
        flat={name: flattened(module.weight) for name, module in layers.items()},
        scores=MatrixNorm().scores(model, graph, None),
        cost=FoldedCost(model, graph),
    )


def weighs(module):
    return isinstance(module, nn.Conv2d)


def flattened(weight):
    return weight.detach().double().flatten(1).T.numpy()


def cut(net, masks):
    """The network that is left, folded."""
    model = copy.deepcopy(net.model)
    Narrow.of(net.graph, net.graph.drop({n: ~m for n, m in masks.items()})).apply(model)
    Fold.of(model).apply(model)
    return model


def product(layer):
    """The weights of one convolution that does the same."""
    if isinstance(layer, nn.Conv2d):
        return flattened(layer.weight)
    return flattened(layer.conv.weight) @ flattened(layer.matrix.weight)


def test_scores_are_the_singular_values(net):
    assert set(net.scores) == {f"{name}.conv" for name in net.flat}
    for name, flat in net.flat.items():
        expected = np.linalg.svd(flat, compute_uv=False)
        assert np.allclose(net.scores[f"{name}.conv"], expected, atol=1e-5)
        assert net.scores[f"{name}.conv"].dtype == torch.float64


@pytest.mark.parametrize("rank", [1, 5, 9, 15])
def test_what_is_left_is_the_truncated_svd(net, rank):
    """Eckart and Young: the error is that of the singular values that went."""
    masks = Widths({name: rank for name in net.scores}).choose(net.scores, net.graph, net.cost)
    model = cut(net, masks)
    for name, flat in net.flat.items():
        left, sizes, right = np.linalg.svd(flat, full_matrices=False)
        truncated = (left[:, :rank] * sizes[:rank]) @ right[:rank]
        layer = model.get_submodule(name)
        assert np.abs(product(layer) - truncated).max() < 1e-5
        error = np.linalg.norm(product(layer) - flat)
        assert error == pytest.approx(np.sqrt((sizes[rank:] ** 2).sum()), abs=1e-5)
        d, n = flat.shape
        assert isinstance(layer, nn.Sequential) == (rank * (d + n) < d * n)


SELECTIONS = {
    "the same share": lambda keep: MacsTarget(keep, scope="local"),
    "one threshold over relative values": MacsTarget,
    "one threshold": lambda keep: MacsTarget(keep, normalise=None),
    "search": Threshold,
}


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize("keep", [0.75, 0.5, 0.3])
def test_budgets_hold_in_the_folded_network(net, name, keep):
    selection = SELECTIONS[name](keep)
    masks = selection.choose(net.scores, net.graph, net.cost)
    counted, dense = (counted_macs(model, EXAMPLE) for model in (cut(net, masks), net.dense))
    assert counted == net.cost.macs(net.graph.drop({n: ~m for n, m in masks.items()}))
    assert net.cost.macs() == dense
    if isinstance(selection, Threshold):
        assert abs(counted / dense - keep) < 0.005
    else:
        assert 0.97 * keep < counted / dense <= keep
    assert (
        selection.select(Scored(net.scores, net.graph, net.cost)).aims[0].reached == counted / dense
    )


def test_the_same_share_is_the_same_share_of_every_layer(net):
    masks = MacsTarget(0.5, scope="local").choose(net.scores, net.graph, net.cost)
    kept = [float(masks[name].double().mean()) for name in net.scores]
    assert max(kept) - min(kept) < 2 / 16
    half = PerLayer(0.5).choose(net.scores, net.graph, net.cost)
    assert {int(half[name].sum()) for name in net.scores} == {8, 16, 32}


def test_one_threshold_keeps_the_largest_values_of_all_layers(net):
    rule = MacsTarget(0.5, scope="global", normalise=None)
    masks = rule.choose(net.scores, net.graph, net.cost)
    kept, gone = (
        torch.cat([net.scores[name][masks[name] == stays] for name in net.scores])
        for stays in (True, False)
    )
    assert kept.min() >= gone.max()


def test_columns_and_both_sides_have_scores_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), nn.Conv2d(8, 3, 1))
    x = torch.randn(1, 2, 8, 8)
    InsertMatrices(
        (Site("0", ("columns",), "identity"), Site("2", ("rows", "columns"), "svd"))
    ).apply(model)
    matrix = flattened(model[2].matrix.weight)
    with torch.no_grad():
        model[0].matrix.weight.mul_(torch.arange(6.0)[:, None, None, None])
    scores = MatrixNorm().scores(model, ChannelGraph.trace(model, x), None)
    assert set(scores) == {"0.matrix", "2.conv", "2.matrix"}
    assert scores["0.matrix"].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.allclose(scores["2.conv"], np.linalg.norm(matrix, axis=1))
    assert np.allclose(scores["2.matrix"], np.linalg.norm(matrix, axis=0))


def test_dead_rows_go_without_a_trace(net):
    """Rows that are exactly zero score zero, and go at any threshold above it."""
    model = copy.deepcopy(net.model).double()
    with torch.no_grad():
        model.layer1[0].conv1.matrix.weight[:, 6:] = 0
    graph = ChannelGraph.trace(model, EXAMPLE.double())
    scores, cost = MatrixNorm().scores(model, graph, None), FoldedCost(model, graph)
    masks = Threshold(1).at(1e-12, scores, graph, cost)
    assert int(masks["layer1.0.conv1.conv"].sum()) == 6
    narrow = copy.deepcopy(model)
    Narrow.of(graph, graph.drop({n: ~m for n, m in masks.items()})).apply(narrow)
    x = torch.randn(2, 3, 32, 32).double()
    assert torch.allclose(fold(narrow, x).model(x), model(x), rtol=0, atol=1e-10)


def test_without_matrices_it_says_what_to_do(net):
    with pytest.raises(ConfigError, match=r"no sparsity-inducing matrices.*placement=auto"):
        MatrixNorm().scores(net.dense, ChannelGraph.trace(net.dense, EXAMPLE), None)


def test_numbers_that_are_not_finite_are_refused(net):
    model = copy.deepcopy(net.model)
    with torch.no_grad():
        model.layer2[0].conv1.matrix.weight[0] = float("nan")
    with pytest.raises(ConfigError, match=r"scores of layer2\.0\.conv1\.conv are not finite"):
        MatrixNorm().scores(model, net.graph, None)
