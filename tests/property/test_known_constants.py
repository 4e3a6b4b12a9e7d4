"""What zeros leave goes without a trace: narrow and dense network are one function."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import prunekit
from prunekit.criteria import Criterion
from prunekit.graph import ChannelGraph
from prunekit.selection import Zeros
from prunekit.surgery.cut import cut

NORMS = {
    "none": lambda width: nn.Identity(),
    "batch": nn.BatchNorm2d,
    "batch without scales": lambda width: nn.BatchNorm2d(width, affine=False),
    "batch without statistics": lambda width: nn.BatchNorm2d(width, track_running_stats=False),
    "instance": lambda width: nn.InstanceNorm2d(width, affine=True),
    "instance with statistics": lambda width: nn.InstanceNorm2d(
        width, affine=True, track_running_stats=True
    ),
    "groups": lambda width: nn.GroupNorm(4, width),
    "groups without scales": lambda width: nn.GroupNorm(4, width, affine=False),
}
CONVOLUTIONS = {
    "plain": nn.Conv2d,
    "normalised": lambda *sizes, **more: weight_norm(nn.Conv2d(*sizes, **more)),
    "transposed": lambda ins, outs, size, **more: nn.ConvTranspose2d(ins, outs, 1, **more),
}
ACTIVATIONS = [nn.ReLU, nn.Sigmoid, nn.GELU, nn.Identity, nn.ReLU6]
WAYS = ["filters", "filters and biases", "scales", "inputs", "entries"]
WIDTH = 8


class Given(Criterion):
    """Scores that are known beforehand."""

    def __init__(self, scores):
        vars(self)["given"] = scores

    def scores(self, model, graph, data, device="cpu"):
        return self.given


class Chain(nn.Module):
    """Two convolutions with norms, a depthwise one if asked for, and a classifier."""

    def __init__(self, norm, kind="plain", act=nn.ReLU, pad=0, depthwise=False, bias=True):
        super().__init__()
        self.first = CONVOLUTIONS[kind](2, WIDTH, 3, bias=bias)
        self.norm, self.act = NORMS[norm](WIDTH), act()
        deep = nn.Conv2d(WIDTH, WIDTH, 3, padding=pad, groups=WIDTH)
        self.deep = nn.Sequential(deep, nn.BatchNorm2d(WIDTH)) if depthwise else nn.Identity()
        self.second = nn.Conv2d(WIDTH, 6, 3, padding=pad, bias=False)
        self.after, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.deep(self.act(self.norm(self.first(x))))
        return self.head(torch.tanh(self.after(self.second(x))).mean((2, 3)))


@torch.no_grad()
def randomised(model, seed):
    """Random scales, shifts, biases and statistics, in doubles and eval mode."""
    torch.manual_seed(seed)
    for norm in model.modules():
        if hasattr(norm, "num_features") or isinstance(norm, nn.GroupNorm):
            for name in ("weight", "bias", "running_mean"):
                if getattr(norm, name, None) is not None:
                    nn.init.uniform_(getattr(norm, name), -1, 1)
            if getattr(norm, "running_var", None) is not None:
                nn.init.uniform_(norm.running_var, 0.5, 2)
    return model.double().eval()


@torch.no_grad()
def write_zeros(model, way, dead):
    """Write what a solver leaves behind for these channels, for one kind of rows."""
    if way == "scales":
        model.norm.weight[dead] = 0
    elif way == "inputs":
        model.second.weight[:, dead] = 0
    elif hasattr(model.first, "parametrizations"):
        model.first.parametrizations.weight.original0[dead] = 0
    else:
        by_output = model.first.weight.movedim(int(isinstance(model.first, nn.ConvTranspose2d)), 0)
        by_output[dead] = 0
    if way in ("filters and biases", "entries") and model.first.bias is not None:
        model.first.bias[dead] = 0


@st.composite
def cases(draw, pad=0):
    norm, kind = draw(st.sampled_from([*NORMS])), draw(st.sampled_from([*CONVOLUTIONS]))
    way = draw(st.sampled_from(WAYS))
    depthwise = draw(st.booleans()) and way != "inputs"
    settings_ = {"act": draw(st.sampled_from(ACTIVATIONS)), "bias": draw(st.booleans())}
    model = randomised(Chain(norm, kind, pad=pad, depthwise=depthwise, **settings_), draw(SEEDS))
    if way == "scales" and getattr(model.norm, "weight", None) is None:
        way = "filters"
    size = 2 if norm.startswith("groups") else 1  # channels that are normed together
    chosen = draw(
        st.sets(st.integers(0, WIDTH // size - 1), min_size=1, max_size=WIDTH // size - 1)
    )
    dead = torch.tensor([size * i + j for i in sorted(chosen) for j in range(size)])
    write_zeros(model, way, dead)
    return model, dead


SEEDS = st.integers(0, 1000)
X = torch.randn(3, 2, 11, 11, generator=torch.Generator().manual_seed(0)).double()
OTHER = torch.randn(5, 2, 11, 11, generator=torch.Generator().manual_seed(1)).double()


def gap(one, other, images=OTHER):
    with torch.no_grad():
        first, second = one(images), other(images)
    return float((first - second).abs().max() / second.abs().max())


def scores_of(graph, dead):
    """Zeros for the units of dead channels, ones for all others."""
    alive = torch.ones(graph.count)
    alive[graph.outs["first"][dead]] = 0
    return {g.name: alive[g.units] for g in graph.groups if g.name == "first"}


@settings(max_examples=50, deadline=None)
@given(cases(), st.sampled_from(["auto", "auto", True]))
def test_what_is_known_exactly_leaves_the_function_by_default(case, absorb):
    model, dead = case
    graph = ChannelGraph.trace(model, X)
    scores = scores_of(graph, dead)
    wish = {"criterion": Given(scores), "selection": Zeros(), "absorb": absorb}
    pruned = prunekit.prune(model, X[:2], **wish)
    assert pruned.model.second.in_channels == WIDTH - len(dead)
    assert gap(pruned.model.eval(), model) < 1e-8  # on images that it has not seen
    assert pruned.distance.exact and pruned.distance.gap.relative < 1e-8
    small = prunekit.shrink(model, graph, scores)
    assert small.second.in_channels == WIDTH - len(dead) and gap(small, model) < 1e-8


@settings(max_examples=25, deadline=None)
@given(cases(pad=1))
def test_at_padded_borders_maps_are_exact_and_the_default_says_how_far_it_is(case):
    model, dead = case
    wish = {"criterion": Given(scores_of(ChannelGraph.trace(model, X), dead)), "selection": Zeros()}
    mapped = prunekit.prune(model, X, absorb="maps", **wish)
    assert gap(mapped.model.eval(), model) < 1e-8
    for absorb in ("auto", False):
        pruned = prunekit.prune(model, X, absorb=absorb, **wish)
        measured = gap(pruned.model.eval(), model, X)
        assert pruned.distance.gap.relative == pytest.approx(measured, rel=1e-6, abs=1e-12)
        assert str(pruned.distance) in str(pruned)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.sampled_from([*NORMS]), st.sampled_from(["l1_norm", "random"]))
def test_the_distance_of_every_other_cut_is_that_to_the_dense_network(seed, norm, criterion):
    model = randomised(Chain(norm), seed)
    pruned = prunekit.prune(model, X, keep=0.5, criterion=criterion)
    found = pruned.distance
    assert found.gap.relative == pytest.approx(gap(pruned.model.eval(), model, X), rel=1e-6)
    assert not found.exact and "narrow and dense network differ by" in str(pruned)


def test_zero_scores_of_channels_that_live_are_not_taken_for_constants():
    """Their biases are no constants: what they put out depends on the input."""
    model = randomised(Chain("batch"), 0)
    nn.init.constant_(model.norm.bias, 1.0)
    graph = ChannelGraph.trace(model, X)
    scores = scores_of(graph, torch.tensor([0, 3]))
    pruned = prunekit.prune(model, X, criterion=Given(scores), selection=Zeros())
    assert pruned.absorbed is None and not pruned.distance.exact
    found = cut(model, graph, pruned.masks, X, absorb=True)
    assert found.absorbed.layers and not found.distance.exact


def test_one_example_is_enough_to_know_that_a_gate_varies():
    class Gated(Chain):
        def forward(self, x):
            return super().forward(x * torch.sigmoid(x.mean((1, 2, 3), keepdim=True)))

    class Scaled(Gated):
        """A gate behind the constant."""

        def forward(self, x):
            seen = self.act(self.norm(self.first(x))) * torch.sigmoid(x.mean((1, 2, 3), True))
            return self.head(torch.tanh(self.after(self.second(seen))).mean((2, 3)))

    for kind, exact in ((Gated, True), (Scaled, False)):
        model = randomised(kind("batch", act=nn.Sigmoid), 0)
        write_zeros(model, "scales", torch.tensor([1, 2]))
        scores = scores_of(ChannelGraph.trace(model, X[:1]), torch.tensor([1, 2]))
        pruned = prunekit.prune(model, X[:1], criterion=Given(scores), selection=Zeros())
        assert (pruned.absorbed is not None) is exact is pruned.distance.exact


class ByFunction(nn.Module):
    """The same layers with weights that functions are given."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(WIDTH, 2, 3, 3)), None
        self.norm, self.second = nn.BatchNorm2d(WIDTH), nn.Conv2d(WIDTH, 6, 1)
        self.last = nn.Conv2d(6, 3, 1)

    def forward(self, x):
        norm = self.norm
        statistics = norm.running_mean, norm.running_var
        x = F.batch_norm(F.conv2d(x, self.weight), *statistics, norm.weight, norm.bias)
        x = F.conv2d(torch.sigmoid(x), self.second.weight, self.second.bias)
        return self.last(torch.tanh(x)).mean((2, 3))


@pytest.mark.parametrize("way", ["filters", "scales"])
def test_layers_whose_weights_are_passed_to_functions(way):
    model, dead = randomised(ByFunction(), 0), torch.tensor([0, 5])
    with torch.no_grad():
        (model.weight if way == "filters" else model.norm.weight)[dead] = 0
    graph = ChannelGraph.trace(model, X)
    alive = torch.ones(graph.count)
    alive[graph.outs["weight"][dead]] = 0
    scores = {g.name: alive[g.units] for g in graph.groups if g.name == "weight"}
    pruned = prunekit.prune(model, X, criterion=Given(scores), selection=Zeros())
    assert pruned.model.second.weight.shape[1] == WIDTH - 2 and pruned.distance.exact
    assert gap(pruned.model, model) < 1e-8


class Branched(nn.Module):
    """A residual block whose branch may vanish."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(2, 6, 3), Block(), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.block(torch.relu(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(6, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x):
        return torch.tanh(x + self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))))


@pytest.mark.parametrize("way", ["filters", "scales"])
def test_blocks_that_are_removed_whole_leave_their_constant(way):
    model = randomised(Branched(), 0)
    with torch.no_grad():
        (model.block.conv1 if way == "filters" else model.block.bn1).weight.zero_()
    scores = Given({"block.conv1": torch.zeros(4)})
    pruned = prunekit.prune(model, X, criterion=scores, selection=Zeros(min_keep=0))
    assert pruned.widths["block.conv1"] == (4, 0) and pruned.distance.exact
    assert gap(pruned.model, model) < 1e-8
    for live in (model.block.conv1.weight, model.block.bn1.weight):
        nn.init.uniform_(live, 0.5, 1)
    pruned = prunekit.prune(model, X, criterion=scores, selection=Zeros(min_keep=0))
    assert pruned.absorbed is None and not pruned.distance.exact


def test_channels_under_a_layer_norm_are_told_how_far_off_they_are():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH)
            self.second = nn.Linear(WIDTH, 3)

        def forward(self, x):
            return self.second(self.norm(self.first(x)))

    torch.manual_seed(0)
    model, x = Tokens().double().eval(), torch.randn(4, 6, 5).double()
    with torch.no_grad():
        model.norm.weight[:2], model.norm.bias[:2] = 0, 0.7
    scores = Given({"first": torch.tensor([0.0, 0, 1, 1, 1, 1, 1, 1])})
    pruned = prunekit.prune(model, x, criterion=scores, selection=Zeros(), over_norms=True)
    measured = gap(pruned.model, model, x)
    assert pruned.distance.gap.relative == pytest.approx(measured) and measured > 1e-3
    assert not pruned.distance.exact


def test_shrink_warns_where_it_changes_the_function(caplog):
    model = randomised(Chain("batch", pad=1), 0)
    write_zeros(model, "scales", torch.tensor([1, 2]))
    nn.init.constant_(model.norm.bias, 1.0)
    graph = ChannelGraph.trace(model, X)
    scores, before = scores_of(graph, torch.tensor([1, 2])), copy.deepcopy(model.state_dict())
    with caplog.at_level(logging.WARNING):
        small = prunekit.shrink(model, graph, scores, example=X)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"shrink: narrow and dense network differ by {gap(small, model, X):.2%}")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
