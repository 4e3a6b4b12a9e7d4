"""New classifiers: for other classes, or without the linear layers that hold most parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph.arguments import Example
from prunekit.graph.classifier import ending, last_layer
from prunekit.graph.layers import CONVOLUTIONS, layer_named, widths
from prunekit.schema import Checked, Positive
from prunekit.surgery.edits import register, replace_module


@register
@dataclass(frozen=True)
class NewHead:
    """Another last layer, `features` inputs wide, with random weights and `classes` outputs.

    The module `pool` becomes global average pooling, those in `gone` are left out.
    """

    last: str
    features: int
    classes: int
    pool: str | None = None
    gone: tuple[str, ...] = ()
    kind: ClassVar[str] = "head"

    def apply(self, model: nn.Module) -> None:
        """Put the layers wherever the old ones are registered; raises SurgeryError."""
        foreign = "the edit was made for another network"
        old = layer_named(model, self.last, foreign)
        others = {name: layer_named(model, name, foreign) for name in self.gone}
        pool = None if self.pool is None else layer_named(model, self.pool, foreign)
        _put(model, old, _anew(self.last, old, self.features, self.classes))
        if pool is not None:
            _put(model, pool, nn.AdaptiveAvgPool2d(1))
        for module in others.values():
            _put(model, module, nn.Identity())

    def to_dict(self) -> dict[str, Any]:
        """Names and sizes."""
        pool = {} if self.pool is None else {"pool": self.pool}
        sizes = {"features": self.features, "classes": self.classes}
        return {"edit": self.kind, "last": self.last, **sizes, **pool, "gone": list(self.gone)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> NewHead:
        """The inverse of `to_dict`."""
        try:
            pool, gone = plain.get("pool"), tuple(str(name) for name in plain["gone"])
            sizes = int(plain["features"]), int(plain["classes"])
            return cls(str(plain["last"]), *sizes, None if pool is None else str(pool), gone)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error

    def __str__(self) -> str:
        pooled = f"{self.pool} pools globally, " if self.pool else ""
        left = f", {len(self.gone)} modules are left out" if self.gone else ""
        return (
            f"new classifier: {pooled}{self.last} starts anew from {self.features} to "
            f"{self.classes}{left}"
        )


@dataclass(frozen=True)
class Head(Checked, ABC):
    """What a network is to end in; its new layer trains `rate` times as fast as all others."""

    rate: Annotated[Positive, "of the new layer, as a multiple of that of all others"] = 1.0

    @abstractmethod
    def edit(self, model: nn.Module, example: Example, classes: int) -> NewHead:
        """The change that makes it so, for this network; raises SurgeryError or TraceError."""


@dataclass(frozen=True)
class LastLayer(Head):
    """The last layer starts anew, with an output a class: to go on with other images."""

    def edit(self, model: nn.Module, example: Example, classes: int) -> NewHead:
        """Nothing else changes."""
        name = last_layer(model, example)
        return NewHead(name, widths(layer_named(model, name))[0], classes)


@dataclass(frozen=True)
class GlobalPooling(Head):
    """The average of every last map, and one linear layer on these: X-GAP of SSR, section IV-C.

    All pooling between the last maps and their flattening gives way to it, as do all linear layers
    but the last, and what stands between them. Functions in between stay, as do modules without
    parameters that are called elsewhere too.
    """

    def edit(self, model: nn.Module, example: Example, classes: int) -> NewHead:
        """SurgeryError, too, where maps are flattened that no module pools."""
        end = ending(model, example)
        if not end.pools and end.features != end.channels:
            raise SurgeryError(
                f"{type(model).__name__} flattens {end.channels} maps to {end.features} features "
                "with no pooling layer of their own in front; put nn.AdaptiveAvgPool2d(1) there"
            )
        pool, *rest = [*end.pools, None]
        gone = (*(name for name in rest if name is not None), *end.hidden)
        return NewHead(end.last, end.channels, classes, pool, gone)


def _anew(name: str, old: nn.Module, features: int, classes: int) -> nn.Module:
    """A layer like the old one, of other sizes, as PyTorch initialises it."""
    if type(old) is nn.Linear:
        make: Any = nn.Linear
        given: dict[str, Any] = {}
    elif type(old) in CONVOLUTIONS and old.groups == 1:
        make = type(old)
        names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        given = {key: getattr(old, key) for key in names}
    else:
        raise SurgeryError(
            f"{name} is a {type(old).__name__}({old.extra_repr()}); only a plain linear layer or "
            "convolution can start anew"
        )
    like = {"device": old.weight.device, "dtype": old.weight.dtype}
    return make(features, classes, bias=old.bias is not None, **given, **like)


def _put(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    replace_module(model, old, new.train(old.training))
