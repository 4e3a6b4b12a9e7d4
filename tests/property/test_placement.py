"""Junctions against sets of ancestors; places in random networks against what can be removed."""

from __future__ import annotations

from collections import Counter

import laws
import networks
import pytest
import torch
from blocks import MORE
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.graph.dataflow import needed_only_by, operand_branches, steps_reaching
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.methods.hinge import InsertMatrices, Matrices, Placement, fold
from prunekit.methods.hinge.blocks import Layout, blocks

ALL = (*networks.BLOCKS, *MORE)
ONE = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


DRAWS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 5), st.booleans()), min_size=2, max_size=14
)


def additions(draws: list[tuple[int, int, bool]]) -> Recording:
    """Additions and activations of earlier results, in random order."""
    graph, result = Recording(), torch.empty(1, device="meta")
    nodes = [graph.add(Step(Kind.INPUT, place, (), {}, result)) for place in range(2)]
    for *back, pair in draws:
        first, second = (nodes[-min(steps, len(nodes))] for steps in back)
        target, args, name = (
            (torch.add, (first, second), "add")
            if pair and first is not second
            else (torch.relu, (first,), "relu")
        )
        nodes.append(graph.add(Step(Kind.CALL, target, args, {}, result, name)))
    graph.add(Step(Kind.OUTPUT, "output", ((nodes[-1],),), {}))
    return graph


def before(node: Step) -> set[Step]:
    """A step and all that it depends on."""
    return {node}.union(*(before(one) for one in node.sources))


@settings(max_examples=150, deadline=None)
@given(DRAWS)
def test_sides_are_what_one_operand_needs_and_the_other_does_not(draws):
    graph = additions(draws)
    place = {node: index for index, node in enumerate(graph.steps)}
    for node in graph.steps:
        if node.target is torch.add:
            both = [before(one) for one in node.sources]
            left, right = operand_branches(node, place)
            assert (set(left), set(right)) == (both[0] - both[1], both[1] - both[0])
            for side in (left, right):
                assert [place[one] for one in side] == sorted(map(place.get, side), reverse=True)
                others = [n for n in graph.steps if n not in side and n is not node]
                needed = {one for other in others for one in other.sources}
                used = needed & set(side)
                expected = {n for n in side if not any(n in before(u) for u in used)}
                assert needed_only_by(node, side) == expected


@settings(max_examples=100, deadline=None)
@given(DRAWS, st.integers(0, 3))
def test_reaching_follows_what_passes(draws, stop):
    graph = additions(draws)
    nodes = [*graph.steps]
    blocked = set(nodes[2 : 2 + stop])

    def goal(node):
        return node.target is torch.add

    def walks(node):
        return any(goal(one) or (one not in blocked and walks(one)) for one in node.users)

    found = steps_reaching(graph, goal, lambda node: node not in blocked)
    assert found == {node for node in nodes if walks(node)}


@settings(max_examples=25, deadline=None)
@given(networks.networks(ALL))
def test_blocks_share_no_layer_and_hold_dense_convolutions(net):
    found = blocks(net, net.example)
    layers = Counter(name for block in found for name in block.layers)
    assert set(layers.values()) <= {1}
    names = [block.name for block in found]
    assert len({*names}) == len(names)
    called = Layout.of(net, net.example).called
    for block in found:
        places = [called.index(name) for name in block.layers]
        assert places == sorted(places)
        middle = block.layers[1:-1] if block.kind == "grouped" else ()
        for name in block.layers:
            conv = net.get_submodule(name)
            assert isinstance(conv, ONE) and (conv.groups == 1) == (name not in middle)
        inside = [n for n in layers if n.startswith(f"{block.name}.")]
        assert block.name == block.layers[0] or set(inside) == set(block.layers)


def attach(net: nn.Module, placement: Placement) -> InsertMatrices:
    try:
        return InsertMatrices.of(net, net.example, placement)
    except ConfigError as error:
        assume("finds no place" not in str(error))
        raise


PLACEMENTS = st.sampled_from(
    [
        Placement(),
        Placement(start="svd"),
        Placement(blocks={}, layers={"*": "rows"}),
        Placement(blocks={}, layers={"*": "rows+columns"}, start="identity"),
    ]
)


@torch.no_grad()
def check_places(net: networks.Network, placement: Placement, seed: int) -> None:
    """All that may vanish can be removed, and any of it goes exactly, before and after folding."""
    plain = laws.twin(net)
    attach(net, placement).apply(net)
    assert laws.gap(net(net.example), plain(net.example)) < 1e-9
    graph = ChannelGraph.trace(net, net.example)
    for block in Matrices().rows(net, graph):
        assert bool((block.units != 0).all())
    cut = laws.Cut.random(net, (net.example,), seed, 0.5)
    laws.check_masked(cut)
    assert fold(cut.narrow, net.example).gap.relative < 1e-5


@settings(max_examples=15, deadline=None)
@given(networks.networks(ALL), PLACEMENTS, st.integers(0, 2**16))
def test_what_is_placed_can_vanish(net, placement, seed):
    check_places(net, placement, seed)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(networks.networks(ALL), PLACEMENTS, st.integers(0, 2**16))
def test_what_is_placed_can_vanish_in_many_networks(net, placement, seed):
    check_places(net, placement, seed)
