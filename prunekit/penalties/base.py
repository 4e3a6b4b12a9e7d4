"""The interface of penalties: value, subgradient and exact proximal map of a matrix of rows."""

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
    """A function of a (rows x features) matrix that is small when rows vanish.

    The strength `lam` is part of the function, as MCP and SCAD need it. `offers` names what solvers
    may use and is compared with `Solver.needs`. `shape` names the setting, if there is one, that
    makes the penalty more nearly convex when raised.
    """

    lam: Annotated[NotNegative, "strength of the penalty"]
    offers: ClassVar[frozenset[str]] = frozenset({"prox", "subgradient"})
    shape: ClassVar[str | None] = None

    @property
    def flat_from(self) -> float:
        """The row norm above which the slope is zero; infinite if it never is."""
        return math.inf

    def with_strength(self, lam: float) -> Penalty:
        """Return the same penalty with another strength; it turns flat at the same row norm."""
        if self.shape is None or not math.isfinite(self.flat_from):
            return replace(self, lam=lam)
        settings: dict[str, float] = {"lam": lam, self.shape: self.flat_from / lam}
        return replace(self, **settings)

    @property
    def convex_step(self) -> float:
        """The largest step for which |u - rows|^2 / (2 step) + value(u) is convex in u.

        With a longer step the prox jumps, so that no row keeps a medium norm. It is infinite for a
        convex penalty, and 0 for one that is too concave for any step.
        """
        return math.inf

    @property
    def remark(self) -> str | None:
        """A warning about these settings, or None."""
        return None

    @abstractmethod
    def value(self, rows: Tensor) -> Tensor:
        """Return the penalty of the whole matrix, a scalar tensor."""

    @abstractmethod
    def prox(self, rows: Tensor, step: float) -> Tensor:
        """Return a global minimiser u of |u - rows|^2 / (2 step) + value(u)."""

    @abstractmethod
    def subgradient(self, rows: Tensor) -> Tensor:
        """Return a subgradient, shaped like `rows`; it is zero at zero rows, so always finite."""

    def lam_max(self, cross: Tensor) -> float:
        """Return the smallest lam for which the prox of `cross` with step 1 is zero, by bisection.

        For a norm, zero solves 1/2 b^T G b - cross^T b + value(b) from this lam on; for other
        penalties that holds if G is the identity.
        """
        if not bool(cross.any()):
            return 0.0
        low, high = 0.0, float(cross.norm())
        while bool(replace(self, lam=high).prox(cross, 1.0).any()):
            low, high = high, 2 * high
        while high - low > 1e-12 * high:
            middle = 0.5 * (low + high)
            nonzero = bool(replace(self, lam=middle).prox(cross, 1.0).any())
            low, high = (middle, high) if nonzero else (low, middle)
        return high

    def dual_scale(
        self, residual: Tensor, coupling: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """Return the largest factor up to 1 that makes a regression's residual dual feasible.

        `coupling` is a subgradient of the coupling part of the penalty, from a solver's own dual
        variables; it is subtracted from the residual. Where the factor is below `needed`, 0 may be
        returned, which is feasible too. None means that there is no dual and so no duality gap.
        """
        return None

    def dual_excess(self, residual: Tensor) -> Tensor:
        """Return by how much each row of the residual exceeds the bound for a zero row, (rows,).

        A zero row with an excess of 0 is zero in the solution with that residual. The result is
        infinite where no such bound is known, as for penalties that couple rows.
        """
        return torch.full((len(residual),), math.inf, dtype=torch.float64)


class RadialPenalty(Penalty):
    """A sum over row norms; subclasses define it for magnitudes t >= 0.

    The computation is in float64 and cast back: in float32 the closed forms err by as much as the
    prox changes a row once step * lam is near 1e-6.
    """

    @abstractmethod
    def phi(self, t: Tensor) -> Tensor:
        """Return the penalty of each magnitude."""

    @abstractmethod
    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative of `phi` for t > 0 (the value at 0 is never used)."""

    @abstractmethod
    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Return the prox of each magnitude; `t` has the norms of all rows of a block."""

    def value(self, rows: Tensor) -> Tensor:
        """Return the sum of `phi` over the row norms."""
        return self.phi(rows.norm(dim=1)).sum()

    def prox(self, rows: Tensor, step: float) -> Tensor:
        """Scale every row so that its norm becomes `prox_magnitude(norm, step)`."""
        number("step", step, above=0)
        wide = rows.double()
        norms = wide.norm(dim=1)
        ratio = self.prox_magnitude(norms, step) / norms.clamp_min(1e-300)
        return (wide * torch.where(norms > 0, ratio, 0.0)[:, None]).to(rows.dtype)

    def subgradient(self, rows: Tensor) -> Tensor:
        """Return `slope` times the direction of each row."""
        wide = rows.double()
        norms = wide.norm(dim=1)
        safe = norms.clamp_min(1e-300)
        factor = torch.where(norms > 0, self.slope(safe) / safe, 0.0)
        return (wide * factor[:, None]).to(rows.dtype)


def best_of(t: Tensor, step: float, phi: Callable[[Tensor], Tensor], *candidates: Tensor) -> Tensor:
    """Return the minimiser of |u - t|^2 / (2 step) + phi(u) among 0, t and the candidates.

    Candidates are the stationary points; they are clamped to [0, t], where every minimiser lies.
    Of equal minima the smaller point is taken, as in SSR eq. 15. This makes the prox of a nonconvex
    penalty globally optimal for every `step`.
    """
    best = torch.zeros_like(t)
    minimum = t.square() / (2 * step) + phi(best)
    for candidate in (*candidates, t):
        point = torch.minimum(candidate.nan_to_num(0.0).clamp_min(0), t)
        value = (point - t).square() / (2 * step) + phi(point)
        better = value < minimum
        best, minimum = torch.where(better, point, best), torch.where(better, value, minimum)
    return best


PENALTIES: Registry[Penalty] = Registry("penalty")
