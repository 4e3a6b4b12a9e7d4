"""Finds tensors that were computed from inputs behind the back of a recorder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit.graph.recording.nests import leaves_in


class UnrecordedTensor(Exception):
    """A tensor turned up that no recorded operation made."""


class UnrecordedOrigins(TorchDispatchMode):
    """Sees every operation on numbers, those of compiled code and of maps over batches as well.

    What they make of recorded tensors, while no recorded step is at work, is unseen.
    """

    def __init__(
        self, recorded: Callable[[Tensor], object], is_recording: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._recorded = recorded
        self._is_recording = is_recording
        self._memories: dict[int, Any] = {}  # memory by its address, held so that it is not reused

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        if self._is_recording():
            return found
        given = leaves_in((args, kwargs or {}), Tensor)
        if any(self._recorded(one) or self.is_unrecorded(one) for one in given):
            for tensor in leaves_in(found, Tensor):
                memory = _memory(tensor)
                if memory is not None:
                    self._memories[memory._cdata] = memory
        return found

    def is_unrecorded(self, tensor: Tensor) -> bool:
        """Whether a tensor came about like that."""
        memory = _memory(tensor) if self._memories else None
        return memory is not None and memory._cdata in self._memories


def _memory(tensor: Tensor) -> Any:
    if tensor.is_meta or tensor.layout != torch.strided:
        return None
    try:
        return tensor.untyped_storage()
    except (RuntimeError, NotImplementedError):  # tensors that only stand for others
        return None
