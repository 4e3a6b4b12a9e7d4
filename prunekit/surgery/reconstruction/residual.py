"""Layers whose output is added to a shortcut, so that they can make up for its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.dataflow import batch_norm, combines_two, input_steps
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import step_operation

_SMALLEST_SCALE = 1e-6  # of a norm behind the layer, which the correction is divided by


@dataclass(frozen=True, eq=False)
class Addition:
    """The sum that a layer's output ends in, the other operand, and the norm between, if any."""

    other: Step
    norm: nn.Module | None

    @classmethod
    def behind(cls, network: nn.Module, layer: Step) -> Addition | None:
        """Return the addition that alone reads a layer, through nothing but a norm and dropout.

        An activation on the way cannot be undone; then, and where nothing is added, it is None.
        """
        step, norm = layer, None
        while len(readers := [user for user in step.users if not user.is_query]) == 1:
            (user,) = readers
            if combines_two(user, "add") and "alpha" not in user.kwargs:
                operands = input_steps(user)
                other = operands[0] if operands[1] is step else operands[1]
                same = tuple(other.result.shape) == tuple(step.result.shape)
                return cls(other, norm) if other is not step and same else None
            name = batch_norm(network, user)
            if name is not None and norm is None:
                norm = network.get_submodule(name)
            elif not _passes_on(network, user):
                return None
            step = user
        return None

    def correction(self, dense: Tensor, narrow: Tensor, kept: Tensor, dim: int) -> Tensor:
        """Return what the layer must add so that both sums are equal, in front of the norm.

        `dense` and `narrow` are the other operand in both networks, with channels in dimension
        `dim`; `kept` are the dense channels that the narrow network has.
        """
        error = dense.index_select(dim, kept.to(dense.device)) - narrow
        scale = _scale(self.norm)
        if scale is None:
            return error
        usable = scale.abs() > _SMALLEST_SCALE
        factor = torch.where(usable, 1 / scale.where(usable, 1), 0).to(error)
        return error * factor.reshape(-1, *[1] * (error.ndim - 1 - dim))


def _scale(norm: Any) -> Tensor | None:
    """Return what a batch norm multiplies each channel by in evaluation mode."""
    if norm is None:
        return None
    deviation: Tensor = (norm.running_var + norm.eps).sqrt()
    return 1 / deviation if norm.weight is None else norm.weight.detach() / deviation


def _passes_on(network: nn.Module, step: Step) -> bool:
    """Return whether a step returns its input in evaluation mode."""
    if step.kind is Kind.LAYER and isinstance(network.get_submodule(step.target), nn.Identity):
        return True
    entry = step_operation(step, network)
    return entry is not None and entry.is_dropout
