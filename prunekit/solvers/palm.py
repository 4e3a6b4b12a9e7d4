"""Splitting without multipliers: proximal alternating linearised minimisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.rows import Rows
from prunekit.schema import PartShare, Positive, Whole
from prunekit.solvers.base import SOLVERS, learning_rate
from prunekit.solvers.splitting import Splitting


@SOLVERS.register("palm")
@dataclass
class PALM(Splitting):
    """Minimises loss(K) + penalty(F) + (beta / 2) |K - F|^2, as in proximal network slimming.

    K are the parameters, F their sparse copy (xi in Bui et al. 2023). After each step of the
    optimizer, which sees the loss alone, K moves towards F and F by a prox towards K, both with the
    constant alpha = 1 / rate: the rate of the block's parameter group now, so that alpha grows as
    the rate falls. A fixed point is stationary for the sum above, in which SGD's momentum m, here
    as published, makes the loss weigh 1 / (1 - m). Adaptive optimizers rescale the loss likewise,
    entry by entry.

    F starts as K times 1 +- `spread`, drawn row by row from `seed`: for scales of .5 and a spread
    of .06 this is the published interval [.47, .53].
    """

    beta: Annotated[Positive, "how strongly the network is tied to its sparse copy"] = 100.0
    spread: Annotated[PartShare, "the copy starts within this share of the rows"] = 0.06
    seed: Annotated[Whole, "seed of where the copy starts"] = 0
    lower_step: ClassVar[str] = "raise beta, lower the learning rate"

    def start(self) -> None:
        """F is K with some noise, the same in every process."""
        draw = torch.Generator().manual_seed(self.seed)
        self.F = [_spread(rows, self.spread, draw) for rows in self.parameters()]

    def after_step(self, optimizer: Optimizer) -> None:
        """One step of K towards F, then one of F towards the new K."""
        self.F = [
            self._meet(block, f, learning_rate(optimizer, block))
            for block, f in zip(self.blocks, self.F, strict=True)
        ]

    def _meet(self, block: Rows, f: Tensor, rate: float) -> Tensor:
        """K <- (alpha K + beta F) / (alpha + beta), F <- prox of (alpha F + beta K), likewise.

        Both numerator and denominator are multiplied by the rate.
        """
        if rate == 0:
            self.warn("rate", f"the rate of {block.name} is 0: neither it nor its copy moves")
            return f
        step = rate / (1 + self.beta * rate)  # 1 / (alpha + beta)
        k = torch.lerp(block.read(), f, self.beta * step)
        block.write(k)
        return self.prox(block, torch.lerp(f, k, self.beta * step), step)


def _spread(rows: Tensor, spread: float, draw: torch.Generator) -> Tensor:
    noise = 2 * torch.rand(len(rows), 1, generator=draw, dtype=torch.float64) - 1
    return rows * (1 + spread * noise).to(rows)
