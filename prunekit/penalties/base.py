"""What a penalty is: a value, a subgradient and an exact proximal map on rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.registry import Registry
from prunekit.schema import Checked, NotNegative
from prunekit.validate import number


@dataclass(frozen=True)
class Penalty(Checked, ABC):
    """A function of a (groups x features) matrix that is small when rows vanish.

    `lam` is inside: the strength is part of the function, as MCP and SCAD need it.
    `offers` names what solvers may ask of it and is compared with `Solver.needs`; `shape` names
    the setting that brings it nearer to a convex penalty when raised, where it has one.
    """

    lam: Annotated[NotNegative, "strength of the penalty"]
    offers: ClassVar[frozenset[str]] = frozenset({"prox", "subgradient"})
    shape: ClassVar[str | None] = None

    @property
    def flat_from(self) -> float:
        """The row norm from which on the slope is zero by design; infinite where there is none."""
        return math.inf

    @property
    def convex_step(self) -> float:
        """The largest step for which |u - rows|^2 / (2 step) + value(u) is convex in u.

        Beyond it the prox jumps, so that rows of a middle size cannot last. Infinite for a convex
        penalty, 0 for one that is too concave for every step, whose nature those jumps are.
        """
        return math.inf

    @property
    def remark(self) -> str | None:
        """What a user should know about these settings, if there is anything."""
        return None

    @abstractmethod
    def value(self, rows: Tensor) -> Tensor:
        """The penalty of the whole matrix, a scalar tensor."""

    @abstractmethod
    def prox(self, rows: Tensor, step: float) -> Tensor:
        """A global minimiser u of |u - rows|^2 / (2 step) + value(u)."""

    @abstractmethod
    def subgradient(self, rows: Tensor) -> Tensor:
        """One subgradient, shaped like `rows`; zero at zero rows, so always finite."""

    def vanishing(self, cross: Tensor) -> float:
        """The smallest lam whose prox of step one leaves nothing of `cross`, by bisection.

        For a norm that is where zero becomes a solution of 1/2 b^T G b - cross^T b + value(b);
        for others zero is then a solution if G is the identity.
        """
        if not bool(cross.any()):
            return 0.0
        low, high = 0.0, float(cross.norm())
        while bool(replace(self, lam=high).prox(cross, 1.0).any()):
            low, high = high, 2 * high
        while high - low > 1e-12 * high:
            middle = 0.5 * (low + high)
            survives = bool(replace(self, lam=middle).prox(cross, 1.0).any())
            low, high = (middle, high) if survives else (low, middle)
        return high

    def feasible(
        self, residual: Tensor, pull: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """The largest factor up to 1 that makes a regression's residual feasible for its dual.

        `pull` is what a solver's own dual variables take off the residual. A factor below `needed`
        may be answered by 0, which is feasible too. None: there is no dual, so no duality gap.
        """
        return None

    def excess(self, residual: Tensor) -> Tensor:
        """By how much each row's residual is more than what a zero row can bear, (rows,).

        A row of zeros with an excess of 0 is zero in the solution with that residual. Infinite
        where nothing is known, as in penalties that couple rows.
        """
        return torch.full((len(residual),), math.inf, dtype=torch.float64)


class RadialPenalty(Penalty):
    """A penalty of row norms; subclasses speak only of magnitudes t >= 0.

    Work is done in float64 and cast back: in float32 the closed forms err by as much as they
    shrink once step * lam is near 1e-6.
    """

    @abstractmethod
    def phi(self, t: Tensor) -> Tensor:
        """The penalty of each magnitude."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """The derivative of `phi` for t > 0 (the value at 0 is never used)."""

    @abstractmethod
    def shrink(self, t: Tensor, step: float) -> Tensor:
        """The prox of each magnitude; it gets all norms of a block at once."""

    def value(self, rows: Tensor) -> Tensor:
        """The sum of `phi` over the row norms."""
        return self.phi(rows.norm(dim=1)).sum()

    def prox(self, rows: Tensor, step: float) -> Tensor:
        """Every row keeps its direction; its norm becomes `shrink(norm, step)`."""
        number("step", step, above=0)
        wide = rows.double()
        norms = wide.norm(dim=1)
        factor = torch.where(norms > 0, self.shrink(norms, step) / norms.clamp_min(1e-300), 0.0)
        return (wide * factor[:, None]).to(rows.dtype)

    def subgradient(self, rows: Tensor) -> Tensor:
        """`slope` along each row's direction."""
        wide = rows.double()
        norms = wide.norm(dim=1)
        safe = norms.clamp_min(1e-300)
        factor = torch.where(norms > 0, self.slope(safe) / safe, 0.0)
        return (wide * factor[:, None]).to(rows.dtype)


def best_of(t: Tensor, step: float, phi: Callable[[Tensor], Tensor], *candidates: Tensor) -> Tensor:
    """The cheapest of 0, t and the stationary points for |u - t|^2 / (2 step) + phi(u).

    Candidates are clamped to [0, t], where every minimiser lies. Ties go to the smaller point, as
    in SSR eq. 15. This makes a nonconvex prox globally right in every regime of `step`.
    """
    best = torch.zeros_like(t)
    cost = t.square() / (2 * step) + phi(best)
    for candidate in (*candidates, t):
        point = torch.minimum(candidate.nan_to_num(0.0).clamp_min(0), t)
        price = (point - t).square() / (2 * step) + phi(point)
        better = price < cost
        best, cost = torch.where(better, point, best), torch.where(better, price, cost)
    return best


PENALTIES: Registry[Penalty] = Registry("penalty")
