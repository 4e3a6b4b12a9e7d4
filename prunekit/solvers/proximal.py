"""Proximal stochastic gradient descent: the optimizer's step, then the penalty's prox."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch.optim import Optimizer

from prunekit.schema import Count
from prunekit.solvers.base import SOLVERS, Solver, learning_rate


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
