"""Memory of a network: activations of a forward pass, bytes on disk, nonzero weights."""

from __future__ import annotations

import copy
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from prunekit.errors import ArtifactError
from prunekit.graph.arguments import Arguments, Example


def peak_memory(model: nn.Module, example: Example) -> int:
    """Return the peak number of bytes of input and activations in a forward pass.

    A copy of the model runs on a batch shaped like `example`, on its device, in evaluation mode
    without gradients; weights and buffers do not count. On a CPU the bytes of live tensors are
    followed from op to op, with the same result every time; on a GPU it is the allocator's peak,
    which includes workspaces of the kernels.
    """
    arguments = Arguments.of(example)
    network = copy.deepcopy(model).to(arguments.device).eval()
    with torch.no_grad():
        if arguments.device.type == "cuda":
            return _allocator_peak(network, arguments)
        with _LiveBytes() as live:
            arguments.map_tensors(torch.zeros_like).call(network)
    return live.peak


def file_bytes(path: str | Path) -> int:
    """Return the size of a file in bytes; raise ArtifactError when it is missing."""
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise ArtifactError(f"{path} does not exist, so it has no size; give a file") from error


def nonzero_params(model: nn.Module) -> int:
    """Return the number of parameter entries that are not exactly zero."""
    return sum(int(param.count_nonzero()) for param in model.parameters())


def sparsity(model: nn.Module) -> float:
    """Return the share of parameter entries that are exactly zero, between 0 and 1."""
    total = sum(param.numel() for param in model.parameters())
    return 1 - nonzero_params(model) / total if total else 0.0


class _LiveBytes(TorchDispatchMode):
    """Count the bytes of storages that ops create while the mode is active, until they are freed.

    Weights existed before and are returned by no op, so they never count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._current = 0
        self._counted: set[int] = set()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        older = {_key(x) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **kwargs)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and _key(tensor) not in older | self._counted:
                self._add(tensor)
        return out

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = _key(tensor), storage.nbytes()
        self._counted.add(key)
        self._current += size
        self.peak = max(self.peak, self._current)
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._counted.discard(key)
        self._current -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _allocator_peak(network: nn.Module, arguments: Arguments) -> int:
    device = arguments.device
    arguments.map_tensors(torch.zeros_like).call(network)  # it also allocates lasting workspaces
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    arguments.map_tensors(torch.zeros_like).call(network)
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
