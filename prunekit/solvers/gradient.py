"""Stochastic subgradient descent: the penalty's slope joins the gradient of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.rows import grad_of
from prunekit.schema import Count, PartShare
from prunekit.solvers.base import SOLVERS, Solver, check_state, learning_rate


@SOLVERS.register("subgradient")
@dataclass
class Subgradient(Solver):
    """Adds a subgradient before every step; with `L1` on filters this is SSL (Wen et al. 2016).

    The optimizer's momentum acts on it too, as in network slimming. Descent leaves no exact zeros,
    so rows shorter than `threshold` times the median row of their block count as zero (0: none).
    """

    threshold: Annotated[PartShare, "rows below this share of the median norm end as zero"] = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"subgradient"})

    def before_step(self, optimizer: Optimizer) -> None:
        """Add weight * subgradient to the gradients."""
        for block in self.blocks:
            block.add_grad(self.penalty.subgradient(block.read()), scale=block.weight)

    def solution(self) -> list[Tensor]:
        """The parameters, with rows below the threshold set to zero."""
        return [_cut(block.read(), self.threshold) for block in self.blocks]

    def finish(self) -> None:
        """Write the zeros of `solution` into the parameters."""
        for block, matrix in zip(self.blocks, self.solution(), strict=True):
            block.write(matrix)


def _cut(rows: Tensor, threshold: float) -> Tensor:
    norms = rows.double().norm(dim=1)
    return rows.masked_fill((norms < threshold * norms.median())[:, None], 0.0)


@SOLVERS.register("slimming")
def slimming(threshold: float = 0.0) -> Subgradient:
    """Network slimming as published: the slope joins the gradient, no scale is zero in the end."""
    return Subgradient(threshold)


@SOLVERS.register("proximal")
@dataclass
class Proximal(Solver):
    """Applies the prox with step rate * weight * `every` after each `every`-th optimizer step.

    Forward-backward splitting; the zeros are exact. The optimizer's momentum m never sees the
    penalty, only the loss, which it makes weigh 1 / (1 - m): the same lam is that much weaker than
    under `Subgradient`. A rate of zero leaves the parameters alone.
    """

    every: Annotated[Count, "optimizer steps between two proximal steps"] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"prox"})

    def start(self) -> None:
        """Count optimizer steps from zero."""
        self.steps = 0

    def after_step(self, optimizer: Optimizer) -> None:
        """Shrink the rows when it is time."""
        self.steps += 1
        if self.steps % self.every:
            return
        for index, block in enumerate(self.blocks):
            step = self.step_of(optimizer, index) * self.every
            if step > 0:
                block.write(self.prox(block, block.read(), step))

    def step_of(self, optimizer: Optimizer, index: int) -> float:
        """The step of one prox on a block: the rate of its parameters."""
        return learning_rate(optimizer, self.blocks[index])

    def finish(self) -> None:
        """Nothing to do: the parameters hold the answer."""

    def state_dict(self) -> dict[str, Any]:
        """The position between two proxes."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting where the state stopped."""
        self.steps = int(state["steps"])


@dataclass
class KeepZeros(Solver):
    """Keeps the rows that are zero when it is bound at zero; the penalty is only reported.

    On `Entries` it is the mask of unstructured sparsity.
    """

    def start(self) -> None:
        """Remember which rows are zero."""
        self._freeze([(block.read() == 0).all(dim=1) for block in self.blocks])

    def before_step(self, optimizer: Optimizer) -> None:
        """No gradient for what is held, so that momentum has nothing to carry."""
        for param, held in self.held:
            grad_of(param).masked_fill_(held, 0.0)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Undo what older momentum did."""
        for param, held in self.held:
            param.masked_fill_(held, 0.0)

    def finish(self) -> None:
        """Nothing to do: the parameters hold the answer."""

    def state_dict(self) -> dict[str, Any]:
        """The held rows of every block."""
        return {"zero": self.zero}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """KeepZeros the rows that were held before, whatever the parameters were when bound."""
        check_state(self.blocks, state["zero"], [mask.shape for mask in self.zero])
        devices = [mask.device for mask in self.zero]
        self._freeze([mask.to(at) for mask, at in zip(state["zero"], devices, strict=True)])

    def _freeze(self, zero: list[torch.Tensor]) -> None:
        self.zero = zero
        self.held = [
            (param, entries.contiguous())
            for block, mask in zip(self.blocks, zero, strict=True)
            for param, entries in block.scatter(mask[:, None].expand(block.read().shape))
        ]
