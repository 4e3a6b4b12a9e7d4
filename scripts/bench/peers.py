"""Torch-Pruning on the same networks, with the settings of its own benchmarks, and its masks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def pruner(model: nn.Module, example: Tensor, ignored: Sequence[nn.Module], keep: float) -> Any:
    """Return its pruner by L2 norms over groups; making it builds the dependency graph."""
    import torch_pruning

    return torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=1 - keep,
        ignored_layers=[*ignored],
    )


def prune(model: nn.Module, example: Tensor, ignored: Sequence[nn.Module], keep: float) -> None:
    """Prune in place."""
    pruner(model, example, ignored, keep).step()


@dataclass(frozen=True, eq=False)
class Masked:
    """The dense network in which everything the peer removed is zero.

    What it removed is found by doing the same to a copy whose entries are their own indices.
    """

    history: Any
    dense: nn.Module
    example: Tensor
    ignored: Callable[[nn.Module], Sequence[nn.Module]]
    keep: float
    inexact: tuple[str, ...] = ()  # it says of no layer that it is

    def network(self) -> nn.Module:
        """Set the removed rows of weights, biases, scales and shifts to zero, in place."""
        left = self._rows_left()
        for name, parameter in self.dense.named_parameters():
            if name in left and len(left[name]) < len(parameter):
                gone = torch.ones(len(parameter), dtype=torch.bool)
                gone[left[name]] = False
                parameter.data[gone] = 0
        return self.dense

    def _rows_left(self) -> dict[str, Tensor]:
        """Return the indices of the rows that stay, for every parameter."""
        numbered = copy.deepcopy(self.dense)
        again = pruner(numbered, self.example, self.ignored(numbered), self.keep)
        for parameter in numbered.parameters():
            if parameter.ndim:
                index = torch.arange(len(parameter), dtype=parameter.dtype)
                column = index.reshape(-1, *[1] * (parameter.ndim - 1))
                parameter.data.copy_(column.expand_as(parameter))
        again.load_pruning_history(self.history)
        return {
            name: parameter.data.reshape(len(parameter), -1)[:, 0].long()
            for name, parameter in numbered.named_parameters()
            if parameter.ndim
        }

    @contextmanager
    def silencer(self, model: nn.Module, drop: Tensor) -> Iterator[None]:
        """Do nothing: the removed channels are zero in `network` already."""
        yield
