"""Layers that pick channels by index, where they belong, and the edit that inserts them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.calls import Call
from prunekit.graph.layers import is_batch_norm, layer_named
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.ops.passing import ELSEWHERE, elsewhere
from prunekit.graph.recording.runs import record
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.recording.twin import twin_of
from prunekit.graph.run import Run
from prunekit.graph.slicing import indices, narrow_tensor
from prunekit.graph.table import Indices, of_step, operation
from prunekit.graph.values import Value, resize, spread
from prunekit.graph.walks import ahead, makers
from prunekit.surgery.edits import register, replace_module


class ChannelSelector(nn.Module):
    """Hands on the channels (dimension 1) whose indices are in the buffer `kept`, in that order.

    While all of `width` channels are kept it returns its input itself. It stands in front of a
    batch norm whose channels others read too: norm and reader can then be narrowed, and what is
    read stays as it is. The published layer stands behind the norm and picks by a mask, which
    computes the same but leaves the norm wide (Liu et al. 2017).
    """

    kept: Tensor

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("kept", torch.arange(width, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """The kept channels of (examples, channels, ...)."""
        return x if len(self.kept) == self.width else x.index_select(1, self.kept)

    def extra_repr(self) -> str:
        """How many channels are kept, of how many."""
        return f"{len(self.kept)} of {self.width}"


def selected(run: Run, call: Call) -> Any:
    """What is picked are channels of their own, what it is picked from stays."""
    value = call.values[0]
    if elsewhere(run, call, 1):
        return run.unknown(call, ELSEWHERE)
    run.freeze(value.labels, None, "being read through a channel selection")
    meta, labels = run.layer(call, value.along(1))
    return Value(resize(meta, 1, len(labels)), spread(labels, 1, meta.ndim))


def narrow_selection(module: ChannelSelector, keep_in: Indices, keep_out: Indices) -> None:
    """Keep what is picked."""
    if keep_in is not None and len(indices(keep_in, module.width)) < module.width:
        raise SurgeryError(f"it selects from {module.width} channels, all of which stay")
    narrow_tensor(module, "kept", 0, keep_out)


operation(
    selected,
    "",
    ChannelSelector,
    narrow=narrow_selection,
    counts=("width", "kept"),
    whole=True,
)


def shared_norms(model: nn.Module, example: Example) -> tuple[str, ...]:
    """The batch norms that read channels which other layers read past them, in order of execution.

    Such are the first norm of a pre-activation block and all norms of dense blocks; a norm behind
    its convolution is none, nor is one behind a `ChannelSelector`. Nothing is computed; raises
    TraceError like `ChannelGraph.trace`.
    """
    runs = record(model, Arguments.of(example))
    twin = twin_of(model)
    return tuple(dict.fromkeys(name for run in runs for name in _shared(twin, run)))


def _shared(twin: nn.Module, recording: Recording) -> Iterator[str]:
    layers = {step for step in recording.steps if _is_layer(twin, step)}
    for step in recording.steps:
        name = _called_norm(twin, step)
        if name is not None and _read_past(step, makers(step, layers), layers):
            yield name


def _called_norm(twin: nn.Module, step: Step) -> str | None:
    """The batch norm that a step calls; None for others, and for one that only lends its numbers.

    What stands in front of a module is not seen by functions that are given its parameters.
    """
    owner = str(step.target) if step.kind is Kind.LAYER else norm_owner(twin, step)
    if owner is None or not is_batch_norm(twin.get_submodule(owner)):
        return None
    return owner if step.calls and step.calls[-1][1] == owner else None


def _read_past(norm: Step, found: Collection[Step], layers: Collection[Step]) -> bool:
    """Whether a layer, or the caller, gets something of these makers that did not pass the norm."""
    return any(
        one.kind is Kind.OUTPUT or one in layers
        for one in ahead(found, lambda step: step is not norm and step not in layers)
    )


def _is_layer(twin: nn.Module, step: Step) -> bool:
    entry = of_step(step, twin)
    if entry is None or step.kind not in (Kind.LAYER, Kind.CALL):
        return False
    return entry.weighs or (entry.whole and entry.narrow is not None and not entry.norm)


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
        modules = {name: _batch_norm(model, name) for name in self.norms}
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


def _batch_norm(model: nn.Module, name: str) -> nn.Module:
    module = layer_named(model, name, "the edit was made for another network")
    if not is_batch_norm(module):
        raise SurgeryError(
            f"{name} is a {type(module).__name__}; a channel selection belongs in front of a batch "
            "norm, the edit was made for another network"
        )
    return module


def _device(norm: nn.Module) -> Any:
    return next((x.device for x in [*norm.parameters(), *norm.buffers()]), None)
