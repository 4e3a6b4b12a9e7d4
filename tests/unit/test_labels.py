"""Shapes and labels of the channel graph."""

from __future__ import annotations

import itertools

import pytest
import torch

from prunekit.graph.labels import broadcast_shape, compress

SHAPES = [(), (1,), (3,), (2, 1), (1, 3), (4, 2, 3), (4, 1, 1), (0, 3), (2, 3)]


@pytest.mark.parametrize("shapes", [*itertools.product(SHAPES, repeat=2)])
def test_shapes_broadcast_as_those_of_torch(shapes):
    try:
        expected = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        with pytest.raises(RuntimeError, match="broadcast"):
            broadcast_shape(*shapes)
        return
    assert broadcast_shape(*shapes) == expected
    assert broadcast_shape(*map(torch.Size, shapes), (1,)) == torch.broadcast_shapes(*shapes, (1,))


@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 4), (3, 4)])
def test_only_dimensions_along_which_labels_change_are_kept(shape):
    labels = torch.arange(shape[0] * shape[1]).reshape(shape)
    for spread in (labels[None].expand(5, *shape), labels[None].repeat(5, 1, 1)):
        assert torch.equal(compress(spread), labels[None])
    assert compress(labels[:0]).shape == (1, 1)
