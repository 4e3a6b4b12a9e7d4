"""Small data and small networks with random weights, for criteria that read both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, nn

from prunekit.data import Data, Dataset, Normalize, TensorBatches
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


@dataclass(frozen=True)
class Brightest(Dataset):
    """Noise images whose class is the brightest of the first five pixels."""

    val: int = 60

    shape = (1, 4, 4)

    def load(self, device="cpu", seed=0):
        images = torch.rand(2 * self.val + 60, *self.shape, generator=Generator().manual_seed(3))
        labels = images.flatten(1)[:, :5].argmax(dim=1)
        none, all_ = Normalize((0.0,), (1.0,)), images.split([60, self.val, self.val])
        sets = zip(all_, labels.split([60, self.val, self.val]), strict=True)
        return Data(*(TensorBatches(x, y, none) for x, y in sets), 5, self.shape)


class Reader(nn.Module):
    """Reads `Brightest` without a mistake: of 16 channels 11 do nothing, then 5 are all needed."""

    def __init__(self):
        super().__init__()
        self.look, self.pick, self.say = nn.Conv2d(1, 16, 4), nn.Conv2d(16, 5, 1), nn.Linear(5, 5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.zero_()
            for channel in range(5):  # the useful ones are not the first
                self.look.weight[3 * channel, 0, 0 if channel < 4 else 1, channel % 4] = 1
                self.pick.weight[channel, 3 * channel] = 1 + channel / 10
                self.say.weight[channel, channel] = 1 / (1 + channel / 10)

    def forward(self, x):
        return self.say(self.pick(self.look(x)).flatten(1))
