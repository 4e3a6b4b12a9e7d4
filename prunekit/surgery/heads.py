"""Edits that replace the classifier of a network, for other classes or fewer parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from prunekit.errors import SurgeryError
from prunekit.graph.arguments import Example
from prunekit.graph.classifier import ending, last_layer
from prunekit.graph.layers import CONVOLUTIONS, layer_named, widths
from prunekit.schema import Checked, Positive
from prunekit.surgery.edits import damaged_edit, register, replace_module


@register
@dataclass(frozen=True)
class NewHead:
    """Replace the last layer by a new one with `features` inputs and `classes` outputs.

    The new layer has random weights. The module `pool` becomes global average pooling, and the
    modules in `removed` become identities.
    """

    last: str
    features: int
    classes: int
    pool: str | None = None
    removed: tuple[str, ...] = ()
    kind: ClassVar[str] = "head"

    def apply(self, model: nn.Module) -> None:
        """Replace the layers wherever they are registered; raise SurgeryError if one is missing."""
        foreign = "the edit was made for another network"
        old = layer_named(model, self.last, foreign)
        others = [layer_named(model, name, foreign) for name in self.removed]
        pool = None if self.pool is None else layer_named(model, self.pool, foreign)
        _replace(model, old, _new_layer(self.last, old, self.features, self.classes))
        if pool is not None:
            _replace(model, pool, nn.AdaptiveAvgPool2d(1))
        for module in others:
            _replace(model, module, nn.Identity())

    def to_dict(self) -> dict[str, Any]:
        """Return names and sizes; `removed` is stored under the name `gone`."""
        pool = {} if self.pool is None else {"pool": self.pool}
        sizes = {"features": self.features, "classes": self.classes}
        return {"edit": self.kind, "last": self.last, **sizes, **pool, "gone": list(self.removed)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> NewHead:
        """Rebuild the edit that `to_dict` described; raise ArtifactError for damaged entries."""
        try:
            pool, removed = plain.get("pool"), tuple(str(name) for name in plain["gone"])
            sizes = int(plain["features"]), int(plain["classes"])
            return cls(str(plain["last"]), *sizes, None if pool is None else str(pool), removed)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged_edit(cls.kind, error) from error

    def __str__(self) -> str:
        pooled = f"{self.pool} pools globally, " if self.pool else ""
        removed = f", {len(self.removed)} modules are left out" if self.removed else ""
        return (
            f"new classifier: {pooled}{self.last} starts anew from {self.features} to "
            f"{self.classes}{removed}"
        )


@dataclass(frozen=True)
class Head(Checked, ABC):
    """A rule for a new classifier, whose layer trains at `rate` times the usual learning rate."""

    rate: Annotated[Positive, "learning rate of the new layer, relative to all others"] = 1.0

    @abstractmethod
    def edit(self, model: nn.Module, example: Example, classes: int) -> NewHead:
        """Return the edit for this network; raise SurgeryError or TraceError."""


@dataclass(frozen=True)
class LastLayer(Head):
    """Replace the last layer only, to continue training with other classes."""

    def edit(self, model: nn.Module, example: Example, classes: int) -> NewHead:
        """Return the edit that replaces the last layer."""
        name = last_layer(model, example)
        return NewHead(name, widths(layer_named(model, name))[0], classes)


@dataclass(frozen=True)
class GlobalPooling(Head):
    """Use global average pooling and one linear layer: X-GAP of SSR, section IV-C.

    It replaces all pooling between the last feature maps and their flattening, all linear layers
    but the last, and the modules between them. Functions in between stay, as do modules without
    parameters that are also called elsewhere.
    """

    def edit(self, model: nn.Module, example: Example, classes: int) -> NewHead:
        """Return the edit; raise SurgeryError also where maps are flattened without pooling."""
        end = ending(model, example)
        if not end.pools and end.features != end.channels:
            raise SurgeryError(
                f"{type(model).__name__} flattens {end.channels} maps to {end.features} features "
                "with no pooling layer of their own in front; put nn.AdaptiveAvgPool2d(1) there"
            )
        pool = end.pools[0] if end.pools else None
        removed = (*end.pools[1:], *end.hidden)
        return NewHead(end.last, end.channels, classes, pool, removed)


def _new_layer(name: str, old: nn.Module, features: int, classes: int) -> nn.Module:
    """Return a layer like the old one, of other sizes, as PyTorch initialises it."""
    names: tuple[str, ...] = ()
    if type(old) in CONVOLUTIONS and old.groups == 1:
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    elif type(old) is not nn.Linear:
        raise SurgeryError(
            f"{name} is a {type(old).__name__}({old.extra_repr()}); only a plain linear layer or "
            "convolution can start anew"
        )
    kind: Callable[..., nn.Module] = type(old)
    settings = {key: getattr(old, key) for key in names}
    like = {"device": old.weight.device, "dtype": old.weight.dtype}
    return kind(features, classes, bias=old.bias is not None, **settings, **like)


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    replace_module(model, old, new.train(old.training))
