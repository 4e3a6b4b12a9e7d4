"""HRank against numpy, one map after the other, and against maps whose rank is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import made, toy_data

from prunekit.criteria import HRank
from prunekit.criteria.relu_outputs import map_ranks
from prunekit.data import ShapeOnly
from prunekit.errors import ConfigError, DataError


class Net(nn.Module):
    """Two convolutions whose outputs are added, one inside, a linear layer; `act` everywhere."""

    def __init__(self, act=F.relu):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.hidden, self.out = nn.Linear(3 * 9, 6), nn.Linear(6, 5)
        self.act = act

    def forward(self, x):
        x = self.act(self.bn(self.stem(x)))
        x = self.act(x + self.conv2(self.act(self.conv1(x))))
        return self.out(self.act(self.hidden(F.max_pool2d(x, 2).flatten(1))))


def mean_ranks(*outs):
    """numpy's rank of every map of every ReLU, averaged channel by channel."""
    ranks = [
        [np.linalg.matrix_rank(map_.numpy()) for out in outs for map_ in out[:, channel]]
        for channel in range(outs[0].shape[1])
    ]
    return torch.tensor([float(np.mean(values)) for values in ranks], dtype=torch.float64)


def test_scores_are_the_mean_ranks_of_single_maps():
    model, graph = made(Net())
    model.train()
    scores = HRank(samples=17).scores(model, graph, toy_data())
    assert model.training and model.bn.training
    model.eval()
    x = next(toy_data().train.sample(17, 17))[0]
    with torch.no_grad():
        first = F.relu(model.bn(model.stem(x)))
        inner = F.relu(model.conv1(first))
        outer = F.relu(first + model.conv2(inner))
        hidden = F.relu(model.hidden(F.max_pool2d(outer, 2).flatten(1)))
    expected = {
        "stem": mean_ranks(first, outer),  # one group: its units meet both ReLUs
        "conv1": mean_ranks(inner),
        "hidden": (hidden != 0).double().mean(0),  # numbers: one where they are not zero
    }
    assert scores.keys() == expected.keys()
    for name, ranks in expected.items():
        torch.testing.assert_close(scores[name], ranks, rtol=0, atol=1e-12)
    assert len(scores["conv1"].unique()) > 1 and bool((scores["hidden"] % 1 > 0).any())


def test_more_than_one_batch_is_the_same_mean():
    model, graph = made(Net())
    scores = HRank(samples=210).scores(model, graph, toy_data(count=210))
    x = next(toy_data(count=210).train.sample(210, 210))[0]
    with torch.no_grad():
        inner = F.relu(model.conv1(F.relu(model.bn(model.stem(x)))))
    torch.testing.assert_close(scores["conv1"], mean_ranks(inner), rtol=0, atol=1e-12)


def test_the_published_number_of_images_is_the_default():
    assert HRank().samples == 500


@settings(max_examples=40, deadline=None)
@given(
    st.integers(2, 40), st.integers(2, 40), st.integers(0, 12), st.floats(1e-4, 1e4), st.integers()
)
def test_maps_made_of_so_many_columns_have_that_rank(height, width, rank, scale, seed):
    """A float32 product of random factors, sparse as after ReLU, whatever the scale."""
    rank = min(rank, height, width)
    source = np.random.default_rng(abs(seed))
    left, right = source.standard_normal((height, rank)), source.standard_normal((rank, width))
    maps = torch.tensor(scale * (left @ right), dtype=torch.float64)[None, None]
    assert map_ranks(maps).tolist() == [[rank]]


def test_known_maps():
    zero, ones = torch.zeros(4, 6), torch.ones(4, 6)
    edge = torch.tensor([[0.0, 1.0], [0.0, 1.0]]).repeat(2, 3)
    corner = zero.clone()
    corner[0, 0] = corner[1, 1] = 3.0
    full = torch.eye(4, 6) + 0.1 * ones
    maps = torch.stack([zero, ones, edge, corner, full])[None].repeat(2, 1, 1, 1)
    assert map_ranks(maps).tolist() == [[0, 1, 1, 2, 4]] * 2


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 7), (3, 4, 1, 7), (3, 4, 7, 1), (3, 4, 1, 1)])
def test_numbers_and_vectors_have_rank_zero_or_one(shape):
    maps = torch.zeros(shape)
    maps[1, 2] = 2.0
    expected = torch.zeros(3, 4).long()
    expected[1, 2] = 1
    assert torch.equal(map_ranks(maps), expected)


def test_volumes_are_matrices_of_their_first_side():
    maps = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    maps[0, 1, 2:] = 0
    assert map_ranks(maps).tolist() == [[4, 2, 4], [4, 4, 4]]


def test_units_without_a_relu_have_no_score():
    model, graph = made(Net(torch.tanh))
    with pytest.raises(ConfigError, match="none of the 3 channel groups meets a ReLU"):
        HRank(5).scores(model, graph, toy_data())
    half = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten())
    model, graph = made(nn.Sequential(*half, nn.Linear(64, 5)))
    assert HRank(5).scores(model, graph, toy_data()).keys() == {"0"}


def test_bad_input_is_one_line():
    model, graph = made(Net())
    with pytest.raises(ConfigError, match=r"HRank scores units on training examples"):
        HRank().scores(model, graph, None)
    with pytest.raises(ConfigError, match="samples=0"):
        HRank(0)
    with torch.no_grad():
        model.conv1.weight[0] = float("nan")
    with pytest.raises(ConfigError, match="HRank met feature maps that are not finite") as error:
        HRank(5).scores(model, graph, toy_data())
    assert "\n" not in str(error.value)


def test_no_images_are_refused():
    model, graph = made(Net())
    with pytest.raises(DataError, match="dataset=none has none"):
        HRank().scores(model, graph, ShapeOnly(shape=(1, 8, 8)).load())
