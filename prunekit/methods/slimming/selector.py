"""A layer that picks channels by index, so that one reader can lose them and others keep them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph.calls import Call
from prunekit.graph.ops.passing import ELSEWHERE, elsewhere
from prunekit.graph.run import Run
from prunekit.graph.slicing import indices, narrow_tensor
from prunekit.graph.table import Indices, operation
from prunekit.graph.values import Value, resize, spread


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
