"""Laws of edits and model files on random networks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import networks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow, edit_from_dict, load_model, save_model


@settings(max_examples=25, deadline=None)
@given(networks.settings(), st.data())
def test_a_saved_network_comes_back_with_equal_outputs(chosen, data):
    net = networks.Network(**chosen)
    edits = []
    for _ in range(2):  # the second edit counts in channels that the first one left
        graph = ChannelGraph.trace(net, net.example)
        edits.append(Narrow.of(graph, graph.drop(data.draw(networks.masks(graph)))))
        edits[-1].apply(net)
    arch = {"_target_": "networks.Network", **chosen}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt"
        save_model(path, net, arch, edits, top1=12.5)
        state = torch.random.get_rng_state()
        saved = load_model(path, trust=["networks"])
        assert torch.equal(state, torch.random.get_rng_state())
        assert [entry.name for entry in path.parent.iterdir()] == ["model.pt"]
    assert (saved.arch, saved.edits, saved.facts) == (arch, tuple(edits), {"top1": 12.5})
    with torch.no_grad():
        assert torch.equal(saved.model.eval()(net.example), net(net.example))


@settings(max_examples=25, deadline=None)
@given(networks.networks(), st.data())
def test_an_edit_survives_being_written_down(net, data):
    graph = ChannelGraph.trace(net, net.example)
    edit = Narrow.of(graph, graph.drop(data.draw(networks.masks(graph))))
    assert edit_from_dict(edit.to_dict()) == edit


@settings(max_examples=25, deadline=None)
@given(networks.networks(), st.data())
def test_narrowing_keeps_what_the_parameters_are(net, data):
    for index, parameter in enumerate(net.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    shared = {
        name: len({id(m.get_parameter(n)) for m, n in uses}) for name, uses in ties(net).items()
    }
    frozen = {name: not p.requires_grad for name, p in net.named_parameters()}
    graph = ChannelGraph.trace(net, net.example)
    Narrow.of(graph, graph.drop(data.draw(networks.masks(graph)))).apply(net)
    assert {name: not p.requires_grad for name, p in net.named_parameters()} == frozen
    assert all(p.dtype == torch.float64 for p in net.parameters())
    assert {
        name: len({id(m.get_parameter(n)) for m, n in uses}) for name, uses in ties(net).items()
    } == shared
    assert set(shared.values()) <= {1}


def ties(net):
    """Pairs of layers that share their weight, by construction of the blocks."""
    return {
        name: [(block.shared, "weight"), (block.tied, "weight")]
        for name, block in net.named_modules()
        if isinstance(block, networks.Twice)
    }
