"""What splitting solvers share: the network trains towards a sparse copy of the penalised rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from prunekit.solvers.base import Solver, check_state


class Splitting(Solver):
    """Keeps F, a sparse copy of the rows, near K, the parameters that the loss sees.

    Subclasses say how the two meet. `copies` and `counters` name what a resumed run needs.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prox"})
    copies: ClassVar[tuple[str, ...]] = ("F",)
    counters: ClassVar[tuple[str, ...]] = ()
    F: list[Tensor]

    def solution(self) -> list[Tensor]:
        """F: its zeros are exact, unlike those of K."""
        return list(self.F)

    def finish(self) -> None:
        """Rows that are zero in F become zero; survivors keep K, since the penalty shrinks F."""
        for block, k, f in zip(self.blocks, self.parameters(), self.F, strict=True):
            block.write(k.masked_fill((f == 0).all(dim=1, keepdim=True), 0.0))

    def metrics(self) -> dict[str, float]:
        """The usual ones, and the relative distance of K and F."""
        K = self.parameters()
        return {**super().metrics(), "gap": distance(K, self.F) / max(norm(K), 1e-30)}

    def state_dict(self) -> dict[str, Any]:
        """Copies and counters: enough to resume bit for bit."""
        return {name: getattr(self, name) for name in (*self.counters, *self.copies)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; ArtifactError when it belongs to other rows."""
        for name in self.copies:
            check_state(self.blocks, state[name], [rows.shape for rows in self.F])
        for name in self.counters:
            setattr(self, name, int(state[name]))
        for name in self.copies:
            pairs = zip(state[name], self.F, strict=True)
            setattr(self, name, [saved.to(like) for saved, like in pairs])

    def parameters(self) -> list[Tensor]:
        """K, read out of the network."""
        return [block.read() for block in self.blocks]


def norm(matrices: Sequence[Tensor]) -> float:
    """The 2-norm of all entries of all matrices."""
    return math.sqrt(sum(float(rows.double().square().sum()) for rows in matrices))


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """The 2-norm of the difference."""
    return norm([a - b for a, b in zip(left, right, strict=True)])


def alive(matrices: Sequence[Tensor]) -> Tensor:
    """Which rows, of all matrices in turn, are not zero."""
    return torch.cat([(rows != 0).any(dim=1).cpu() for rows in matrices])
