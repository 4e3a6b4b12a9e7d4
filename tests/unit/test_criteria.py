"""Scores against numbers made by hand, explicit loops and plain autograd."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from toys import made, toy_data

import prunekit
from prunekit.criteria import (
    FPGM,
    LAMP,
    APoZ,
    BatchNormScale,
    HessianDiagonal,
    L1Norm,
    L2Norm,
    Random,
    Stored,
    Taylor,
    load_scores,
    save_scores,
)
from prunekit.criteria.derivatives import _signs, hessian_diagonal
from prunekit.criteria.relu_outputs import relu_means
from prunekit.errors import ArtifactError, ConfigError
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.graph.arguments import Arguments
from prunekit.measure import CostModel
from prunekit.methods.slimming import InsertChannelSelectors
from prunekit.models import densenet40, preresnet164, vgg19
from prunekit.selection import PerLayer, Scored
from prunekit.surgery.constants import emitting_constants
from prunekit.surgery.cut import cut
from prunekit.targets import Scales, unit_scores


class Net(nn.Module):
    """conv1 - bn - relu - pool - conv2 - relu - mean - fc; how it applies ReLU is `act`."""

    def __init__(self, act):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 3, 3)
        self.bn1 = nn.BatchNorm2d(3)
        self.conv2 = nn.Conv2d(3, 4, 3)
        self.fc = nn.Linear(4, 5)
        self.act = act

    def forward(self, x):
        x = F.max_pool2d(self.act(self.bn1(self.conv1(x))), 2)
        return self.fc(self.act(self.conv2(x)).mean((2, 3)))


class Residual(nn.Module):
    """Two convolutions whose outputs are added; one ReLU module is called twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.conv1, self.conv2 = nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        x = self.bn(self.stem(x))
        x = x + self.bn2(self.conv2(self.relu(self.conv1(x))))
        return self.fc(self.relu(x).mean((2, 3)))


ACTS = {
    "module": nn.ReLU(),
    "in place": nn.ReLU(inplace=True),
    "function": F.relu,
    "torch": torch.relu,
    "method": lambda x: x.relu(),
    "relu6": nn.ReLU6(),  # the toy stays below 6
    "method in place": lambda x: x.relu_(),
}


def fake_graph(**outs):
    """A graph of one group per module; the numbers are unit ids."""
    outs = {name: torch.tensor(units) for name, units in outs.items()}
    groups = tuple(
        SimpleNamespace(name=name, units=units, producers=(name,)) for name, units in outs.items()
    )
    return SimpleNamespace(
        groups=groups, outs=outs, count=1 + max(int(u.max()) for u in outs.values())
    )


def test_norms_of_filters_leave_the_bias_out():
    model = nn.Sequential(nn.Conv2d(1, 2, (1, 2)))
    model[0].weight.data = torch.tensor([3.0, -4.0, 0.0, 2.0]).reshape(2, 1, 1, 2)
    model[0].bias.data.fill_(100.0)
    graph = fake_graph(**{"0": [1, 2]})
    assert L1Norm().scores(model, graph, None)["0"].tolist() == [7.0, 2.0]
    assert L2Norm().scores(model, graph, None)["0"].tolist() == [5.0, 2.0]


def test_norms_of_a_coupled_group_add_up_over_its_producers():
    model, graph = made(Residual())
    coupled = next(group for group in graph.groups if len(group.producers) == 2)
    stem, second = model.stem.weight.flatten(1), model.conv2.weight.flatten(1)
    both = torch.cat([stem, second], dim=1).double()
    scores = L1Norm().scores(model, graph, None)[coupled.name]
    torch.testing.assert_close(scores, both.abs().sum(1))
    scores = L2Norm().scores(model, graph, None)[coupled.name]
    torch.testing.assert_close(scores, both.norm(dim=1))


def test_transposed_convolutions_have_their_outputs_in_dimension_one():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2))
    weight = model[0].weight.detach()
    expected = [float(weight[2 * (o // 3) : 2 * (o // 3) + 2, o % 3].abs().sum()) for o in range(6)]
    scores = L1Norm().scores(model, fake_graph(**{"0": [1, 2, 3, 4, 5, 6]}), None)["0"]
    torch.testing.assert_close(scores, torch.tensor(expected).double())


def test_random_depends_on_the_seed_alone():
    graph = fake_graph(a=[1, 2, 3], b=[4, 5])
    first, again = (Random(3).scores(nn.Identity(), graph, None) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in ("a", "b"))
    assert not torch.equal(first["a"], Random(4).scores(nn.Identity(), graph, None)["a"])


def test_batch_norm_scale_is_the_mean_over_the_norms_that_carry_the_unit():
    model, graph = made(Residual())
    model.bn.weight.data = torch.tensor([1.0, -2.0, 0.0])
    model.bn2.weight.data = torch.tensor([-3.0, 2.0, 0.0])
    only = SimpleNamespace(
        groups=tuple(group for group in graph.groups if len(group.producers) == 2),
        outs=graph.outs,
        count=graph.count,
    )
    (scores,) = BatchNormScale().scores(model, only, None).values()
    assert scores.tolist() == [2.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("make", "scales"), [(vgg19, 5504), (densenet40, 9360), (preresnet164, 12112)]
)
def test_batch_norm_scale_and_target_reach_every_scale_behind_channel_selections(make, scales):
    """As network slimming counts them: one unit per scale, though others read the channel too."""
    model, example = make(classes=10), torch.zeros(1, 3, 32, 32)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.weight.data.uniform_(-1, 1)
    InsertChannelSelectors.of(model, example).apply(model)
    graph = ChannelGraph.trace(model, example)
    scores = torch.cat([*BatchNormScale().scores(model, graph, None).values()])
    assert len(scores) == scales
    every = torch.cat([norm.weight.detach().abs().double() for norm in norms])
    assert torch.equal(scores.sort().values, every.sort().values)
    blocks = Scales().rows(model, graph)
    stored = unit_scores(graph, blocks, [block.read().detach() for block in blocks])
    torch.testing.assert_close(torch.cat([*stored.values()]).double(), scores)


def test_batch_norm_scale_leaves_groups_without_norm_to_others():
    model, graph = made(Net(F.relu))
    scores = BatchNormScale().scores(model, graph, None)
    assert scores.keys() == {"conv1"} and len(graph.groups) == 2
    selection = PerLayer(0.5)
    masks = selection.choose(scores, graph, CostModel(model, graph))
    assert masks["conv1"].sum() == 2 and masks["conv2"].all()
    assert selection.select(Scored(scores, graph, CostModel(model, graph))).notes == (
        "not scored, so kept whole: conv2",
    )
    bare = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 2, 3))
    with pytest.raises(ConfigError, match="none of the 1 channel groups has a norm layer"):
        BatchNormScale().scores(*made(bare), None)


@pytest.mark.parametrize("act", ACTS)
def test_apoz_is_the_share_of_non_zeros_before_pooling(act):
    model, graph = made(Net(ACTS[act]))
    data = toy_data()
    scores = APoZ(samples=21).scores(model, graph, data)
    x = next(data.train.sample(21, 21))[0]
    with torch.no_grad():
        first = F.relu(model.bn1(model.conv1(x)))
        second = F.relu(model.conv2(F.max_pool2d(first, 2)))
    for name, out in (("conv1", first), ("conv2", second)):
        for channel in range(out.shape[1]):
            values = out[:, channel].flatten().tolist()
            share = sum(value != 0 for value in values) / len(values)
            assert scores[name][channel] == pytest.approx(share, abs=1e-12)
    assert 0 < scores["conv1"].min() < scores["conv1"].max() <= 1


def test_apoz_follows_channels_through_additions_and_a_reused_relu():
    model, graph = made(Residual())
    data = toy_data()
    scores = APoZ(samples=37).scores(model, graph, data)
    x = next(data.train.sample(37, 37))[0]
    with torch.no_grad():
        stem = model.bn(model.stem(x))
        inner = F.relu(model.conv1(stem))
        outer = F.relu(stem + model.bn2(model.conv2(inner)))
    for name, out in (("conv1", inner), ("stem", outer)):
        torch.testing.assert_close(scores[name], (out > 0).double().mean((0, 2, 3)))


def test_apoz_leaves_groups_without_relu_to_others():
    model, graph = made(Net(lambda x: x))
    with pytest.raises(ConfigError, match="none of the 2 channel groups meets a ReLU"):
        APoZ().scores(model, graph, toy_data())
    half = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.Flatten())
    model, graph = made(nn.Sequential(*half, nn.Linear(64, 5)))
    assert APoZ(5).scores(model, graph, toy_data()).keys() == {"0"}


def slopes(model, graph, emitters, absorb):
    """Mean absolute slope of an example's loss where the weights of units at layers go to zero.

    `emitters` are the layers that put out the units of each group; their biases go too unless they
    are absorbed.
    """
    parameters = dict(model.double().eval().named_parameters())
    x, y = next(toy_data().train.sample(9, 9))
    expected = {}
    for group, layers in emitters.items():
        total = torch.zeros(len(graph.outs[layers[0]]), dtype=torch.float64)
        for image, label in zip(x.double().split(1), y.split(1), strict=True):
            left = torch.ones_like(total, requires_grad=True)
            names = [f"{n}.{leaf}" for n in layers for leaf in ("weight", "bias")[: 2 - absorb]]
            scaled = {
                name: parameters[name] * left.reshape(-1, *[1] * (parameters[name].dim() - 1))
                for name in names
                if name in parameters
            }
            loss = F.cross_entropy(functional_call(model, parameters | scaled, (image,)), label)
            total += torch.autograd.grad(loss, left)[0].abs()
        expected[group] = total / total.norm()
    return expected


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("act", ["function", "in place"])
def test_taylor_is_the_slope_towards_the_removal(act, absorb):
    """A convolution with a norm loses its channel at the norm, the other one itself."""
    model, graph = made(Net(ACTS[act]))
    expected = slopes(model, graph, {"conv1": ["bn1"], "conv2": ["conv2"]}, absorb)
    model.float().train()
    scores = Taylor(samples=9, absorb=absorb).scores(model, graph, toy_data())
    assert model.training and model.bn1.training
    assert all(param.grad is None for param in model.parameters())
    for name, value in expected.items():
        torch.testing.assert_close(scores[name], value, rtol=1e-4, atol=1e-6)


def test_taylor_adds_what_puts_out_a_unit_before_the_absolute_value():
    model, graph = made(Residual())
    expected = slopes(model, graph, {"stem": ["bn", "bn2"], "conv1": ["conv1"]}, absorb=True)
    scores = Taylor(samples=9).scores(model.float(), graph, toy_data())
    for name, value in expected.items():
        torch.testing.assert_close(scores[name], value, rtol=1e-4, atol=1e-6)


def test_taylor_counts_units_once_that_a_depthwise_convolution_passes_on():
    """The last layer that puts out a constant for the unit decides what its reader gets."""
    model, graph = made(
        nn.Sequential(
            *(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, groups=3), nn.ReLU(), nn.Flatten()),
            nn.Linear(3 * 16, 5),
        )
    )
    expected = slopes(model, graph, {"0": ["1"]}, absorb=True)
    (scores,) = Taylor(samples=9).scores(model.float(), graph, toy_data()).values()
    torch.testing.assert_close(scores, expected["0"], rtol=1e-4, atol=1e-6)


class PreActivation(nn.Module):
    """A stream that every block normalises for itself before it reads it."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn1, self.bn2 = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 5)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(F.relu(self.bn1(x)))
        return self.fc(F.relu(self.bn2(x)).mean((2, 3)))


def test_taylor_reads_a_stream_at_the_norms_before_its_readers():
    """All that leaves the stream passes a norm, so no slope through its convolutions counts."""
    model, graph = made(PreActivation())
    (scores,) = Taylor(samples=9).scores(model, graph, toy_data()).values()
    model.double()
    x, y = next(toy_data().train.sample(9, 9))
    total = torch.zeros(3, dtype=torch.float64)
    for image, label in zip(x.double().split(1), y.split(1), strict=True):
        stream = model.stem(image)
        first = model.bn1(stream)
        second = model.bn2(stream + model.conv(F.relu(first)))
        loss = F.cross_entropy(model.fc(F.relu(second).mean((2, 3))), label)
        grads = torch.autograd.grad(loss, (first, second))
        shifts = (norm.bias.reshape(1, 3, 1, 1) for norm in (model.bn1, model.bn2))
        terms = zip(grads, (first, second), shifts, strict=True)
        total += sum((g * (z - s)).sum((0, 2, 3)) for g, z, s in terms).abs().detach()
    torch.testing.assert_close(scores, total / total.norm(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("absorb", [True, False])
def test_taylor_is_the_change_of_the_loss_by_a_cut_where_that_is_linear(absorb):
    """Without activations and with small logits the loss is as good as linear in a channel."""
    model, graph = made(
        nn.Sequential(
            *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AvgPool2d(2), nn.Conv2d(4, 3, 1)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)),
        )
    )
    model.double().eval()[-1].weight.data.mul_(1e-4)
    x, y = next(toy_data().train.sample(1, 1))
    x = x.double()
    dense = F.cross_entropy(model(x), y)
    changes = []
    for unit in range(4):
        kept = torch.arange(4) != unit
        mask = ChannelMask.of(graph, {**ChannelMask.all(graph), "0": kept})
        narrow = cut(model, graph, mask, Arguments.of(x), absorb=absorb, check=False).model
        changes.append(float((F.cross_entropy(narrow(x), y) - dense).detach().abs()))
    changes = torch.tensor(changes, dtype=torch.float64)
    data = SimpleNamespace(train=SimpleNamespace(sample=lambda *_: iter([(x, y)])))
    scores = Taylor(samples=1, absorb=absorb).scores(model, graph, data)["0"]
    torch.testing.assert_close(scores, changes / changes.norm(), rtol=1e-3, atol=1e-4)


def test_taylor_counts_a_convolution_that_is_added_to_its_own_input():
    """Its inputs and outputs are the same units, and yet it makes something of them."""
    model, graph = made(OwnInput())
    (scores,) = Taylor(samples=9, absorb=False).scores(model, graph, toy_data()).values()
    x, y = next(toy_data().train.sample(9, 9))
    total = torch.zeros(3)
    for image, label in zip(x.split(1), y.split(1), strict=True):
        first = model.stem(image)
        second = model.conv(first)
        loss = F.cross_entropy(model.fc((first + second).mean((2, 3))), label)
        grads = torch.autograd.grad(loss, (first, second))
        products = [(g * z).mean((0, 2, 3)) for g, z in zip(grads, (first, second), strict=True)]
        total += sum(products).abs().detach()
    torch.testing.assert_close(scores, (total / total.norm()).double(), rtol=1e-4, atol=1e-6)


class OwnInput(nn.Module):
    """A convolution around which its input goes."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3, padding=1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.conv(x)).mean((2, 3)))


class Reads(Net):
    """Applies the second convolution without calling it."""

    def forward(self, x):
        x = F.max_pool2d(self.act(self.bn1(self.conv1(x))), 2)
        x = F.conv2d(x, self.conv2.weight, self.conv2.bias)
        return self.fc(self.act(x).mean((2, 3)))


def test_taylor_has_no_score_where_the_forward_reads_the_weights_itself():
    called, graph = made(Net(F.relu))
    model, _ = made(Reads(F.relu))
    scores = Taylor(samples=2).scores(model, graph, toy_data())
    assert scores.keys() == {"conv1"}
    expected = Taylor(samples=2).scores(called, graph, toy_data())["conv1"]
    torch.testing.assert_close(scores["conv1"], expected)


def separable():
    """Units that pass a ReLU on both sides of a depthwise convolution."""
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3, groups=4, padding=1), nn.BatchNorm2d(4), nn.ReLU6()),
        *(nn.Conv2d(4, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)),
    )


@pytest.mark.parametrize(
    "network",
    [lambda: Net(F.relu), Residual, PreActivation, separable],
    ids=["plain", "residual", "pre-activation", "separable"],
)
def test_what_apoz_and_hrank_read_of_a_unit_is_what_its_removal_takes_away(network):
    """What they read of a removed unit is the same for any image."""
    model, graph = made(network())
    x = next(toy_data().train.sample(9, 9))[0]

    def differences(out):
        apart = (out - out[:1]).abs().transpose(0, 1).flatten(1)
        return apart.amax(1), 1.0

    units = torch.cat([group.units for group in graph.groups])
    before = total_of(relu_means(model, graph, [x], differences), graph)
    assert bool((before[units] > 1e-3).any())
    for unit in units.tolist():
        removed = torch.zeros(graph.count, dtype=torch.bool)
        removed[unit] = True
        with emitting_constants(model, graph, removed):
            after = total_of(relu_means(model, graph, [x], differences), graph)
        assert float(after[unit]) <= 1e-6


def total_of(scores, graph):
    """Scores as one vector over unit ids."""
    total = torch.zeros(graph.count, dtype=torch.float64)
    for group in graph.groups:
        total[group.units] = scores[group.name]
    return total


def test_fpgm_is_the_sum_of_distances_to_the_other_filters():
    model, graph = made(Residual())
    scores = FPGM().scores(model, graph, None)
    expected = torch.zeros(3, dtype=torch.float64)
    for layer in (model.stem, model.conv2):
        rows = layer.weight.detach().double().flatten(1).tolist()
        for i, one in enumerate(rows):
            expected[i] += sum(math.dist(one, other) for other in rows)
    torch.testing.assert_close(scores["stem"], expected)
    rows = model.conv1.weight.detach().double().flatten(1).tolist()
    assert scores["conv1"].tolist() == pytest.approx([math.dist(*rows)] * 2)


def test_lamp_is_the_share_of_what_is_no_smaller():
    model, graph = made(Residual())
    scores = LAMP().scores(model, graph, None)
    norms = L2Norm().scores(model, graph, None)
    for name, score in scores.items():
        squares = [float(norm) ** 2 for norm in norms[name]]
        expected = [s / sum(other for other in squares if other >= s) for s in squares]
        assert score.tolist() == pytest.approx(expected) and score.max() == 1


def test_lamp_of_equal_and_of_dead_units():
    model = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    model[0].weight.data = torch.tensor([2.0, 1.0, -1.0, 0.0]).reshape(4, 1, 1, 1)
    model[1].weight.data.zero_()
    scores = LAMP().scores(model, fake_graph(**{"0": [1, 2, 3, 4], "1": [5, 6]}), None)
    assert scores["0"].tolist() == pytest.approx([1, 1 / 6, 1 / 6, 0])
    assert scores["1"].tolist() == [0, 0]


class Small(nn.Module):
    """conv - norm - tanh - conv - tanh - fc, in double precision, so that nothing is flat."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)
        self.conv2, self.fc = nn.ConvTranspose2d(2, 2, 2), nn.Linear(2, 5)
        self.double()

    def forward(self, x):
        x = self.conv2(torch.tanh(self.bn(self.conv1(x.double()))))
        return self.fc(torch.tanh(x).mean((2, 3)))


def true_diagonal(model, x, y):
    """The diagonal of the Hessian of the mean loss, parameter by parameter."""
    named = dict(model.named_parameters())

    def loss(*weights):
        outputs = torch.func.functional_call(model, dict(zip(named, weights, strict=True)), x)
        return F.cross_entropy(outputs, y)

    blocks = torch.autograd.functional.hessian(loss, tuple(named.values()))
    return {
        name: row[i].reshape(value.numel(), -1).diagonal().reshape(value.shape)
        for i, (row, (name, value)) in enumerate(zip(blocks, named.items(), strict=True))
    }


def orthogonal_signs(weights):
    """As many sign vectors as entries or more; the mean of v * Hv over all of them is exact."""
    sizes = [weight.numel() for weight in weights]
    signs = torch.ones(1, 1, dtype=torch.float64)
    while len(signs) < sum(sizes):
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    rows = [row[: sum(sizes)].split(sizes) for row in signs]
    return [[p.reshape(w.shape) for p, w in zip(row, weights, strict=True)] for row in rows]


def test_orthogonal_signs_give_the_diagonal_of_the_hessian_exactly():
    model, _ = made(Small())
    x, y = next(toy_data().train.sample(5, 5))
    weights = list(model.parameters())
    probes = orthogonal_signs(weights)
    diagonal = hessian_diagonal(F.cross_entropy(model(x), y), weights, probes)
    for expected, one in zip(true_diagonal(model, x, y).values(), diagonal, strict=True):
        torch.testing.assert_close(one / len(probes), expected)


def test_hessian_scores_add_up_what_a_unit_has_in_every_layer(monkeypatch):
    """37 examples are two batches of unequal size; their mean is that of all at once."""
    model, graph = made(Small())
    model.conv1.weight.requires_grad_(False)
    probes = orthogonal_signs(list(model.parameters()))
    turns = itertools.cycle(probes)
    monkeypatch.setattr("prunekit.criteria.derivatives._signs", lambda *_: next(turns))
    data = toy_data()
    scores = HessianDiagonal(samples=37, probes=len(probes)).scores(model, graph, data)
    diagonal = true_diagonal(model, *next(data.train.sample(37, 37)))
    half = {n: 0.5 * diagonal[n] * w.detach() ** 2 for n, w in model.named_parameters()}
    norm = half["conv1.bias"] + half["bn.weight"] + half["bn.bias"]
    torch.testing.assert_close(scores["conv1"], half["conv1.weight"].sum((1, 2, 3)) + norm)
    expected = half["conv2.weight"].sum((0, 2, 3)) + half["conv2.bias"]
    torch.testing.assert_close(scores["conv2"], expected)
    assert not model.conv1.weight.requires_grad and model.conv2.weight.grad is None


def test_random_signs_are_unbiased_with_the_error_that_they_should_have():
    """The variance of one v * Hv is the sum of squares beside the diagonal (Hutchinson)."""
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian = half + half.T
    x = torch.ones(6, dtype=torch.float64, requires_grad=True)
    probes = [_signs([x], generator) for _ in range(400)]
    assert {float(value) for probe in probes for value in probe[0]} == {-1.0, 1.0}
    (total,) = hessian_diagonal(0.5 * x @ hessian @ x, [x], probes)
    error = (total / 400 - hessian.diagonal()).abs()
    deviation = (hessian.square().sum(0) - hessian.diagonal().square()).sqrt() / 20
    assert bool((error < 4 * deviation).all()) and float((error / deviation).max()) > 0.3


def test_the_seed_decides_the_signs():
    model, graph = made(Small())
    seeds = (0, 0, 1)
    one, same, other = (
        HessianDiagonal(5, seed=seed).scores(model, graph, toy_data())["conv1"] for seed in seeds
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


class Mixer(nn.Module):
    """Layer norm, attention and an MLP on tokens, as in transformers; then 1d convolutions."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Conv2d(1, 4, 4, stride=4), nn.LayerNorm(4)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.conv1, self.conv2 = nn.Conv1d(4, 5, 1), nn.Conv1d(5, 3, 1)
        self.fc = nn.Linear(3, 5)

    def forward(self, x):
        x = self.norm(self.embed(x).flatten(2).transpose(1, 2))
        x = x + F.scaled_dot_product_attention(x, x, x)
        x = self.norm(x + self.down(F.gelu(self.up(x))))
        x = self.conv2(F.relu(self.conv1(x.transpose(1, 2))))
        return self.fc(x.mean(2))


@pytest.mark.parametrize(
    "criterion",
    [Random(), L1Norm(), L2Norm(), FPGM(), LAMP(), Taylor(20), HessianDiagonal(20)],
    ids=lambda criterion: type(criterion).__name__,
)
def test_criteria_score_hidden_units_of_transformers_and_convolutions_of_any_rank(criterion):
    model, graph = made(Mixer())
    scores = criterion.scores(model, graph, toy_data())
    assert {"up": 6, "conv1": 5, "conv2": 3}.items() <= {
        n: len(s) for n, s in scores.items()
    }.items()
    assert all(bool(score.any()) for score in scores.values())


def test_hooks_are_gone_afterwards():
    model, graph = made(Net(F.relu))
    data = toy_data()
    APoZ(5).scores(model, graph, data), Taylor(5).scores(model, graph, data)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("criterion", [APoZ(), Taylor(), HessianDiagonal()])
def test_criteria_on_examples_need_data(criterion):
    model, graph = made(Net(F.relu))
    with pytest.raises(ConfigError, match="give it a data set"):
        criterion.scores(model, graph, None)


@pytest.mark.parametrize(
    "make",
    [lambda: APoZ(0), lambda: Taylor(1.5), lambda: Random(-1), lambda: HessianDiagonal(probes=0)],
)
def test_settings_are_refused_at_construction(make):
    with pytest.raises(ConfigError):
        make()


def test_scores_that_are_not_finite_name_the_group():
    model = nn.Sequential(nn.Conv2d(1, 2, 1))
    model[0].weight.data[1] = math.nan
    with pytest.raises(ConfigError, match="scores of 0 are not finite"):
        L1Norm().scores(model, fake_graph(**{"0": [1, 2]}), None)


def test_stored_scores_come_back_from_file_directory_and_run(tmp_path):
    place = tmp_path / "sparsify" / "scores.pt"
    graph = fake_graph(a=[1, 2], b=[3])
    saved = {"a": torch.tensor([0.0, 2.5]), "b": torch.tensor([1.0])}
    save_scores(place, saved)
    for path in (place, place.parent, tmp_path):
        scores = Stored(path).scores(nn.Identity(), graph, None)
        assert {name: score.tolist() for name, score in scores.items()} == {"a": [0, 2.5], "b": [1]}
    assert [file.name for file in place.parent.iterdir()] == ["scores.pt"]


def test_stored_scores_may_leave_groups_out_but_not_belong_to_another_network(tmp_path):
    save_scores(tmp_path / "scores.pt", {"a": torch.ones(2)})
    assert set(Stored(tmp_path).scores(nn.Identity(), fake_graph(a=[1, 2], b=[3]), None)) == {"a"}
    with pytest.raises(ArtifactError, match="has 2 scores for a, which has 3 units"):
        Stored(tmp_path).scores(nn.Identity(), fake_graph(a=[1, 2, 3]), None)
    with pytest.raises(ArtifactError, match="has 2 scores for a, which has 0 units"):
        Stored(tmp_path).scores(nn.Identity(), fake_graph(b=[1, 2]), None)
    with pytest.raises(ConfigError, match="path is not set"):
        Stored().scores(nn.Identity(), fake_graph(a=[1]), None)


def test_damaged_and_foreign_files_are_named(tmp_path):
    file = tmp_path / "scores.pt"
    with pytest.raises(ArtifactError, match="run sparsify first"):
        load_scores(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(ArtifactError, match="; run sparsify again"):
        load_scores(file)
    torch.save({"weight": torch.ones(2)}, file)
    with pytest.raises(ArtifactError, match="is no file of scores"):
        load_scores(file)
    torch.save({"format": "prunekit-scores-1", "scores": {"a": torch.tensor([math.inf])}}, file)
    with pytest.raises(ArtifactError, match="scores of a are not finite"):
        load_scores(file)
    with pytest.raises(ArtifactError, match="not one per unit"):
        save_scores(file, {"a": torch.ones(2, 2)})


@pytest.mark.parametrize("absorb", [True, False])
def test_taylor_follows_the_cut_that_prune_makes(absorb):
    model = Net(F.relu).eval()
    data = toy_data()
    pruned = prunekit.prune(
        model, data.example, keep=0.5, criterion="taylor", data=data, absorb=absorb
    )
    graph = pruned.graph
    expected = Taylor(absorb=absorb).scores(model, graph, data)
    for name, scores in pruned.pruning.scores.items():
        torch.testing.assert_close(scores, expected[name])
    other = Taylor(absorb=not absorb).scores(model, graph, data)
    assert any(not torch.allclose(expected[name], other[name]) for name in expected)
