"""Criteria from what layers read, against brute force, least squares and the layers themselves."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import prunekit
from prunekit.criteria import CRITERIA, ContributionVariance, LayerOBS, ThiNet, UnexplainedVariance
from prunekit.criteria.thinet import greedy_ranks
from prunekit.data import Data, Normalize, TensorBatches
from prunekit.errors import ConfigError, DataError
from prunekit.graph import ChannelGraph
from prunekit.surgery.elimination import Elimination, greedy_order
from prunekit.surgery.read_moments import Reading, measure_readings

ALL = {"samples": 64, "rows": 1e6}  # every position of every image
KINDS = [ThiNet, ContributionVariance, UnexplainedVariance, LayerOBS]
NAMES = ["thinet", "contribution_variance", "unexplained_variance", "layer_obs"]


def data(images: Tensor) -> Data:
    """Images that are read as they are."""
    channels = images.shape[1]
    none = Normalize((0.0,) * channels, (1.0,) * channels)
    batches = TensorBatches(images, torch.zeros(len(images), dtype=torch.long), none)
    return Data(batches, batches, batches, 1, tuple(images.shape[1:]))


def scores(criterion: object, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    model = model.eval()
    graph = ChannelGraph.trace(model, images[:1])
    return criterion.scores(model, graph, data(images))


class Plain(nn.Module):
    """Two convolutions and a flattened linear layer; the last reads several inputs per channel."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, width, 3)
        self.second = nn.Conv2d(width, 4, 2, stride=2)
        self.last = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).tanh()).sigmoid().flatten(1))


class Shared(nn.Module):
    """Channels that a convolution, another one behind a depthwise one, and a linear layer read."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, padding=1)
        self.direct = nn.Conv2d(4, 3, 1)
        self.depth = nn.Conv2d(4, 4, 3, groups=4)
        self.behind = nn.Conv2d(4, 3, 1, bias=False)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        means = self.direct(x).mean((2, 3)) + self.behind(self.depth(x)).mean((2, 3))
        return means + self.last(x.mean((2, 3)))


def images(count: int = 20) -> Tensor:
    return torch.randn(count, 2, 11, 11, generator=torch.Generator().manual_seed(1))


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def patches(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Unfold what a layer reads: rows, and the number of the channel of every column."""
    if isinstance(layer, nn.Linear):
        return x.double(), torch.arange(x.shape[1])
    unfolded = F.unfold(x.double(), layer.kernel_size, padding=layer.padding, stride=layer.stride)
    columns = torch.arange(layer.in_channels).repeat_interleave(layer.weight[0, 0].numel())
    return unfolded.transpose(1, 2).flatten(0, 1), columns


def readers(network: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Rows, channel of every column, and weights of all layers that read the first one."""
    with torch.no_grad():
        if isinstance(network, Plain):
            layers = {"second": network.first(x).tanh()}
        else:
            y = network.first(x).relu()
            layers = {"direct": y, "behind": network.depth(y), "last": y.mean((2, 3))}
    found = {}
    for name, value in layers.items():
        layer = getattr(network, name)
        rows, channels = patches(layer, value)
        found[name] = rows, channels, layer.weight.detach().double().flatten(1).T
    return found


def refit_error(rows: Tensor, outputs: Tensor, left: Tensor) -> Tensor:
    """Return the squared error of outputs that are refitted, with a bias, on some columns."""
    ones = torch.ones(len(rows), 1, dtype=rows.dtype)
    design = torch.cat([rows[:, left], ones], 1)
    fitted = design @ torch.linalg.lstsq(design, outputs, driver="gelsd").solution
    return (outputs - fitted).square().sum(1).mean()


def relative(outputs: Tensor) -> Tensor:
    return outputs.var(0, correction=0).sum()


@pytest.mark.parametrize("kind", [Plain, Shared])
def test_the_variance_of_contributions_is_that_of_every_reader(kind: type[nn.Module]) -> None:
    network, x = made(kind), images()
    expected = torch.zeros(network.first.out_channels, dtype=torch.float64)
    for rows, channels, weights in readers(network, x).values():
        for channel in range(len(expected)):
            part = rows[:, channels == channel] @ weights[channels == channel]
            expected[channel] += relative(part) / relative(rows @ weights)
    found = scores(ContributionVariance(**ALL), network, x)["first"]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("absorb", [True, False])
@pytest.mark.parametrize("kind", [Plain, Shared])
def test_thinet_takes_the_greedy_step_of_brute_force(kind: type[nn.Module], absorb: bool) -> None:
    network, x = made(kind), images()
    width, removed = network.first.out_channels, []
    expected = torch.zeros(width, dtype=torch.float64)

    def error(channels_removed: list[int]) -> float:
        total = 0.0
        for rows, channels, weights in readers(network, x).values():
            out = torch.isin(channels, torch.tensor(channels_removed))
            change = rows[:, out] @ weights[out]
            change = change - change.mean(0) if absorb else change
            total += float(change.square().sum(1).mean() / relative(rows @ weights))
        return total

    for step in range(width):
        left = [channel for channel in range(width) if channel not in removed]
        removed.append(min(left, key=lambda channel: error([*removed, channel])))
        expected[removed[-1]] = step
    assert torch.equal(scores(ThiNet(**ALL, absorb=absorb), network, x)["first"], expected)


@given(st.integers(1, 5), st.integers(0, 2**31 - 1))
@settings(max_examples=30, deadline=None)
def test_greedy_ranks_are_those_of_explicit_sums(count: int, seed: int) -> None:
    parts = torch.randn(count, 7, generator=torch.Generator().manual_seed(seed)).double()
    removed: list[int] = []
    while len(removed) < count:
        left = [item for item in range(count) if item not in removed]
        sums = [parts[[*removed, item]].sum(0).square().sum() for item in left]
        removed.append(left[int(torch.stack(sums).argmin())])
    ranks = torch.empty(count, dtype=torch.float64)
    ranks[removed] = torch.arange(count).double()
    assert torch.equal(greedy_ranks(parts @ parts.T), ranks)


@pytest.mark.parametrize("kind", [Plain, Shared])
def test_what_others_do_not_explain_is_the_residual_of_lstsq(kind: type[nn.Module]) -> None:
    network, x = made(kind), images()
    expected = torch.zeros(network.first.out_channels, dtype=torch.float64)
    for rows, channels, weights in readers(network, x).values():
        spread = relative(rows @ weights)
        for column, channel in enumerate(channels.tolist()):
            error = refit_error(rows, rows[:, [column]], channels != channel)
            expected[channel] += error * weights[column].square().sum() / spread
    found = scores(UnexplainedVariance(**ALL), network, x)["first"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-9)


def test_a_combination_of_other_channels_scores_zero() -> None:
    network, x = made(Plain), images()
    first = network.first.weight.data
    mixed = nn.Sequential(network.first, nn.Conv2d(5, 4, 2))
    first[3] = 0.5 * first[0] - 2 * first[1]
    found = scores(UnexplainedVariance(**ALL), mixed, x)["0"]
    assert found[[0, 1, 3]].max() < 1e-6 * found[[2, 4]].min()


@pytest.mark.parametrize("kind", [Plain, Shared])
def test_layer_obs_is_the_rise_of_the_error_of_refitted_readers(kind: type[nn.Module]) -> None:
    """Every greedy step is compared with least squares on all channels that are left."""
    network, x = made(kind), images()
    width = network.first.out_channels
    parts = readers(network, x).values()

    def error(removed: list[int]) -> float:
        return sum(
            float(
                refit_error(rows, rows @ weights, ~torch.isin(channels, torch.tensor(removed)))
                / relative(rows @ weights)
            )
            for rows, channels, weights in parts
        )

    removed: list[int] = []
    before = largest = 0.0
    expected = torch.zeros(width, dtype=torch.float64)
    for _ in range(width):
        left = [channel for channel in range(width) if channel not in removed]
        errors = {channel: error([*removed, channel]) for channel in left}
        chosen = min(errors, key=lambda channel: errors[channel])
        largest = max(largest, errors[chosen] - before)
        before, expected[chosen] = errors[chosen], largest
        removed.append(chosen)
    found = scores(LayerOBS(**ALL, ridge=1e-9), network, x)["first"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-8)


def readings(seed: int, sizes: list[int], outputs: int) -> tuple[Reading, Tensor, Tensor]:
    """A reading of random rows, these rows, and the weights; unit 0 cannot be removed."""
    source = torch.Generator().manual_seed(seed)
    units = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    rows = torch.randn(50, len(units), generator=source, dtype=torch.float64) + 1
    weights = torch.randn(len(units), outputs, generator=source, dtype=torch.float64)
    spread = float(relative(rows @ weights))
    covariance = torch.cov(rows.T, correction=0).reshape(len(units), len(units))
    return Reading("layer", units, covariance, rows.mean(0), weights, spread), rows, weights


@given(st.integers(0, 2**31 - 1), st.lists(st.integers(1, 3), min_size=2, max_size=5), st.data())
@settings(max_examples=30, deadline=None)
def test_an_elimination_in_any_order_is_least_squares(
    seed: int, sizes: list[int], drawn: st.DataObject
) -> None:
    reading, rows, weights = readings(seed, sizes, 2)
    units = torch.arange(1, len(sizes))
    order = drawn.draw(st.permutations(range(len(units))))
    elimination, total, removed = Elimination([reading], units, ridge=0), 0.0, []
    for number in order:
        rise = elimination.increase(number)
        assert rise == pytest.approx(float(elimination.increases()[number]), rel=1e-6, abs=1e-9)
        elimination.remove(number)
        total += rise
        removed.append(int(units[number]))
        left = ~torch.isin(reading.units, torch.tensor(removed))
        error = refit_error(rows, rows @ weights, left) / reading.spread
        assert total == pytest.approx(float(error), rel=1e-5, abs=1e-7)
    assert bool(elimination.increases().isinf().all())


def test_a_greedy_order_names_every_unit_once() -> None:
    reading, _, _ = readings(0, [1, 2, 1, 3], 2)
    order = [number for number, _ in greedy_order(Elimination([reading], torch.arange(1, 4), 1e-3))]
    assert sorted(order) == [0, 1, 2]


class Concatenated(nn.Module):
    """Two branches side by side, a grouped convolution, a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 4, 3), nn.Conv2d(2, 4, 3)
        self.grouped = nn.Conv2d(8, 6, 1, groups=2)
        self.twice = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.left(x), self.right(x)], 1).tanh()
        z = self.twice(self.grouped(y).mean((2, 3)).tanh())
        return self.last(self.twice(z.tanh()).tanh())


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_every_group_of_a_mixed_network_is_scored(kind: type) -> None:
    found = scores(kind(**ALL), made(Concatenated), images())
    graph = ChannelGraph.trace(made(Concatenated), images()[:1])
    assert {*found} == {group.name for group in graph.groups}
    assert all(len(found[group.name]) == len(group.units) for group in graph.groups)
    assert all(bool((score >= 0).all() and score.any()) for score in found.values())


def test_readings_are_covariances_of_all_calls() -> None:
    network, x = made(Concatenated), images()
    inputs: list[Tensor] = []
    graph = ChannelGraph.trace(network, x[:1])
    network.twice.register_forward_pre_hook(lambda layer, args: inputs.append(args[0].detach()))
    found = measure_readings(network, graph, [x[:12], x[12:]], len(x), 1e6)
    (reading,) = [reading for reading in found if reading.layer == "twice"]
    rows = torch.cat(inputs).double()
    torch.testing.assert_close(reading.mean, rows.mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        reading.covariance, torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-7
    )
    assert len([reading for reading in found if reading.layer == "grouped"]) == 2


def test_sampled_rows_are_near_all_of_them() -> None:
    network, x = made(Plain), images(300)
    every, some = (scores(ContributionVariance(300, rows), network, x) for rows in (1e6, 2))
    for name, score in every.items():
        torch.testing.assert_close(some[name], score, rtol=0.2, atol=0)
    assert not torch.equal(every["first"], some["first"])


class Lent(nn.Module):
    """Gives the weights of a convolution and of a linear layer to functions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3)
        self.middle, self.linear = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(self.first(x).tanh(), self.conv.weight, self.conv.bias, stride=2)
        z = self.middle(y.mean((2, 3))).tanh()
        return F.linear(z, self.linear.weight, self.linear.bias)


def test_what_a_convolution_by_function_reads_is_not_scored() -> None:
    network, x = made(Lent), images()
    graph = ChannelGraph.trace(network, x[:1])
    found = scores(ContributionVariance(**ALL), network, x)
    assert {"first", "middle"} <= {group.name for group in graph.groups}
    assert "first" not in found
    with torch.no_grad():
        inputs = F.conv2d(network.first(x).tanh(), network.conv.weight, network.conv.bias, stride=2)
        rows = network.middle(inputs.mean((2, 3))).tanh().double()
    weights = network.linear.weight.detach().double()
    expected = rows.var(0, correction=0) * weights.square().sum(0) / relative(rows @ weights.T)
    torch.testing.assert_close(found["middle"], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(("kind", "name"), [*zip(KINDS, NAMES, strict=True)], ids=NAMES)
def test_reader_criteria_say_what_they_need(kind: type, name: str) -> None:
    assert isinstance(CRITERIA.resolve(name, object), kind)
    network, x = made(Plain), images()
    with pytest.raises(ConfigError, match=r"give it a data set"):
        prunekit.prune(network, x[:1], keep=0.5, criterion=name)
    network.first.weight.data[2] = torch.nan
    with pytest.raises(DataError, match="second reads NaN"):
        scores(kind(**ALL), network, x)


def test_choosing_for_a_refit_loses_less_than_the_worst_choice() -> None:
    """Of all choices of three channels the greedy one is near the best, after refitting."""
    network, x = made(Plain), images()
    ((rows, channels, weights),) = readers(network, x).values()
    order = scores(LayerOBS(**ALL), network, x)["first"].argsort(descending=True)[:3].tolist()
    errors = {
        kept: float(refit_error(rows, rows @ weights, torch.isin(channels, torch.tensor(kept))))
        for kept in itertools.combinations(range(5), 3)
    }
    chosen = errors[tuple(sorted(order))]
    assert chosen <= sorted(errors.values())[1]
