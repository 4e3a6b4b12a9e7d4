"""The edit that leaves of a residual block its shortcut, when its branch is empty."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError, one_of
from prunekit.graph.layers import layer_named
from prunekit.graph.table import entries
from prunekit.modes import hand_hooks
from prunekit.surgery.biases import BiasMap
from prunekit.surgery.edits import register, replace_module

ADDED = "+"  # the step at which the branch was added
FUNCTIONS: Mapping[str, type[nn.Module]] = {
    f"{name}()": entry.stands_for
    for entry in entries()
    if entry.stands_for is not None
    for name in entry.functions
}


class Shift(nn.Module):
    """Add a number to every channel, which is trained as biases are."""

    def __init__(self, bias: Tensor, trained: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        """The input plus the shift, which is shaped to broadcast over examples and positions."""
        return x + self.bias

    def extra_repr(self) -> str:
        """How many channels."""
        return str(self.bias.numel())


@register
@dataclass(frozen=True)
class SkipBlock:
    """A residual block without its branch: the modules of its shortcut and what follows, in a row.

    `steps` are names of modules directly in the block, of functions ("relu()"), and `ADDED` where
    the branch was added. There a `Shift` of zeros of the shape `shift` takes its place, or a
    `BiasMap` if the shape has positions; nothing without a shape. Modules keep their names.
    """

    block: str
    steps: tuple[str, ...]
    shift: tuple[int, ...] | None = None
    kind: ClassVar[str] = "skip_block"

    def apply(self, model: nn.Module) -> None:
        """Put what is left wherever the block is registered; raises SurgeryError."""
        block = layer_named(model, self.block, "the edit was made for another network")
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for step in self.steps:
            made = self._part(block, step)
            if type(made) not in (type(None), nn.Identity):
                name = "shift" if step == ADDED else step.removesuffix("()")
                parts[name if name not in parts else f"{name}_{len(parts)}"] = made
        left = nn.Sequential(parts) if parts else nn.Identity()
        left.training = block.training
        hand_hooks(block, left)
        replace_module(model, block, left)

    def _part(self, block: nn.Module, step: str) -> nn.Module | None:
        if step == ADDED:
            return None if self.shift is None else _shift(block, self.shift)
        made = FUNCTIONS[step]() if step in FUNCTIONS else block._modules.get(step)
        if made is None:
            raise SurgeryError(
                f"{self.block} has no part {step!r}; {one_of(step, block._modules)}; the edit was "
                "made for another network"
            )
        if getattr(made, "inplace", False):
            made.inplace = False  # it may now write into what the layer in front keeps for autograd
        return made

    def to_dict(self) -> dict[str, Any]:
        """The block, its steps, and the shape of the shift, left out where there is none."""
        shift = {} if self.shift is None else {"shift": list(self.shift)}
        return {"edit": self.kind, "block": self.block, "steps": list(self.steps), **shift}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SkipBlock:
        """The inverse of `to_dict`."""
        try:
            shift = tuple(map(int, plain["shift"])) if "shift" in plain else None
            return cls(str(plain["block"]), tuple(map(str, plain["steps"])), shift)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


def _shift(block: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    like = next(block.parameters())
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if sum(size > 1 for size in shape) > 1:
        return BiasMap(zeros)
    return Shift(zeros, any(parameter.requires_grad for parameter in block.parameters()))
