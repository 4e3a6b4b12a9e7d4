"""Laws of absorption on random networks."""

from __future__ import annotations

import copy
import re

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import Cut
from patterns import PATTERNS, network

from prunekit.errors import TraceError
from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow
from prunekit.surgery.bias_compensation import absorb
from prunekit.surgery.constants import emitting
from prunekit.surgery.equivalence import Gap, compare


def parts(net, data):
    graph = ChannelGraph.trace(net, net.example)
    drop = graph.drop(data.draw(networks.masks(graph)))
    narrow = copy.deepcopy(net)
    Narrow.of(graph, drop).apply(narrow)
    return net, narrow, graph, drop


@settings(max_examples=40, deadline=None)
@given(networks.networks(), st.data())
def test_what_is_called_exact_is_exact(net, data):
    model, narrow, graph, drop = parts(net, data)
    found = absorb(model, narrow, graph, drop, net.example, maps=data.draw(st.booleans()))
    with torch.no_grad(), emitting(model, graph, drop):
        reference = net(net.example)
    with torch.no_grad():
        gap = Gap.between(narrow(net.example), reference).relative
    assert abs(gap - found.change.after) < 1e-12
    assert not found.exact or gap < 1e-9, found.rows
    if not found.rows:
        assert found.change.moved == 0 and not found.edits


@settings(max_examples=20, deadline=None)
@given(networks.networks(), st.data())
def test_cutting_equals_silencing_before_and_after_absorption(net, data):
    """The check passes on every network, and absorption leaves what it needs for a second round."""
    model, narrow, graph, drop = parts(net, data)
    assert compare(model, narrow, graph, drop, net.example).worst < 1e-9
    absorb(model, narrow, graph, drop, net.example)
    again = ChannelGraph.trace(narrow, net.example)
    more = again.drop(data.draw(networks.masks(again)))
    twice = copy.deepcopy(narrow)
    Narrow.of(again, more).apply(twice)
    assert compare(narrow, twice, again, more, net.example).worst < 1e-9


@pytest.mark.parametrize("name", [name for name, one in PATTERNS.items() if not one.refused])
def test_every_pattern(name):
    try:
        cut = Cut.random(network(name), PATTERNS[name].example)
    except TraceError as error:
        pytest.skip(f"not traced, which other tests judge: {error}")
    assert compare(cut.dense, cut.narrow, cut.graph, cut.drop, cut.example).worst < 1e-9
    found = absorb(cut.dense, cut.narrow, cut.graph, cut.drop, cut.example, maps=True)
    why = "varies between|differs between" + ("|borders|function" if cut.graph.functional else "")
    assert all(re.search(why, note) for note in found.notes)
    assert found.change.after < (1e-9 if found.exact else found.change.before)
