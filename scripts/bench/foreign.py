"""Networks of other libraries, as `networks.yaml` lists them, and how each is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn


@dataclass(frozen=True)
class Foreign:
    """A network of another library, with the images and the arguments that it is called with.

    `head` ends the name of a class of transformers; a detector takes a list of `images`.
    """

    library: str
    name: str
    head: str = "ForImageClassification"
    side: int = 64
    resizes: bool = True  # whether it takes images of other sizes
    images: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Return the network with random weights."""
        return BUILD[self.library](self)

    def call(self, images: Tensor) -> Any:
        """Return the arguments of a call."""
        if self.library == "transformers":
            return {"pixel_values": images}
        return ([*images],) if self.images else images


def _ultralytics(network: Foreign) -> nn.Module:
    from ultralytics import YOLO

    model = YOLO(f"{network.name}.yaml").model
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model


def _transformers(network: Foreign) -> nn.Module:
    import transformers

    config = _config(network.name, network.settings)
    return getattr(transformers, f"{network.name}{network.head}")(config)


def _config(name: str, settings: Mapping[str, Any]) -> Any:
    """Return a configuration; a setting with the key `config` is one inside it."""
    import transformers

    values = {
        key: _config(value["config"], {k: v for k, v in value.items() if k != "config"})
        if isinstance(value, Mapping)
        else value
        for key, value in settings.items()
    }
    return getattr(transformers, f"{name}Config")(**values)


def _torchvision(network: Foreign) -> nn.Module:
    from torchvision import models

    home = models.detection if network.images else models.segmentation
    make = getattr(home, network.name)
    return make(weights=None, weights_backbone=None, **network.settings)


BUILD = {
    "ultralytics": _ultralytics,
    "transformers": _transformers,
    "torchvision": _torchvision,
}
_FILE = Path(__file__).with_name("networks.yaml")
NETWORKS = {
    name: Foreign(**values) for name, values in yaml.safe_load(_FILE.read_text())["foreign"].items()
}


def images(side: int, seed: int = 0) -> Tensor:
    """Return two images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64)
