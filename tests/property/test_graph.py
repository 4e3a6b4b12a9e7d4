"""Laws of the channel graph on random networks; those of a cut are in test_random_networks."""

from __future__ import annotations

import networks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.graph import ChannelGraph


@settings(max_examples=25, deadline=None)
@given(networks.networks())
def test_units_are_numbered_by_group_and_channel(net):
    graph = ChannelGraph.trace(net, net.example)
    units = [unit for group in graph.groups for unit in group.units.tolist()]
    assert units == list(range(1, graph.count))
    for group in graph.groups:
        assert group.name == group.producers[0]
        first = [unit for unit in graph.outs[group.name].tolist() if unit]
        assert group.units.tolist()[: len(set(first))] == list(dict.fromkeys(first))


@settings(max_examples=25, deadline=None)
@given(networks.networks(), st.booleans())
def test_tracing_leaves_the_model_alone(net, training):
    net.train(training)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    ChannelGraph.trace(net, net.example)
    assert all(module.training == training for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


@settings(max_examples=25, deadline=None)
@given(networks.networks())
def test_inputs_and_outputs_of_the_network_are_fixed(net):
    graph = ChannelGraph.trace(net, net.example)
    assert not graph.outs["head"].any()
    assert len(graph.groups) >= 2
