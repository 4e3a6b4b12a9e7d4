"""Laws of edits and model files on random networks."""

from __future__ import annotations

import tempfile
from pathlib import Path

import networks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow, load_model, save_model


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
