"""Small data and small networks with random weights, for criteria that read both."""

from __future__ import annotations

import torch

from prunekit.data import Data, Normalize, TensorBatches
from prunekit.graph import ChannelGraph


def toy_data(size=8, count=37):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, size, size, generator=generator)
    labels = torch.randint(5, (count,), generator=generator)
    batches = TensorBatches(images, labels, Normalize((0.5,), (0.25,)))
    return Data(batches, batches, batches, 5, (1, size, size))


def made(model, seed=0):
    """The model with random weights and statistics, in evaluation mode, and its graph."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                low = 0.5 if name.endswith("var") else -0.7
                value.copy_(low + 1.5 * torch.rand(value.shape, generator=generator))
    return model, ChannelGraph.trace(model.eval(), torch.zeros(1, 1, 8, 8))
