"""The cost model against fvcore's count of the narrowed network."""

from __future__ import annotations

import networks
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, counted_macs
from prunekit.surgery import Narrow


def reference(net):
    return counted_macs(net, net.example[:1])


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
