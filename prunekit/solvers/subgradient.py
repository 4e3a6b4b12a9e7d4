"""Stochastic subgradient descent: the penalty's slope joins the gradient of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor
from torch.optim import Optimizer

from prunekit.schema import PartShare
from prunekit.solvers.base import SOLVERS, Solver


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
