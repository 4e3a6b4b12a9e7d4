"""The dense network as settings describe it: how it is built, and which weights it starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.build import build
from prunekit.errors import ConfigError


@dataclass(frozen=True)
class Dense:
    """How the dense network is built, as files keep it, and its weights: a file, a name, or None.

    None stands for random weights.
    """

    arch: Mapping[str, Any]
    weights: str | None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Dense:
        """What `model`, `model.weights` and `weights` say; raises ConfigError."""
        return cls(architecture(settings), weights_of(settings))

    def check(self) -> None:
        """Refuse a network that cannot be built; one that can be takes no memory."""
        try:
            with torch.device("meta"):
                build(self.arch, "model")
        except ConfigError:  # it may need numbers
            build(self.arch, "model", nn.Module)


def architecture(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the model without its weights, which are no part of how it is built."""
    return {key: value for key, value in settings["model"].items() if key != "weights"}


def weights_of(settings: Mapping[str, Any]) -> str | None:
    """The file or pretrained weights that `weights` or `model.weights` name; None: random ones."""
    given = [settings.get("weights"), settings["model"].get("weights")]
    found = [str(weights) for weights in given if weights is not None]
    if len(found) > 1:
        raise ConfigError(f"weights={found[0]} and model.weights={found[1]} are both set; give one")
    return found[0] if found else None
