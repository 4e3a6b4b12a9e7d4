"""The networks of the coverage tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml
from torch import nn

LARGE = 100e6  # parameters: checked on smaller images, where the network takes them
RIGID = ("vit_", "swin", "maxvit", "inception")  # of torchvision, which take one image size only
TIMM = tuple(yaml.safe_load(Path(__file__).with_name("networks.yaml").read_text())["timm"])


@dataclass(frozen=True)
class Subject:
    """A classifier with random weights, built by its library, and the side of its images."""

    name: str
    side: int

    @classmethod
    def named(cls, name: str) -> Subject:
        """Return the classifier of a name of torchvision, or of `timm/` and a name of timm."""
        if name.startswith("timm/"):
            import timm

            return cls(name, timm.get_pretrained_cfg(name[5:]).input_size[-1])
        return cls(name, 299 if name == "inception_v3" else 224)

    def build(self) -> nn.Module:
        """Return the network; auxiliary heads are on."""
        if self.name.startswith("timm/"):
            import timm

            return timm.create_model(self.name[5:])
        from torchvision.models import get_model

        extra = {"init_weights": False} if self.name in ("googlenet", "inception_v3") else {}
        return get_model(self.name, weights=None, **extra)

    def sides(self, params: int) -> tuple[int, int]:
        """Return the sides of the images it is checked on, in single and in double precision."""
        if self.name.startswith((*RIGID, "timm/")):
            return self.side, self.side
        return (128, 96) if params > LARGE else (self.side, 128)


def torchvision_names() -> list[str]:
    """Return the names of all classifiers of torchvision."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def classes(model: nn.Module) -> int:
    """Return the number of classes, which is the same for all."""
    return 1000
