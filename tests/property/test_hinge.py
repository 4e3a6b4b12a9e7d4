"""Matrices in random networks put together from all patterns: attached, cut, folded."""

from __future__ import annotations

import copy

import laws
import networks
import torch
from blocks import MORE
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.methods.hinge import (
    FoldedCost,
    Hinge,
    InsertMatrices,
    Matrices,
    Placement,
    fold,
    layers_with_matrix,
)
from prunekit.penalties import L1
from prunekit.rows import Rows
from prunekit.surgery import Narrow, edit_from_dict, randomised

ALL = (*networks.BLOCKS, *MORE)
PLACEMENTS = (Placement(), Placement({}, "svd", (), {"*": "rows"}))


@st.composite
def hinged(draw: st.DrawFn):
    """A random network, its arguments, and a copy with matrices, all in double precision."""
    chosen = draw(networks.settings(ALL))
    net = networks.Network(**chosen)
    dense = randomised(net).double().eval()
    model, x = copy.deepcopy(dense), net.example.double()
    try:
        edit = InsertMatrices.of(model, x, draw(st.sampled_from(PLACEMENTS)))
    except ConfigError as error:  # nothing but a stem, or grouped convolutions
        assume("no place" not in str(error) and "matches no" not in str(error))
        raise
    edit.apply(model)
    return dense, model, x, edit


@settings(max_examples=15, deadline=None)
@given(hinged())
def test_attached_and_folded_it_is_the_same_function(drawn):
    dense, model, x, edit = drawn
    with torch.no_grad():
        expected = dense(x)
        torch.testing.assert_close(model(x), expected, rtol=1e-8, atol=1e-9)
        folded = fold(model, x)
        torch.testing.assert_close(folded.model(x), expected, rtol=1e-8, atol=1e-9)
    assert not layers_with_matrix(folded.model) and not folded.edit.parted
    assert edit_from_dict(edit.to_dict()) == edit
    assert edit_from_dict(folded.edit.to_dict()) == folded.edit
    shapes = {name: tensor.shape for name, tensor in dense.state_dict().items()}
    assert {name: tensor.shape for name, tensor in folded.model.state_dict().items()} == shapes


@settings(max_examples=15, deadline=None)
@given(hinged(), st.integers(0, 2**16), st.sampled_from([0.2, 0.5, 0.8]))
def test_cut_and_folded_it_is_the_silenced_network_of_the_predicted_size(drawn, seed, share):
    _, model, x, _ = drawn
    graph = ChannelGraph.trace(model, x)
    drop = graph.drop(laws.masks(graph, seed, share, 1))
    cost, narrow = FoldedCost(model, graph), copy.deepcopy(model)
    Narrow.of(graph, drop).apply(narrow)
    folded = fold(narrow, x).model
    with torch.no_grad(), graph.silencer(model, drop):
        torch.testing.assert_close(folded(x), model(x), rtol=1e-8, atol=1e-9)
    assert sum(p.numel() for p in folded.parameters()) == cost.params(drop)
    after = FoldedCost(folded, ChannelGraph.trace(folded, x))
    assert cost.macs(drop) == after.macs()


@settings(max_examples=10, deadline=None)
@given(hinged())
def test_every_row_of_every_matrix_can_be_shrunk(drawn):
    """A strong penalty zeroes all that the target offers, and nothing else."""
    _, model, x, _ = drawn
    graph = ChannelGraph.trace(model, x)
    blocks: list[Rows] = Matrices().rows(model, graph)
    assert all(bool((block.units != 0).all()) for block in blocks)
    penalised = {id(p) for block in blocks for p in block.parameters}
    before = {n: p.detach().clone() for n, p in model.named_parameters() if id(p) not in penalised}
    solver = Hinge()
    solver.bind(L1(1e9), blocks)
    roles = {role: {} for role in ("first", "second", "")}
    for block in blocks:
        roles[block.role] |= {id(p): p for p in block.parameters}
    groups = [{"params": list(role.values())} for role in roles.values() if role]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    model(x).square().sum().backward()
    solver.before_step(optimizer)
    optimizer.step()
    solver.after_step(optimizer)
    assert all(not block.read().any() for block in blocks)
    left = dict(model.named_parameters())
    assert all(torch.equal(left[name], tensor) for name, tensor in before.items())
