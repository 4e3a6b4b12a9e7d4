"""Six small networks whose weights are whole numbers by powers of two: alike on every processor."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.ops import Conv2dNormActivation

from prunekit.data import Synthetic

IMAGES = 32


class Inverted(nn.Module):
    """Inverted residuals as in MobileNetV2, which itself ends in too many channels to be quick."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = Conv2dNormActivation(3, 8, stride=2, activation_layer=nn.ReLU6)
        self.blocks = nn.Sequential(
            InvertedResidual(8, 6, 1, 1),
            InvertedResidual(6, 8, 2, 2),
            InvertedResidual(8, 8, 1, 2),
        )
        self.last = Conv2dNormActivation(8, 16, kernel_size=1, activation_layer=nn.ReLU6)
        self.classifier = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of images (examples, 3, height, width)."""
        return self.classifier(self.last(self.blocks(self.stem(images))).mean((2, 3)))


@dataclass(frozen=True)
class Network:
    """A description of a network: its class and settings, the channels and size of its images."""

    arch: Mapping[str, Any]
    channels: int
    size: int

    @property
    def home(self) -> str:
        """Return the module of the network's class, which model files are trusted to name."""
        return self.arch["_target_"].rpartition(".")[0]

    def dense(self) -> nn.Module:
        """Return the network in evaluation mode, with the same weights every time."""
        name = self.arch["_target_"].rpartition(".")[2]
        rest = {key: value for key, value in self.arch.items() if key != "_target_"}
        model = getattr(importlib.import_module(self.home), name)(**rest).eval()
        fill(model)
        return model

    def data(self) -> Any:
        """Return the images that scores are computed on, as prunekit's data."""
        sizes = {"train": IMAGES, "val": 0, "test": 8}
        return Synthetic(channels=self.channels, image_size=self.size, **sizes).load()

    def overrides(self) -> tuple[str, ...]:
        """Return the settings of the same images for the command line."""
        return (
            *("dataset=synthetic", f"dataset.train={IMAGES}", "dataset.val=0", "dataset.test=8"),
            *(f"dataset.channels={self.channels}", f"dataset.image_size={self.size}"),
            f"runtime.trust=[{self.home}]",
        )


NETWORKS = {
    "lenet": Network({"_target_": "prunekit.models.LeNet5", "widths": [6, 12, 90]}, 1, 28),
    "resnet": Network(
        {"_target_": "prunekit.models.ResNet", "blocks": 2, "widths": [6, 8, 10]}, 3, 16
    ),
    "vgg": Network(
        {
            "_target_": "prunekit.models.VGG",
            "blocks": [[8, 8], [10, 10], [12]],
            "hidden": [12],
        },
        *(3, 8),
    ),
    "densenet": Network(
        {"_target_": "prunekit.models.DenseNet", "layers": 2, "growth": 4, "stem": 6}, 3, 16
    ),
    "mobilenet": Network({"_target_": "scripts.golden.networks.Inverted"}, 3, 16),
    "googlenet": Network(
        {
            "_target_": "prunekit.models.GoogLeNet",
            "stem": 8,
            "stages": [[[4, 5, 8, 4, 6, 4]], [[6, 4, 8, 4, 6, 4]]],
        },
        *(3, 16),
    ),
}


def fill(model: nn.Module) -> None:
    """Draw all weights and statistics: no two units alike, one unit zero in every other layer."""
    source = torch.Generator().manual_seed(0)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for number, layer in enumerate(layers):
        per_unit = _drawn((len(layer.weight),), source, 0.5, 1.5)
        weight = _drawn(tuple(layer.weight.shape), source, -1, 1)
        scale = 2.0 ** -round(float(torch.tensor(layer.weight[0].numel()).log2()) / 2 - 0.75)
        weight = weight * per_unit.view(-1, *[1] * (weight.dim() - 1)) * scale
        zero = number % 2 == 1 and layer is not layers[-1]
        weight[1:2] *= not zero
        layer.weight.data.copy_(weight)
        if layer.bias is not None:
            bias = _drawn((len(layer.bias),), source, -0.25, 0.25)
            bias[1:2] *= not zero
            layer.bias.data.copy_(bias)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for number, norm in enumerate(norms):
        shape = tuple(norm.weight.shape)
        zero = number % 2 == 1
        for tensor, low, high in (
            (norm.weight, 0.25, 1.75),
            (norm.bias, -0.25, 0.25),
            (norm.running_mean, -0.25, 0.25),
            (norm.running_var, 0.5, 2.0),
        ):
            values = _drawn(shape, source, low, high)
            if tensor is norm.weight or tensor is norm.bias:
                values[1:2] *= not zero
            tensor.data.copy_(values)


def _drawn(shape: tuple[int, ...], source: torch.Generator, low: float, high: float) -> Tensor:
    """Return numbers between two bounds in steps of a 4096th of their distance."""
    steps = torch.randint(0, 4096, shape, generator=source).double()
    return (low + (high - low) * (steps + 0.5) / 4096).float()
