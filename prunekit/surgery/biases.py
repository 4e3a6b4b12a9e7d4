"""Edits that give layers a bias: one number for every channel, or one for every position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph.layers import layer_named, weighs
from prunekit.surgery.edits import register, replace_module


class BiasMap(nn.Module):
    """Add a fixed number at every channel and position; inputs must have the size of the map."""

    def __init__(self, bias_map: Tensor) -> None:
        super().__init__()
        self.register_buffer("bias_map", bias_map)

    def forward(self, x: Tensor) -> Tensor:
        """The input plus the map, which is the same for all examples."""
        return x + self.bias_map

    def extra_repr(self) -> str:
        """The size of the map."""
        return "x".join(map(str, self.bias_map.shape))


@register
@dataclass(frozen=True)
class NewBiases:
    """Layers without a bias get one, of zeros, that is trained if the layer is."""

    names: tuple[str, ...]
    kind: ClassVar[str] = "new_biases"

    def apply(self, model: nn.Module) -> None:
        """Raises SurgeryError where a layer does not exist, or has a bias."""
        for module in [_layer(model, name) for name in self.names]:
            width = module.out_features if isinstance(module, nn.Linear) else module.out_channels
            trained = any(parameter.requires_grad for parameter in module.parameters())
            module.bias = nn.Parameter(_zeros(module, (width,)), requires_grad=trained)

    def to_dict(self) -> dict[str, Any]:
        """The names of the layers."""
        return {"edit": self.kind, "layers": list(self.names)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> NewBiases:
        """The inverse of `to_dict`."""
        try:
            return cls(tuple(str(name) for name in plain["layers"]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


@register
@dataclass(frozen=True)
class BiasMaps:
    """Behind every named layer comes a `BiasMap` of zeros, shaped as its output for one example.

    The layer itself is then called `name.0`, the map `name.1`, and the network is bound to one size
    of input.
    """

    shapes: Mapping[str, tuple[int, ...]]
    kind: ClassVar[str] = "bias_maps"

    def apply(self, model: nn.Module) -> None:
        """Put them in place, everywhere a layer is registered; raises SurgeryError."""
        for name, shape in self.shapes.items():
            module = layer_named(model, name, "the edit was made for another network")
            if not weighs(module):
                raise SurgeryError(f"{name} is a {type(module).__name__}; it takes no bias map")
            both = nn.Sequential(module, BiasMap(_zeros(module, shape)))
            both.training = module.training
            both[1].train(module.training)
            replace_module(model, module, both)

    def to_dict(self) -> dict[str, Any]:
        """The shape for every layer."""
        shapes = {name: list(shape) for name, shape in self.shapes.items()}
        return {"edit": self.kind, "layers": shapes}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> BiasMaps:
        """The inverse of `to_dict`."""
        try:
            return cls({str(n): tuple(map(int, shape)) for n, shape in plain["layers"].items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


def _layer(model: nn.Module, name: str) -> nn.Module:
    module = layer_named(model, name, "the edit was made for another network")
    if not weighs(module) or module.bias is not None:
        raise SurgeryError(
            f"{name} ({type(module).__name__}) should be a convolution or linear layer without a "
            "bias; the edit was made for another network"
        )
    return module


def _zeros(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    like = next(module.parameters())
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
