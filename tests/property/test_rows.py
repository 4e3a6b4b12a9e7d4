"""Rows is a linear, invertible view of parameters."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.rows import Rows, Slice, unit_norms

torch.set_num_threads(1)

shapes = st.sampled_from(
    [
        ((6, 4, 3, 3), 0, 1),
        ((6, 4, 3, 3), 1, 1),
        ((5, 3), 0, 1),
        ((5, 12), 1, 3),
        ((5, 12), 1, 4),
        ((7,), 0, 1),
        ((6, 2, 3), None, 1),
        ((2, 3, 4, 2), 1, 1),
        ((4, 6, 1, 3, 2), 0, 2),
    ]
)


def block_of(*specs: tuple[tuple[int, ...], int | None, int], seed: int) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    slices = tuple(
        Slice(nn.Parameter(torch.randn(shape, generator=draw)), dim, span)
        for shape, dim, span in specs
    )
    count = slices[0].view(slices[0].param).shape[0]
    return Rows("block", slices, torch.arange(1, count + 1))


blocks = st.builds(lambda spec, seed: block_of(spec, seed=seed), shapes, st.integers(0, 10**6)) | (
    st.builds(
        lambda seed: block_of(
            ((6, 4, 3, 3), 0, 1), ((6,), 0, 1), ((5, 12), 1, 2), ((6, 2), 0, 1), seed=seed
        ),
        st.integers(0, 10**6),
    )
)


@settings(max_examples=60, deadline=None)
@given(block=blocks)
def test_write_what_was_read_changes_nothing(block: Rows):
    before = [param.detach().clone() for param in block.parameters]
    block.write(block.read())
    for param, old in zip(block.parameters, before, strict=True):
        assert torch.equal(param, old)


@settings(max_examples=60, deadline=None)
@given(block=blocks, seed=st.integers(0, 10**6))
def test_read_what_was_written(block: Rows, seed: int):
    rows = torch.randn(block.read().shape, generator=torch.Generator().manual_seed(seed))
    block.write(rows)
    assert torch.equal(block.read(), rows)


@settings(max_examples=60, deadline=None)
@given(block=blocks, seed=st.integers(0, 10**6), start=st.booleans())
def test_add_grad_is_the_gradient_of_the_inner_product(block: Rows, seed: int, start: bool):
    draw = torch.Generator().manual_seed(seed)
    G = torch.randn(block.read().shape, generator=draw)
    rows = torch.cat([part.view(part.param) for part in block.slices], dim=1)
    expected = torch.autograd.grad((rows * G).sum(), block.parameters)
    if start:
        for param in block.parameters:
            param.grad = torch.ones_like(param)
    block.add_grad(G)
    block.add_grad(G, scale=0.5)
    for param, gradient in zip(block.parameters, expected, strict=True):
        assert torch.allclose(param.grad, 1.5 * gradient + float(start), atol=1e-6)


def test_read_is_a_copy():
    block = block_of(((5, 3), 0, 1), seed=0)
    before = block.read()
    block.read().zero_()
    assert torch.equal(block.read(), before)
    assert not block.read().requires_grad


def test_a_span_gathers_the_columns_of_a_flattened_channel():
    param = nn.Parameter(torch.arange(12.0).reshape(2, 6))
    rows = Rows("fc", (Slice(param, 1, 3),), torch.tensor([1, 2])).read()
    assert [sorted(row) for row in rows.tolist()] == [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]


def test_unit_norms_collect_all_rows_of_a_unit():
    block = block_of(((3, 2), 0, 1), seed=0)
    other = Rows("other", block.slices, torch.tensor([2, 2, 0]))
    matrix = torch.tensor([[3.0, 0.0], [0.0, 4.0], [1.0, 0.0]])
    norms = unit_norms([block, other], [matrix, matrix], 5)
    assert norms.tolist() == [1.0, 3.0, (16 + 25) ** 0.5, 1.0, 0.0]
