"""Layers that select channels, the norms that need one, and the edit that inserts them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.errors import SurgeryError
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.calls import Call
from prunekit.graph.dataflow import producing_layers, steps_after
from prunekit.graph.labels import LabeledTensor, resize, spread
from prunekit.graph.layers import is_batch_norm, layer_named
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.ops.rules import ELSEWHERE, varies_elsewhere
from prunekit.graph.recording.copies import copy_network
from prunekit.graph.recording.passes import record
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.replay import Replay
from prunekit.graph.slicing import indices, narrow_tensor
from prunekit.graph.table import Indices, register_operation, step_operation
from prunekit.surgery.edits import damaged_edit, register, replace_module


class ChannelSelector(nn.Module):
    """Passes on the channels (dimension 1) whose indices are in the buffer `kept`, in that order.

    While all of `width` channels are kept, it returns the input itself. It is placed before a batch
    norm whose input channels other layers read too: the norm and its readers can then be narrowed
    while the channels stay. The published layer follows the norm and selects by a mask, which
    computes the same but leaves the norm wide (Liu et al. 2017).
    """

    kept: Tensor

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.width = width
        self.register_buffer("kept", torch.arange(width, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """Return the kept channels of (examples, channels, ...)."""
        return x if len(self.kept) == self.width else x.index_select(1, self.kept)

    def extra_repr(self) -> str:
        """Return how many channels are kept, and how many there are."""
        return f"{len(self.kept)} of {self.width}"


def select_channels(replay: Replay, call: Call) -> Any:
    """Give the selected channels units of their own, and freeze the input channels.

    This is the selector's rule in the table of operations.
    """
    value = call.values[0]
    if varies_elsewhere(replay, call, 1):
        return replay.freeze_inputs(call, ELSEWHERE)
    replay.freeze(value.labels, None, "being read through a channel selection")
    meta, labels = replay.visit_layer(call, value.along(1))
    return LabeledTensor(resize(meta, 1, len(labels)), spread(labels, 1, meta.ndim))


def narrow_selector(module: ChannelSelector, keep_in: Indices, keep_out: Indices) -> None:
    """Keep some of the selected channels; raises SurgeryError if input channels are removed."""
    if keep_in is not None and len(indices(keep_in, module.width)) < module.width:
        raise SurgeryError(f"it selects from {module.width} channels, all of which stay")
    narrow_tensor(module, "kept", 0, keep_out)


register_operation(
    select_channels,
    "",
    ChannelSelector,
    narrow=narrow_selector,
    width_attributes=("width", "kept"),
    opaque=True,
)


def shared_norms(model: nn.Module, example: Example) -> tuple[str, ...]:
    """Return the batch norms whose input channels other layers read too, in order of execution.

    These are the first norm of a pre-activation block and all norms of dense blocks. A norm after
    its own convolution, or after a `ChannelSelector`, is not among them. The network is only
    recorded, not computed; raises TraceError like `ChannelGraph.trace`.
    """
    recordings = record(model, Arguments.of(example))
    network = copy_network(model)
    return tuple(
        dict.fromkeys(name for recording in recordings for name in _shared(network, recording))
    )


def _shared(network: nn.Module, recording: Recording) -> Iterator[str]:
    layers = {step for step in recording.steps if _is_layer(network, step)}
    for step in recording.steps:
        name = _called_norm(network, step)
        if name is not None and _is_bypassed(step, producing_layers(step, layers), layers):
            yield name


def _called_norm(network: nn.Module, step: Step) -> str | None:
    """Return the name of the batch norm module that a step calls, or None.

    Norms whose parameters are passed to a function are left out, since the function would not call
    a selector before the module.
    """
    owner = str(step.target) if step.kind is Kind.LAYER else norm_owner(network, step)
    if owner is None or not is_batch_norm(network.get_submodule(owner)):
        return None
    return owner if step.calls and step.calls[-1][1] == owner else None


def _is_bypassed(norm: Step, producers: Collection[Step], layers: Collection[Step]) -> bool:
    """Return whether output of the producers reaches a layer, or the caller, but for the norm."""
    return any(
        step.kind is Kind.OUTPUT or step in layers
        for step in steps_after(producers, lambda step: step is not norm and step not in layers)
    )


def _is_layer(network: nn.Module, step: Step) -> bool:
    """Return whether a step ends channels: a convolution, linear layer or channel selector."""
    entry = step_operation(step, network)
    if entry is None or step.kind not in (Kind.LAYER, Kind.CALL):
        return False
    return entry.weighted or (entry.opaque and entry.narrow is not None and not entry.normalizes)


@register
@dataclass(frozen=True)
class InsertChannelSelectors:
    """Inserts a `ChannelSelector` that keeps all channels before every named batch norm.

    Both replace the norm: it is then called `name.norm`, and the selector `name.select`. Outputs
    stay bitwise the same.
    """

    norms: tuple[str, ...]
    kind: ClassVar[str] = "select"

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> InsertChannelSelectors:
        """Return the edit for all norms of a network that need a selector, see `shared_norms`."""
        return cls(shared_norms(model, example))

    def apply(self, model: nn.Module) -> None:
        """Insert the selectors, wherever a norm is registered; raises SurgeryError."""
        modules = {name: _batch_norm(model, name) for name in self.norms}
        for norm in modules.values():
            select = ChannelSelector(norm.num_features, _device(norm))
            both = nn.Sequential(OrderedDict(select=select, norm=norm)).train(norm.training)
            replace_module(model, norm, both)

    def to_dict(self) -> dict[str, Any]:
        """Return the names of the norms."""
        return {"edit": self.kind, "norms": list(self.norms)}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> InsertChannelSelectors:
        """Rebuild the edit from `to_dict`; raises ArtifactError for damaged entries."""
        try:
            return cls(tuple(str(name) for name in plain["norms"]))
        except (KeyError, TypeError) as error:
            raise damaged_edit(cls.kind, error) from error


def _batch_norm(model: nn.Module, name: str) -> _BatchNorm:
    module = layer_named(model, name, "the edit was made for another network")
    if not (isinstance(module, _BatchNorm) and is_batch_norm(module)):
        raise SurgeryError(
            f"{name} is a {type(module).__name__}; a channel selection belongs in front of a batch "
            "norm, the edit was made for another network"
        )
    return module


def _device(norm: nn.Module) -> torch.device | None:
    return next((x.device for x in [*norm.parameters(), *norm.buffers()]), None)
