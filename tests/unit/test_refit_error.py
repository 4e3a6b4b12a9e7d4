"""Shares by refitting errors, against brute force over all widths."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import prunekit
from prunekit.data import Data, Normalize, TensorBatches
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.selection import MacsTarget, ParamsTarget, RefitError, Scored
from prunekit.selection.refit_error import hull_slopes, refit_errors
from prunekit.surgery.elimination import Elimination
from prunekit.surgery.output_slopes import in_network_outputs, output_slopes
from prunekit.surgery.read_moments import measure_readings


def data(count: int = 60) -> Data:
    """Noise images that are read as they are."""
    images = torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    none = Normalize((0.0, 0.0), (1.0, 1.0))
    batches = TensorBatches(images, torch.zeros(count, dtype=torch.long), none)
    return Data(batches, batches, batches, 1, (2, 6, 6))


class Two(nn.Module):
    """Two branches of equal cost; the channels of `easy` are sums of two of them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.easy, self.hard = nn.Conv2d(2, width, 3), nn.Conv2d(2, width, 3)
        self.easy_out, self.hard_out = nn.Conv2d(width, 3, 1), nn.Conv2d(width, 3, 1)
        with torch.no_grad():
            mix = torch.randn(width - 2, 2)
            self.easy.weight[2:] = torch.einsum("ij,jchw->ichw", mix, self.easy.weight[:2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.easy_out(self.easy(x)), self.hard_out(self.hard(x).tanh())
        return (left + right).mean((2, 3))


@given(st.lists(st.floats(0, 10), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_slopes_are_those_of_the_largest_convex_function_below(rises: list[float]) -> None:
    errors = torch.tensor([0.0, *rises], dtype=torch.float64).cumsum(0)
    hull = torch.cat([torch.zeros(1, dtype=torch.float64), hull_slopes(errors).cumsum(0)])
    chords = torch.tensor(
        [
            min(
                float(errors[a] + (errors[b] - errors[a]) * (i - a) / max(b - a, 1))
                for a in range(i + 1)
                for b in range(i, len(errors))
            )
            for i in range(len(errors))
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(hull, chords, rtol=1e-9, atol=1e-9)


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=1, max_size=4), min_size=2, max_size=3),
    st.integers(0, 10),
)
@settings(max_examples=60, deadline=None)
def test_no_other_widths_have_less_error_at_the_same_number(
    groups: list[list[float]], number: int
) -> None:
    """Where errors are convex, taking the lowest slopes first is the optimum of all widths."""
    errors = [torch.tensor([0.0, *sorted(rises)], dtype=torch.double).cumsum(0) for rises in groups]
    slopes = torch.cat([hull_slopes(curve) for curve in errors]).sort().values
    number = min(number, len(slopes))
    best = min(
        sum(float(curve[count]) for curve, count in zip(errors, counts, strict=True))
        for counts in itertools.product(*(range(len(curve)) for curve in errors))
        if sum(counts) == number
    )
    assert float(slopes[:number].sum()) == pytest.approx(best, abs=1e-9)


def test_the_group_that_others_explain_is_narrowed() -> None:
    network = Two().eval()
    selection = RefitError(MacsTarget(0.64), ridge=1e-3)
    pruned = prunekit.prune(network, torch.zeros(1, 2, 6, 6), data=data(), selection=selection)
    kept = {name: len(indices) for name, indices in pruned.kept.items()}
    assert kept == {"easy": 2, "hard": 8}
    assert pruned.after.macs <= 0.64 * pruned.before.macs
    (budget,) = pruned.budgets
    assert budget.requested == 0.64 and budget.satisfied


def test_errors_fall_to_zero_where_nothing_is_removed_and_never_decrease() -> None:
    network, images = Two().eval(), data()
    graph = ChannelGraph.trace(network, torch.zeros(1, 2, 6, 6))
    batches = [x for x, _ in images.train.sample(60, 20)]
    readings = measure_readings(network, graph, batches, 60, 1e6)
    for group in graph.groups:
        errors = refit_errors(readings, group.units, torch.rand(8), 1e-9)
        assert errors[0] == 0 and bool((errors.diff() >= 0).all())
        assert float(errors[-1]) == pytest.approx(1, rel=1e-6)  # only means stay
        if group.name == "easy":  # two channels explain the others
            assert float(errors[6]) < 1e-6


def test_a_unit_that_saves_more_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two groups with the same errors, the one whose units cost more is narrowed more."""

    class Sizes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.large, self.small = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(2, 6, 3, stride=3)
            self.one, self.two = nn.Linear(6, 2), nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            large = self.one(self.large(x).mean((2, 3)))
            return large + self.two(self.small(x).mean((2, 3)))

    network = Sizes().eval()
    graph = ChannelGraph.trace(network, torch.zeros(1, 2, 6, 6))
    scores = {g.name: torch.arange(6).double() for g in graph.groups}
    scored = Scored(scores, graph, CostModel(network, graph), model=network, data=data())
    equal = torch.arange(7, dtype=torch.float64).square()
    monkeypatch.setattr("prunekit.selection.refit_error.refit_errors", lambda *args: equal)
    keep = RefitError(MacsTarget(0.7)).select(scored).keep
    assert keep.counts == {"large": 3, "small": 6}  # of 36 positions, and of 4


class Logit(nn.Module):
    """One logit, from a convolution, a grouped one that is called twice, and a linear function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.grouped = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1, groups=2)
        self.last = nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.grouped(self.grouped(self.first(x).tanh()).relu()).tanh()
        return nn.functional.linear(x.mean((2, 3)), self.last.weight, self.last.bias)


def test_slopes_of_outputs_are_derivatives_by_biases() -> None:
    """A bias changes a channel by the same amount at all positions; the second call is alone."""
    network = Logit().eval()
    x = next(data().train.sample(10, 10))[0]
    graph = ChannelGraph.trace(network, x[:1])
    found = output_slopes(network, graph, ["first", "grouped", "last"], [x[:7], x[7:]])

    def by_example(name: str) -> torch.Tensor:
        def logits(bias: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(network, {f"{name}.bias": bias}, x)[:, 0]

        return torch.func.jacrev(logits)(getattr(network, name).bias.detach()).double()

    expected = by_example("first").square().mean(0)
    torch.testing.assert_close(found["first"], expected, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(found["last"], torch.ones(1, dtype=torch.double))
    assert found["grouped"].shape == (4,)


def test_weighted_errors_are_those_of_the_logits() -> None:
    """Behind the reader everything is linear and there is one position: the error is exact."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(72, 5), nn.Tanh(), nn.Linear(5, 3), nn.Linear(3, 1)
    )
    network.eval().requires_grad_(False)
    x = next(data().train.sample(60, 60))[0]
    graph = ChannelGraph.trace(network, x[:1])
    readings = measure_readings(network, graph, [x], 60, 1e6)
    slopes = output_slopes(network, graph, [reading.layer for reading in readings], [x])
    (group,) = [group for group in graph.groups if group.name == "1"]
    (reading,) = [r for r in in_network_outputs(readings, slopes) if r.layer == "3"]
    with torch.no_grad():
        rows = network[:3](x).double()
        effect = rows[:, [2]] @ (network[4].weight @ network[3].weight).double()[:, [2]].T
    error = Elimination([reading], group.units, ridge=0).increase(2)
    others = torch.cat([rows[:, [0, 1, 3, 4]], torch.ones(60, 1, dtype=torch.double)], 1)
    rest = effect - others @ torch.linalg.lstsq(others, effect).solution
    # the errors of the three outputs count as if they were independent
    weights, behind = network[3].weight[:, 2].double(), network[4].weight[0].double()
    scale = (weights * behind).square().sum() / (weights @ behind).square()
    assert error == pytest.approx(float(rest.square().mean() * scale), rel=1e-4)


class Lent(nn.Module):
    """Gives the weights of the layer that reads `first` to a function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.conv = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 5, 3)
        self.middle, self.last = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.conv2d(self.first(x).tanh(), self.conv.weight, self.conv.bias)
        return self.last(self.middle(x.mean((2, 3))).tanh())


def test_groups_that_cannot_be_measured_are_kept_whole() -> None:
    selection = RefitError(ParamsTarget(0.95))
    pruned = prunekit.prune(
        Lent().eval(), torch.zeros(1, 2, 6, 6), data=data(), selection=selection, reconstruct=None
    )
    kept = {name: len(indices) for name, indices in pruned.kept.items()}
    assert kept["first"] == 6 and sum(kept.values()) < 17
    assert any("first" in note and "kept whole" in note for note in pruned.notes)


def test_what_it_needs_is_said() -> None:
    network = Two().eval()
    with pytest.raises(ConfigError, match=r"selection=refit_error .* give data"):
        prunekit.prune(network, torch.zeros(1, 2, 6, 6), selection="refit_error")
    with pytest.raises(ConfigError, match=r"cannot be reached"):
        prunekit.prune(
            network,
            torch.zeros(1, 2, 6, 6),
            data=data(),
            selection=RefitError(ParamsTarget(0.01)),
        )
