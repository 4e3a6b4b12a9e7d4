"""How forward passes are recorded: under which conditions, and what they leave behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.passes import record_passes
from prunekit.graph.recording.writer import named_tensors

IMAGES = torch.zeros(1, 3, 8, 8)


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
