"""Merging channels from weights alone, against networks of repeated channels and plain sums."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import prunekit
from prunekit.graph.layers import widths
from prunekit.selection import Widths
from prunekit.surgery import load_model
from prunekit.surgery.reconstruction import Merge, Merged
from prunekit.surgery.reconstruction.merge import _filters, _write_filters, k_means


class Chain(nn.Module):
    """A convolution and its norm, a depthwise one, a flattened linear layer, another one."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(2, width, 3), nn.BatchNorm2d(width)
        self.depth, self.norm2 = nn.Conv2d(width, width, 3, groups=width), nn.BatchNorm2d(width)
        self.point, self.norm3 = nn.Conv2d(width, width, 1, bias=False), nn.BatchNorm2d(width)
        self.wide, self.last = nn.Linear(4 * width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm2(self.depth(self.norm1(self.first(x)).tanh())).relu()
        return self.last(self.wide(self.norm3(self.point(x)).relu().flatten(1)).sigmoid())


class Residual(nn.Module):
    """A stream that several layers write to and read, and a norm in front of a block."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())
        return self.head(x.relu().mean((2, 3)))


class Grouped(nn.Module):
    """A grouped convolution between two others, and a transposed one."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, width, 3), nn.BatchNorm2d(width, affine=False)
        self.grouped = nn.Conv2d(width, width, 3, groups=2)
        self.up = nn.ConvTranspose2d(width, width, 2, stride=2)
        self.last = nn.Conv2d(width, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(self.norm(self.first(x)).tanh()).relu()
        return self.last(self.up(x).relu()).mean((2, 3))


NETWORKS = {"chain": Chain, "residual": Residual, "grouped": Grouped}


def random_network(kind: str, seed: int, width: int = 6) -> nn.Module:
    torch.manual_seed(seed)
    network = NETWORKS[kind](width).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return network.eval()


def repeat_units(network: nn.Module, x: Tensor, copies: dict[str, list[int]]) -> nn.Module:
    """Make units of every group equal to others in all of their parameters as outputs."""
    graph = prunekit.ChannelGraph.trace(network, x)
    twin = torch.arange(graph.count)
    for group in graph.groups:
        twin[group.units] = group.units[torch.tensor(copies[group.name])]
    with torch.no_grad():
        for name, units in graph.outs.items():
            places: dict[int, list[int]] = {}
            for place, unit in enumerate(units.tolist()):
                places.setdefault(unit, []).append(place)
            source = torch.arange(len(units))
            for unit, found in places.items():
                source[found] = torch.tensor(places[int(twin[unit])])
            module = network.get_submodule(name)
            for leaf in ("weight", "bias", "running_mean", "running_var"):
                value = getattr(module, leaf, None)
                if value is None:
                    continue
                if leaf == "weight" and isinstance(module, nn.ConvTranspose2d):
                    value.copy_(value[:, source])
                elif len(value) == len(source):
                    value.copy_(value[source].clone())
    return network


def prune_to(network: nn.Module, x: Tensor, kept: dict[str, list[int]], **options: object):
    """Cut a network to these units of every group, merging the others."""

    class Chosen(prunekit.criteria.Criterion):
        def scores(self, model, graph, data, device="cpu"):
            return {
                g.name: torch.isin(torch.arange(len(g.units)), torch.tensor(kept[g.name])).double()
                for g in graph.groups
            }

    widths = {name: len(units) for name, units in kept.items()}
    return prunekit.prune(
        network, x, criterion=Chosen(), selection=Widths(widths), check=False, **options
    )


@pytest.mark.parametrize("kind", NETWORKS)
@given(seed=st.integers(0, 10_000), drawn=st.data())
@settings(max_examples=12, deadline=None)
def test_equal_channels_merge_exactly(kind: str, seed: int, drawn: st.DataObject) -> None:
    """Of every set of equal units at least one is kept: the narrow network is the dense one."""
    x = torch.randn(4, 2, 6, 6, generator=torch.Generator().manual_seed(seed)).double()
    network = random_network(kind, seed)
    copies, kept = {}, {}
    for group in prunekit.ChannelGraph.trace(network, x).groups:
        count = len(group.units)
        distinct = drawn.draw(st.integers(1, count))
        copies[group.name] = [
            unit if unit < distinct else drawn.draw(st.integers(0, distinct - 1))
            for unit in range(count)
        ]
        order = drawn.draw(st.permutations(range(count)))
        chosen = {copies[group.name][unit]: unit for unit in order}
        kept[group.name] = sorted(chosen.values())
    network = repeat_units(network, x, copies)
    pruned = prune_to(network, x, kept, reconstruct="merge")
    with torch.no_grad():
        torch.testing.assert_close(pruned.model(x), network(x), rtol=1e-6, atol=1e-8)
    removed = sum(len(units) for units in copies.values()) - sum(map(len, kept.values()))
    assert pruned.refitted.units == removed


def test_the_law_is_that_of_merging() -> None:
    """The same cut without merging is another function."""
    x = torch.randn(4, 2, 6, 6, dtype=torch.double)
    network = random_network("chain", 3)
    names = [g.name for g in prunekit.ChannelGraph.trace(network, x).groups]
    network = repeat_units(network, x, {name: [0, 1, 2, 0, 1, 2] for name in names})
    kept = {name: [0, 1, 2] for name in names}
    with torch.no_grad():
        plain = prune_to(network, x, kept).model(x)
        assert float((plain - network(x)).abs().max()) > 1e-3


def test_a_cluster_is_read_as_the_sum_of_its_members() -> None:
    """A linear network: means of filters, with the sum of what read them."""
    torch.manual_seed(0)
    network, x = (
        nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double(),
        torch.randn(5, 3).double(),
    )
    with torch.no_grad():
        network[0].weight[2] = network[0].weight[0] + 0.01
        network[0].weight[3] = network[0].weight[1] - 0.02
        pruned = prune_to(network, x, {"0": [0, 1]}, reconstruct=Merge())
        first, last = network[0], network[1]
        means = (first.weight[:2] + first.weight[2:]) / 2, (first.bias[:2] + first.bias[2:]) / 2
        reading = last.weight[:, :2] + last.weight[:, 2:]
        expected = nn.functional.linear(x, *means) @ reading.T + last.bias
        torch.testing.assert_close(pruned.model(x), expected)
    assert isinstance(pruned.refitted, Merged)
    assert "2 removed units merged in 2 clusters" in str(pruned)


def test_the_norm_makes_up_for_the_spread_of_a_mean() -> None:
    """On white inputs a merged channel has the spread of its members, as their norms say it."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    ).double()
    x = torch.randn(4000, 8, 2, 2, dtype=torch.double)
    network[1].momentum = None
    nn.init.uniform_(network[1].weight, 0.5, 2)
    network.train()(x)
    network.eval()
    pruned = prune_to(network, x[:2], {"0": [1]}, reconstruct="merge")
    with torch.no_grad():
        dense, merged = network[:2](x), pruned.model[:2](x)
        spread = dense.var((0, 2, 3)).mean()
        torch.testing.assert_close(merged.var(), spread, rtol=0.05, atol=0)
        torch.testing.assert_close(merged.mean(), dense.mean(), rtol=0, atol=0.02)
        in_training = copy.deepcopy(pruned.model).train()[:2](x)
        torch.testing.assert_close(in_training, merged, rtol=0.1, atol=0.1)
    assert pruned.refitted.norms == ("1",)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 6),
        nn.Conv2d(4, 6, (3, 2)),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv2d(4, 8, 3, groups=4),
        nn.ConvTranspose2d(4, 6, 3, groups=2),
        nn.ConvTranspose2d(6, 2, 3, groups=2),
        nn.ConvTranspose2d(4, 8, 3, groups=4),
        nn.Conv2d(1, 3, 3),
    ],
    ids=["linear", "conv", "grouped", "depthwise", "up", "up to one", "up depthwise", "from one"],
)
def test_filters_that_are_read_can_be_written(layer: nn.Module) -> None:
    other = copy.deepcopy(layer)
    nn.init.zeros_(other.weight)
    with torch.no_grad():
        filters = _filters(layer)
        _write_filters(other, filters)
    assert torch.equal(other.weight, layer.weight)
    outs, ins = widths(layer)[1], widths(layer)[0]
    depthwise = 1 < getattr(layer, "groups", 1) == ins
    assert filters.shape[:2] == (outs, 1 if depthwise else ins)


def test_k_means_begins_with_the_kept_points_and_ends_at_means() -> None:
    points = torch.tensor([[0.0], [10.0], [1.0], [9.0], [4.0]]).double()
    assert k_means(points, torch.tensor([1, 0]), 20).tolist() == [1, 0, 1, 0, 1]
    assert k_means(points, torch.tensor([0, 2]), 20).tolist() == [0, 1, 0, 1, 0]
    assert k_means(points, torch.tensor([0, 2]), 1).tolist() == [0, 1, 1, 1, 1]


def test_merging_needs_no_data_and_is_saved(tmp_path: Path) -> None:
    x = torch.randn(4, 2, 6, 6).double()
    network = random_network("residual", 0)
    before = copy.deepcopy(network.state_dict())
    pruned = prunekit.prune(network, x, keep=0.5, reconstruct="merge")
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert pruned.refitted.units == 6 and not pruned.refitted.notes
    pruned.save(tmp_path / "narrow.pt")
    loaded = load_model(tmp_path / "narrow.pt", module=random_network("residual", 1)).model.eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), pruned.model.eval()(x))


class Lent(nn.Module):
    """Gives the weight of the layer that reads to a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.first(x).relu(), self.last.weight, self.last.bias)


class Tied(nn.Module):
    """Two layers behind one have the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.other = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 2)
        self.other.weight = self.last.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(x) + self.other(x)


@pytest.mark.parametrize("kind", [Lent, Tied])
def test_units_that_cannot_merge_are_told_of(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    network, x = kind().eval(), torch.randn(5, 3)
    merged = prunekit.prune(network, x, keep=0.5, reconstruct="merge")
    plain = prunekit.prune(network, x, keep=0.5)
    assert "2 removed units have no kept one of their kind" in "\n".join(merged.notes)
    assert "nothing to merge" in str(merged.refitted)
    with torch.no_grad():
        assert torch.equal(merged.model(x), plain.model(x))
