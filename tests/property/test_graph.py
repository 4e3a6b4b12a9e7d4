"""Laws of the channel graph on random networks."""

from __future__ import annotations

import networks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow


@settings(max_examples=40, deadline=None)
@given(networks.networks(), st.data())
def test_removing_channels_equals_silencing_them(net, data):
    graph = ChannelGraph.trace(net, net.example)
    drop = graph.drop(data.draw(networks.masks(graph)))
    with torch.no_grad():
        with graph.silencer(net, drop):
            silenced = net(net.example)
        Narrow.of(graph, drop).apply(net)
        torch.testing.assert_close(net(net.example), silenced, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(networks.networks(), st.data())
def test_the_narrowed_network_has_groups_of_the_kept_sizes(net, data):
    graph = ChannelGraph.trace(net, net.example)
    chosen = data.draw(networks.masks(graph, least=2))
    Narrow.of(graph, graph.drop(chosen)).apply(net)
    again = ChannelGraph.trace(net, net.example)
    sizes = {group.name: len(group.units) for group in again.groups}
    assert sizes == {name: int((~mask).sum()) for name, mask in chosen.items()}


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
