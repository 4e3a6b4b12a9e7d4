"""The edit that puts channel selections in front of batch norms whose channels others read too."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph.arguments import Example
from prunekit.graph.layers import is_batch_norm, layer_named
from prunekit.methods.slimming.selector import ChannelSelector
from prunekit.methods.slimming.shared_norms import shared_norms
from prunekit.surgery.edits import register, replace_module


@register
@dataclass(frozen=True)
class InsertChannelSelectors:
    """In front of every named batch norm comes a `ChannelSelector` that keeps all channels.

    Together they stand in the norm's place: the norm is then called `name.norm`, the selection
    `name.select`. Outputs stay as they are to the last bit.
    """

    norms: tuple[str, ...]
    kind: ClassVar[str] = "select"

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> InsertChannelSelectors:
        """For all norms of a pre-activation or dense network that need one, see `shared_norms`."""
        return cls(shared_norms(model, example))

    def apply(self, model: nn.Module) -> None:
        """Put them in place, everywhere a norm is registered; raises SurgeryError."""
        modules = {name: _norm(model, name) for name in self.norms}
        for norm in modules.values():
            select = ChannelSelector(norm.num_features, _device(norm))
            both = nn.Sequential(OrderedDict(select=select, norm=norm)).train(norm.training)
            replace_module(model, norm, both)

    def to_dict(self) -> dict[str, Any]:
        """The names of the norms."""
        return {"edit": self.kind, "norms": list(self.norms)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> InsertChannelSelectors:
        """The inverse of `to_dict`."""
        try:
            return cls(tuple(str(name) for name in plain["norms"]))
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


def _norm(model: nn.Module, name: str) -> nn.Module:
    module = layer_named(model, name, "the edit was made for another network")
    if not is_batch_norm(module):
        raise SurgeryError(
            f"{name} is a {type(module).__name__}; a channel selection belongs in front of a batch "
            "norm, the edit was made for another network"
        )
    return module


def _device(norm: nn.Module) -> Any:
    return next((x.device for x in [*norm.parameters(), *norm.buffers()]), None)
