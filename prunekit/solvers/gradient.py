"""Solvers that act once per optimizer step: on the gradient before it, on the rows after it."""

from __future__ import annotations

from collections.abc import Sequence
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

    The optimizer's momentum also acts on the subgradient, as in network slimming. Since descent
    gives no exact zeros, rows with a norm below `threshold` times the median of their block become
    zero in the solution (0: none).
    """

    threshold: Annotated[PartShare, "rows below this share of the median norm become zero"] = 1e-3
    needs: ClassVar[frozenset[str]] = frozenset({"subgradient"})

    def prox_lengths(self, rates: Sequence[float], momentum: float) -> list[float]:
        """Return the rates, which momentum makes larger."""
        return [rate / (1 - momentum) for rate in rates]

    def before_step(self, optimizer: Optimizer) -> None:
        """Add weight * subgradient to the gradients."""
        for block in self.blocks:
            block.add_grad(self.penalty.subgradient(block.read()), scale=block.weight)

    def solution(self) -> list[Tensor]:
        """Return the parameters with rows below the threshold set to zero."""
        return [_zero_small_rows(block.read(), self.threshold) for block in self.blocks]

    def finish(self) -> None:
        """Write the zeros of `solution` into the parameters."""
        for block, matrix in zip(self.blocks, self.solution(), strict=True):
            block.write(matrix)


def _zero_small_rows(rows: Tensor, threshold: float) -> Tensor:
    norms = rows.double().norm(dim=1)
    return rows.masked_fill((norms < threshold * norms.median())[:, None], 0.0)


@SOLVERS.register("slimming")
def slimming(threshold: float = 0.0) -> Subgradient:
    """Return the solver of network slimming as published: a subgradient, without exact zeros."""
    return Subgradient(threshold)


@SOLVERS.register("proximal")
@dataclass
class Proximal(Solver):
    """Applies the prox with step rate * weight * `every` after each `every`-th optimizer step.

    This is forward-backward splitting; the zeros are exact. The optimizer's momentum m only acts on
    the loss and so scales it by 1 / (1 - m), which makes the same lam that much weaker than under
    `Subgradient`. A rate of zero leaves the parameters unchanged.
    """

    every: Annotated[Count, "optimizer steps between two proximal steps"] = 1
    needs: ClassVar[frozenset[str]] = frozenset({"prox"})

    def start(self) -> None:
        """Count optimizer steps from zero."""
        self.steps = 0

    def expect(self, steps: int, optimizer: Optimizer) -> None:
        """Log a warning where the run ends before the first proximal step."""
        super().expect(steps, optimizer)
        if steps < self.every:
            self.warn("unused", _no_prox(self.every, steps))

    def prox_lengths(self, rates: Sequence[float], momentum: float) -> list[float]:
        """Return `every` times the rate of each `every`-th step."""
        return [rate * self.every for rate in rates[self.every - 1 :: self.every]]

    def after_step(self, optimizer: Optimizer) -> None:
        """Apply the prox after every `every`-th step."""
        self.steps += 1
        if self.steps % self.every:
            return
        for index, block in enumerate(self.blocks):
            step = self.step_of(optimizer, index) * self.every
            if step > 0:
                block.write(self.prox(block, block.read(), step))

    def step_of(self, optimizer: Optimizer, index: int) -> float:
        """Return the prox step of block `index` per optimizer step: its learning rate."""
        return learning_rate(optimizer, self.blocks[index])

    def finish(self) -> None:
        """Do nothing: the parameters are the solution."""

    def unused(self) -> str | None:
        """Return that no proximal step was taken, if so."""
        return _no_prox(self.every, self.steps) if self.steps < self.every else None

    def state_dict(self) -> dict[str, Any]:
        """Return the number of optimizer steps."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue counting from the state."""
        self.steps = int(state["steps"])


def _no_prox(every: int, steps: int) -> str:
    return (
        f"0 proximal steps: solver.every={every}, but training has {steps} steps, so the penalty "
        "does nothing; lower solver.every"
    )


@dataclass
class KeepZeros(Solver):
    """Keeps rows at zero that are zero when the solver is bound; the penalty is only reported.

    On `Entries` this fine-tunes under the mask of unstructured sparsity.
    """

    def start(self) -> None:
        """Record which rows are zero."""
        self._freeze([(block.read() == 0).all(dim=1) for block in self.blocks])

    def before_step(self, optimizer: Optimizer) -> None:
        """Zero the gradients of frozen rows, so that they build up no momentum."""
        for param, mask in self.frozen:
            grad_of(param).masked_fill_(mask, 0.0)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Zero the frozen rows again, since older momentum may have moved them."""
        for param, mask in self.frozen:
            param.masked_fill_(mask, 0.0)

    def finish(self) -> None:
        """Do nothing: the parameters are the solution."""

    def state_dict(self) -> dict[str, Any]:
        """Return the masks of zero rows, one per block."""
        return {"zero": self.zero}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Freeze the saved rows instead of those that are zero now."""
        check_state(self.blocks, state["zero"], [mask.shape for mask in self.zero])
        masks = zip(state["zero"], self.zero, strict=True)
        self._freeze([saved.to(mask.device) for saved, mask in masks])

    def _freeze(self, zero: list[Tensor]) -> None:
        self.zero = zero
        self.frozen = [
            (param, entries.contiguous())
            for block, mask in zip(self.blocks, zero, strict=True)
            for param, entries in block.scatter(mask[:, None].expand(block.read().shape))
        ]
