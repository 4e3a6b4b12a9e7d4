"""Which parameters each target finds, and which unit each row belongs to."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.targets import TARGETS, Coupled, Entries, Filters, Inputs, Scales, Target


def ids(*values: int) -> Tensor:
    return torch.tensor(values)


class Net(nn.Module):
    """A stub of a network: the graph below says how its layers are joined."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.conv2 = nn.Conv2d(2, 3, 3, bias=False)
        self.up = nn.ConvTranspose2d(3, 3, 2)
        self.fc = nn.Linear(12, 4)
        self.unused = nn.Linear(2, 2)


def graph_of() -> SimpleNamespace:
    """Units 1-2 from conv1, 3-5 from conv2 and up together; up is flattened into 4 columns each."""
    coupled = ids(3, 4, 5)
    return SimpleNamespace(
        ins={
            "conv1": ids(0, 0, 0),
            "conv2": ids(1, 2),
            "norm": ids(1, 2),
            "up": coupled,
            "fc": coupled.repeat_interleave(4),
        },
        outs={
            "conv1": ids(1, 2),
            "norm": ids(1, 2),
            "conv2": coupled,
            "up": coupled,
            "fc": ids(0, 0, 0, 0),
        },
        groups=(
            SimpleNamespace(name="conv1", units=ids(1, 2), producers=("conv1",)),
            SimpleNamespace(name="conv2", units=coupled, producers=("conv2", "up")),
        ),
        count=6,
    )


def named(target: Target, graph: SimpleNamespace | None = None, net: Net | None = None) -> dict:
    return {block.name: block for block in target.rows(net or Net(), graph or graph_of())}


def test_filters_are_rows_along_the_output_dimension():
    net = Net()
    blocks = named(Filters(), net=net)
    assert list(blocks) == ["conv1", "conv2", "up"]
    assert torch.equal(blocks["conv1"].read(), net.conv1.weight.detach().flatten(1))
    assert torch.equal(blocks["up"].read()[1], net.up.weight.detach()[:, 1].flatten())
    assert blocks["up"].units.tolist() == [3, 4, 5]


def test_filters_take_their_bias_along_when_asked():
    net = Net()
    blocks = named(Filters(bias=True), net=net)
    assert torch.equal(blocks["conv1"].read()[:, -1], net.conv1.bias.detach())
    assert blocks["conv2"].read().shape == (3, 18)
    assert torch.equal(blocks["up"].read()[:, -1], net.up.bias.detach())


def test_a_layer_with_one_fixed_output_has_no_filters_to_remove():
    graph = graph_of()
    graph.outs["conv1"] = ids(0, 2)
    assert list(named(Filters(), graph)) == ["conv2", "up"]


def test_entries_know_the_unit_of_their_filter():
    net = Net()
    blocks = named(Entries(), net=net)
    assert list(blocks) == ["conv1", "conv2", "up", "fc"]
    for name, dim in (("conv1", 0), ("up", 1), ("fc", 0)):
        weight = net.get_submodule(name).weight
        where = torch.zeros_like(weight)
        for index, unit in enumerate(graph_of().outs[name].tolist()):
            where.select(dim, index).fill_(unit)
        assert blocks[name].units.tolist() == where.flatten().tolist()
        assert torch.equal(blocks[name].read(), weight.detach().reshape(-1, 1))


def test_inputs_join_the_columns_of_a_flattened_channel():
    net = Net()
    blocks = named(Inputs(), net=net)
    assert list(blocks) == ["conv2", "up", "fc"]
    assert blocks["fc"].units.tolist() == [3, 4, 5]
    flat = net.fc.weight.detach()
    assert sorted(blocks["fc"].read()[1].tolist()) == sorted(flat[:, 4:8].flatten().tolist())
    assert torch.equal(blocks["up"].read(), net.up.weight.detach().flatten(1))
    assert torch.equal(blocks["conv2"].read()[1], net.conv2.weight.detach()[:, 1].flatten())


def test_inputs_of_uneven_runs_share_their_divisor():
    graph = graph_of()
    graph.ins["fc"] = ids(1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3)
    block = named(Inputs(), graph)["fc"]
    assert block.units.tolist() == [1, 1, 2, 2, 2, 3]
    assert block.read().shape == (6, 8)


def test_scales_are_rows_of_width_one():
    blocks = named(Scales())
    assert list(blocks) == ["norm"]
    assert blocks["norm"].read().tolist() == [[1.0], [1.0]]
    assert blocks["norm"].units.tolist() == [1, 2]


class Norms(nn.Module):
    """Every kind of norm there is; only batch norm is meant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.sync = nn.SyncBatchNorm(4)
        self.plain = nn.BatchNorm2d(4, affine=False)
        self.grouped = nn.GroupNorm(2, 4)
        self.instance = nn.InstanceNorm2d(4, affine=True)
        self.fc = nn.Linear(4, 5)
        self.flat = nn.BatchNorm1d(5)
        self.classifier = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.instance(self.grouped(self.plain(self.sync(self.conv(x)))))
        return self.classifier(torch.relu(self.flat(self.fc(x.mean((2, 3))))))


def test_scales_are_those_of_batch_norm_of_every_dimension():
    net = Norms()
    graph = ChannelGraph.trace(net, torch.zeros(2, 3, 8, 8))
    blocks = {block.name: block for block in Scales().rows(net, graph)}
    assert list(blocks) == ["sync", "flat"]
    groups = {group.name: group.units for group in graph.groups}
    assert torch.equal(blocks["flat"].units, groups["fc"])


def test_a_network_without_batch_norm_is_told_what_to_use():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(4, 4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 8, 8))
    with pytest.raises(ConfigError) as caught:
        Scales().rows(net, graph)
    assert str(caught.value) == (
        "target=scales: Sequential has no batch norm with scales; use target=filters "
        "(regularizer=l21), which needs none"
    )
    with pytest.raises(ConfigError, match="has no batch norm with scales"):
        Scales(layers={"norm*": 1.0}).rows(net, graph)


def test_coupled_layers_are_one_long_row_per_channel():
    blocks = named(Coupled())
    assert list(blocks) == ["conv1", "conv2"]
    assert blocks["conv2"].read().shape == (3, 18 + 12)
    assert blocks["conv2"].units.tolist() == [3, 4, 5]


def test_a_layer_in_another_order_stays_on_its_own():
    graph = graph_of()
    graph.outs["up"] = ids(5, 4, 3)
    blocks = named(Coupled(), graph)
    assert list(blocks) == ["conv1", "conv2", "up"]
    assert blocks["conv2"].read().shape == (3, 18)
    assert blocks["up"].units.tolist() == [5, 4, 3]


def test_the_first_pattern_that_matches_gives_the_weight():
    blocks = named(Filters(layers={"conv1": 0.5, "conv*": 2}))
    assert {name: block.weight for name, block in blocks.items()} == {"conv1": 0.5, "conv2": 2.0}


@pytest.mark.parametrize("target", [Filters, Entries, Inputs, Scales, Coupled])
def test_a_pattern_that_matches_nothing_is_refused(target: type[Target]):
    with pytest.raises(ConfigError, match=r"layers\.nothing\* matches no block of rows; "):
        named(target(layers={"*": 1.0, "nothing*": 1.0}))


def test_a_misspelt_pattern_gets_a_hint():
    with pytest.raises(ConfigError, match="did you mean conv1"):
        named(Filters(layers={"cnv1": 1.0}))


@pytest.mark.parametrize("layers", [{"conv1": 0}, {"conv1": -1.0}, {"conv1": "1"}, ["conv1"]])
def test_bad_weights_are_refused_where_they_are_given(layers):
    with pytest.raises(ConfigError, match="layers"):
        Filters(layers=layers)


def test_targets_by_name():
    assert TARGETS.resolve("coupled", Target) == Coupled()
    with pytest.raises(ConfigError, match="'filter' is unknown; did you mean filters"):
        TARGETS.resolve("filter", Target)
