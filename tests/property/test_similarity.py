"""Laws of similarity tables and of balanced draws."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit.data.base import balanced
from prunekit.methods.gram_lasso import (
    ClassBlocks,
    Gaussian,
    Grams,
    Laplacian,
    Linear,
    Maps,
    RawMaps,
    Sigmoid,
    tables_of,
)
from prunekit.methods.gram_lasso import grams as columns

KERNELS = [Linear(), *(k(b) for k in (Gaussian, Laplacian, Sigmoid) for b in ("median", "apib"))]
grams = st.builds(Grams, st.sampled_from(KERNELS), st.sampled_from(["hkh", "unbiased"]))
seeds = st.integers(0, 2**31)


def maps(seed, n, channels, entries, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return Maps.of(torch.randn(channels, n, entries, generator=generator, dtype=dtype))


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(grams, st.just(RawMaps()), grams.map(lambda g: ClassBlocks(g.kernel, g.centring))),
    seeds,
    st.integers(4, 19),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 2000),
    st.integers(1, 7),
)
def test_panels_of_any_size_give_the_same_tables(kind, seed, n, wide, out, room, block):
    x, y = maps(seed, n, wide, 5), maps(seed + 1, n, out, 5)
    labels = torch.arange(n) % 3
    plain = tables_of(kind, x, y, labels)
    before, columns._BLOCK = columns._BLOCK, block
    try:
        narrow = tables_of(kind, x, y, labels, memory=room / 2**20)
    finally:
        columns._BLOCK = before
    for name in ("inputs", "cross", "outputs"):
        torch.testing.assert_close(getattr(narrow, name), getattr(plain, name), rtol=0, atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(grams, seeds, st.integers(4, 16), st.integers(1, 5), st.integers(1, 4))
def test_tables_are_a_gram_matrix_of_unit_vectors(kind, seed, n, wide, out):
    x, y = maps(seed, n, wide, 3), maps(seed + 1, n, out, 4)
    found = tables_of(kind, x, y)
    whole = torch.cat(
        [torch.cat([found.inputs, found.cross], 1), torch.cat([found.cross.T, found.outputs], 1)]
    )
    assert torch.equal(whole, whole.T) and whole.abs().max() <= 1
    assert torch.linalg.eigvalsh(whole).min() > -1e-9
    assert torch.equal(found.energy, (~found.dead_outputs).double())
    if not isinstance(kind.kernel, Sigmoid) and kind.centring == "hkh":
        assert whole.min() > -1e-12  # positive kernels


@settings(max_examples=40, deadline=None)
@given(grams, seeds, st.integers(4, 12))
def test_the_order_of_examples_and_channels_does_not_matter(kind, seed, n):
    x, y = maps(seed, n, 4, 3), maps(seed + 1, n, 3, 3)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    first = tables_of(kind, x, y)
    other = tables_of(kind, Maps.of(x.values[[2, 0, 3, 1]][:, order]), Maps.of(y.values[:, order]))
    torch.testing.assert_close(other.cross, first.cross[[2, 0, 3, 1]], rtol=0, atol=1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=80), st.integers(1, 90), seeds)
def test_balanced_draws_differ_by_one_but_for_classes_that_run_out(labels, count, seed):
    labels = torch.tensor(labels)
    drawn = balanced(labels, count, seed)
    assert len(drawn) == min(count, len(labels)) == len(drawn.unique())
    assert torch.equal(drawn, balanced(labels, count, seed))
    sizes, taken = labels.bincount(minlength=6), labels[drawn].bincount(minlength=6)
    most = taken.max()
    assert bool(((taken >= most - 1) | (taken == sizes)).all())
