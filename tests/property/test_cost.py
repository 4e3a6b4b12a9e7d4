"""The cost model against fvcore's count of the narrowed network."""

from __future__ import annotations

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, fvcore_macs
from prunekit.surgery import Narrow


def reference(net):
    return fvcore_macs(net, net.example[:1])


def size(net):
    return sum(parameter.numel() for parameter in net.parameters())


@settings(max_examples=30, deadline=None)
@given(networks.networks(), st.data())
def test_the_cost_model_is_fvcore_after_surgery(net, data):
    graph = ChannelGraph.trace(net, net.example)
    cost = CostModel(net, graph)
    assert (cost.macs(), cost.params()) == (reference(net), size(net))
    drop = graph.drop(data.draw(networks.masks(graph)))
    promised = cost.macs(drop), cost.params(drop)
    table = cost.layer_table(drop)
    Narrow.of(graph, drop).apply(net)
    assert promised == (reference(net), size(net))
    assert sum(row["macs"] for row in table) == promised[0]
    assert sum(row["params"] for row in table) == promised[1]


@settings(max_examples=25, deadline=None)
@given(networks.networks(), st.data())
def test_the_cost_model_of_the_narrowed_network_agrees(net, data):
    graph = ChannelGraph.trace(net, net.example)
    drop = graph.drop(data.draw(networks.masks(graph)))
    before = CostModel(net, graph)
    promised = before.macs(drop), before.params(drop), before.macs_bias(drop)
    Narrow.of(graph, drop).apply(net)
    after = CostModel(net, ChannelGraph.trace(net, net.example))
    assert (after.macs(), after.params(), after.macs_bias()) == promised


def by_hand():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),  # 3 x 3 outputs
        nn.PReLU(4),
        nn.ConvTranspose2d(4, 2, 2, stride=2),  # 6 x 6 outputs from 3 x 3 inputs
        nn.Flatten(),
        nn.Linear(72, 3, bias=False),
    )


def test_a_small_network_counted_by_hand():
    net = by_hand()
    graph = ChannelGraph.trace(net, torch.rand(1, 1, 5, 5))
    cost = CostModel(net, graph)
    drop = graph.drop({"0": torch.tensor([True, False, False, True])})
    assert cost.macs() == 9 * 9 * 4 + 4 * 9 * 4 * 2 + 72 * 3
    assert cost.macs(drop) == 9 * 9 * 2 + 4 * 9 * 2 * 2 + 72 * 3
    assert cost.macs_bias(drop) == cost.macs(drop) + 9 * 2 + 36 * 2
    assert cost.params(drop) == (9 * 2 + 2) + 2 + (4 * 2 * 2 + 2) + 72 * 3
    assert cost.layer_table(drop)[1:3] == [
        {"name": "1", "kind": "PReLU", "in": 2, "out": 2, "macs": 0, "params": 2},
        {"name": "2", "kind": "ConvTranspose2d", "in": 2, "out": 2, "macs": 144, "params": 18},
    ]


def test_a_graph_of_another_network_is_refused():
    graph = ChannelGraph.trace(by_hand(), torch.rand(1, 1, 5, 5))
    with pytest.raises(SurgeryError, match="0 has 5 output channels, the graph 4; trace"):
        CostModel(nn.Sequential(nn.Conv2d(1, 5, 3)), graph)
    with pytest.raises(SurgeryError, match="Sequential has no layer '1'; trace"):
        CostModel(nn.Sequential(nn.Conv2d(1, 4, 3)), graph)
    with pytest.raises(SurgeryError, match=r"drop has shape \(3,\), the graph has 7 unit ids"):
        CostModel(by_hand(), graph).macs(torch.zeros(3, dtype=torch.bool))
