"""How forward passes are recorded: under which conditions, and what they leave behind."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.passes import record_passes
from prunekit.graph.recording.writer import named_tensors
from prunekit.modes import garbage_collection_paused

IMAGES = torch.zeros(1, 3, 8, 8)
HELD = []


class Constant(nn.Module):
    """Adds to its maps what a layer computes from a buffer of numbers."""

    def __init__(self, layer, constant):
        super().__init__()
        self.stem, self.layer = nn.Conv2d(3, 4, 3, padding=1), layer
        self.register_buffer("constant", constant)

    def forward(self, x):
        return self.stem(x) + self.layer(self.constant)


@pytest.mark.parametrize(
    ("layer", "constant"),
    [
        (nn.Linear(6, 8), torch.zeros(4, 8, 6)),
        (nn.Conv2d(2, 4, 1), torch.zeros(1, 2, 8, 8)),
        (nn.BatchNorm2d(4, affine=False), torch.zeros(1, 4, 8, 8)),
        (nn.Embedding(4, 8), torch.zeros(4, 8, dtype=torch.long)),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 8)), torch.zeros(4, 8, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_that_read_constants_need_shapes_only(layer, constant):
    (usual, *_) = record_passes(Constant(layer, constant), Arguments.of(IMAGES))
    assert not usual.conditions.numbers
    assert usual.recording.output.sources[0].result.is_meta


def test_tensors_have_their_first_names():
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    net[2].weight = net[0].weight
    net.register_buffer("mean", net[1].running_mean)
    assert named_tensors(net) == [*net.named_parameters(), *net.named_buffers()]


class Branching(nn.Module):
    """Branches on values and on a size, and counts how many networks of its class there are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        HELD.append(sum(type(one) is Branching for one in gc.get_objects()))
        x = self.layer(x)
        if x.sum() > 0:
            x = x * 2
        return x + 1 if x.shape[2] > 12 or self.training else x


def test_one_copy_with_numbers_is_held_at_a_time():
    HELD.clear()
    with garbage_collection_paused():
        passes = record_passes(Branching(), Arguments.of(IMAGES))
    assert all(forward_pass.conditions.numbers for forward_pass in passes) and len(HELD) > 3
    assert max(HELD) <= 3  # the network, a copy without numbers, and one with numbers
