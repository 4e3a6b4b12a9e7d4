"""A layer that picks channels by index, so that one reader can lose them and others keep them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ChannelSelection(nn.Module):
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
