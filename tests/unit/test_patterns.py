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


def cut(name: str, share: float = 0.5, least: int = 1) -> laws.Cut:
    pattern = PATTERNS[name]
    return laws.Cut.random(pattern.network(), pattern.example, 0, share, least)


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
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_the_narrow_network_is_the_silenced_one(name, share):
    found = cut(name, share=share)
    laws.check_masked(found)
    laws.check_kept(found)
    laws.check_trainable(found)


@pytest.mark.parametrize("name", TRACED)
def test_the_narrow_network_has_the_kept_sizes(name):
    laws.check_sizes(cut(name, least=2))


@pytest.mark.parametrize("name", TRACED)
def test_costs_are_known_before_the_cut(name):
    laws.check_costs(cut(name), PATTERNS[name].counters)


@pytest.mark.parametrize("name", TRACED)
def test_a_saved_network_comes_back(name):
    laws.check_saved(cut(name), {"_target_": "patterns.network", "name": name}, ["patterns"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_refused_with_its_line(name):
    pattern = PATTERNS[name]
    with pytest.raises(TraceError) as caught:
        ChannelGraph.trace(pattern.network(), pattern.example)
    assert re.search(pattern.refused, str(caught.value)) and "\n" not in str(caught.value)
