"""Every way to tie channels together: cut exactly, or frozen with a note that says why."""

from __future__ import annotations

import re

import laws
import pytest
from patterns import PATTERNS

from prunekit.errors import TraceError
from prunekit.graph import ChannelGraph

TRACED = [name for name, pattern in PATTERNS.items() if not pattern.refused]
REFUSED = [name for name, pattern in PATTERNS.items() if pattern.refused]


@pytest.mark.parametrize("name", TRACED)
def test_what_can_go_and_why_the_rest_stays(name):
    pattern = PATTERNS[name]
    net = pattern.network()
    graph = ChannelGraph.trace(net, pattern.example)
    for layer in pattern.cut.split():
        assert bool((graph.outs[layer] > 0).any()), f"{layer} keeps all: {graph.notes}"
    for layer in pattern.outputs.split():
        assert not graph.outs[layer].any()
    assert laws.unexplained(graph, net, pattern.outputs.split()) == []
    assert all("\n" not in note for note in graph.notes)
    if pattern.note:
        assert any(pattern.note in note for note in graph.notes), graph.notes


@pytest.mark.parametrize("name", TRACED)
def test_all_laws_of_a_cut_hold(name):
    pattern = PATTERNS[name]
    net = pattern.network()
    for share, least in ((0.5, 2), (0.9, 1)):
        cut = laws.Cut.random(net, pattern.example, 0, share, least)
        laws.check_masked(cut)
        laws.check_kept(cut)
        laws.check_trainable(cut)
        laws.check_costs(cut, pattern.counters)
        laws.check_saved(cut, {"_target_": "patterns.network", "name": name}, ["patterns"])
        if least > 1:
            laws.check_sizes(cut)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_with_its_line(name):
    pattern = PATTERNS[name]
    with pytest.raises(TraceError) as caught:
        ChannelGraph.trace(pattern.network(), pattern.example)
    assert re.search(pattern.refused, str(caught.value)) and "\n" not in str(caught.value)
