"""Cuts that empty whole groups of random networks: refused in one line, or equal to silencing."""

from __future__ import annotations

import networks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.surgery.cut import cut

KINDS = ("Residual", "PaddedResidual", "PreActivated", "Plain", "Dense", "Gated")


@settings(max_examples=30, deadline=None)
@given(networks.settings(KINDS), st.data())
def test_a_cut_is_refused_or_equals_the_silenced_network(chosen, data):
    net = networks.Network(**chosen)
    graph = ChannelGraph.trace(net, net.example)
    removed = data.draw(networks.masks(graph))
    inner = [g.name for g in graph.groups if g.name.endswith("first.conv")]
    whole = data.draw(st.sets(st.sampled_from(inner))) if inner else set()
    keep = {name: ~mask & (name not in whole) for name, mask in removed.items()}
    emptied = graph.emptied(graph.drop({name: ~mask for name, mask in keep.items()}))
    try:
        made = cut(net, graph, keep, net.example, per_position=data.draw(st.booleans()))
    except SurgeryError as error:
        assert emptied and "no residual branch" in str(error) and "\n" not in str(error)
        return
    assert made.agreement.worst < 1e-9 and made.absorbed.change.after < 1e-9 + (
        0 if made.absorbed.exact else torch.inf
    )
    assert len(made.skipped) == len({name.split(".")[1] for name in emptied})
    names = dict(made.model.named_modules())
    assert not any(name in names for name in emptied)
