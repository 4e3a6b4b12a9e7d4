"""Penalties of row norms: one class each, and nothing else to write for a new one.

A class defines `phi`, its derivative `slope`, and `prox_magnitude`, the prox of a magnitude. Where
`phi` is not convex, `prox_magnitude` lists the stationary points and `best_of` takes the cheapest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from prunekit.penalties.base import PENALTIES, RadialPenalty, best_of
from prunekit.schema import NotNegative, Positive, Range

NEWTON_STEPS = 10  # float64 is reached after at most 9, for p from 0.01 to 0.999
SMALL_STEPS = 40  # halvings of the distance to a double root


@PENALTIES.register("l0")
@dataclass(frozen=True)
class L0(RadialPenalty):
    """The number of rows that are not zero: lam for every t > 0.

    On filters this is l2,0 (SSR eq. 15 and theorem 1). It has no useful subgradient.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"prox"})

    @property
    def convex_step(self) -> float:
        """None: the jump is in the penalty itself."""
        return 0.0

    def phi(self, t: Tensor) -> Tensor:
        """The price lam of each magnitude that is not zero."""
        return self.lam * (t != 0).to(t.dtype)

    def slope(self, t: Tensor) -> Tensor:
        """Zero, as everywhere off the jump; `offers` keeps solvers from using it."""
        return torch.zeros_like(t)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Hard threshold at sqrt(2 step lam); a tie goes to zero."""
        return torch.where(t > math.sqrt(2 * step * self.lam), t, 0.0)


@PENALTIES.register("l1")
@dataclass(frozen=True)
class L1(RadialPenalty):
    """The sum of the magnitudes: lam t.

    On filters this is l2,1, the group lasso (SSR eq. 14), on single entries the lasso (SSR eq. 16).
    """

    def phi(self, t: Tensor) -> Tensor:
        """The magnitude, times lam."""
        return self.lam * t

    def slope(self, t: Tensor) -> Tensor:
        """Always lam."""
        return torch.full_like(t, self.lam)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Soft threshold at step lam."""
        return (t - step * self.lam).clamp_min(0)

    def lam_max(self, cross: Tensor) -> float:
        """The largest row norm."""
        return float(cross.double().norm(dim=1).amax())

    def dual_scale(
        self, residual: Tensor, pull: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """Row norms of a dual point are at most lam."""
        largest = self.lam_max(residual)
        return min(1.0, self.lam / largest) if largest > 0 else 1.0

    def dual_excess(self, residual: Tensor) -> Tensor:
        """Row norms above lam."""
        return (residual.double().norm(dim=1) - self.lam).clamp_min(0)


@PENALTIES.register("lp")
@dataclass(frozen=True)
class Lp(RadialPenalty):
    """A power of the magnitude: lam t^p with 0 < p < 1 (Bui et al. 2021).

    With `eps` it is lam ((t + eps)^p - eps^p), whose slope at zero is finite: a subgradient step
    then cannot overshoot by more than rate lam p eps^(p-1). The published code has no eps.
    """

    p: Annotated[float, Range(above=0, below=1), "power of the magnitude"] = 0.5
    eps: Annotated[NotNegative, "keeps the slope at zero finite; 0: infinite, as published"] = 0.0
    shape: ClassVar[str | None] = "eps"

    @property
    def convex_step(self) -> float:
        """eps^(2-p) / (lam p (1 - p)), so none without eps."""
        return _step_within(self.lam * self.p * (1 - self.p), self.eps ** (2 - self.p))

    def phi(self, t: Tensor) -> Tensor:
        """The power p of the magnitude, times lam."""
        return self.lam * ((t + self.eps) ** self.p - self.eps**self.p)

    def slope(self, t: Tensor) -> Tensor:
        """Without eps it grows without bound towards zero."""
        return self.lam * self.p * (t + self.eps) ** (self.p - 1)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """The largest root of u + step lam p u^(p-1) = t by Newton's method, or zero.

        From u = t the iteration falls monotonically, since the left side is convex and increasing
        above `floor`, the smallest non-zero result (Marjanovic and Solo 2012). With eps the same
        equation holds for u + eps and t + eps, down to where the left side is least; there two
        roots meet, and each round halves the distance only.
        """
        strength, p, far = step * self.lam, self.p, t + self.eps
        share, rounds = (2, NEWTON_STEPS) if self.eps == 0 else (p * (1 + 1e-6), SMALL_STEPS)
        floor = (share * strength * (1 - p)) ** (1 / (2 - p))
        u = far.clamp_min(floor)
        for _ in range(rounds):
            bend = strength * p * u ** (p - 2)
            u = (u - (u + bend * u - far) / (1 - (1 - p) * bend)).clamp_min(floor)
        return best_of(t, step, self.phi, u - self.eps)


@PENALTIES.register("tl1")
@dataclass(frozen=True)
class TransformedL1(RadialPenalty):
    """Between l0 (a small) and l1 (a large): lam (a + 1) t / (a + t) (Zhang and Xin 2017)."""

    a: Annotated[Positive, "small: near l0, large: near l1"] = 1.0
    shape: ClassVar[str | None] = "a"

    @property
    def convex_step(self) -> float:
        """a^2 / (2 lam (a + 1))."""
        return _step_within(2 * self.lam * (self.a + 1), self.a**2)

    def phi(self, t: Tensor) -> Tensor:
        """Equal to lam at t = 1, and at most lam (a + 1)."""
        return self.lam * (self.a + 1) * t / (self.a + t)

    def slope(self, t: Tensor) -> Tensor:
        """From lam (a + 1) / a at zero down to nothing."""
        return self.lam * self.a * (self.a + 1) / (self.a + t) ** 2

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """The largest root of a cubic in a + u, in its trigonometric form, or zero."""
        width = self.a + t
        cosine = 1 - 13.5 * step * self.lam * self.a * (self.a + 1) / width**3
        angle = torch.arccos(cosine.clamp(-1, 1)) / 3
        return best_of(t, step, self.phi, (2 * width * torch.cos(angle) - 2 * self.a + t) / 3)


@PENALTIES.register("mcp")
@dataclass(frozen=True)
class MCP(RadialPenalty):
    """Minimax concave penalty: lam t - t^2 / (2 gamma), constant past gamma lam (Zhang 2010).

    It spares magnitudes above gamma lam: with gamma lam below them all it does nothing, so gamma
    has no default.
    """

    gamma: Annotated[Positive, "the penalty is constant past gamma lam"]
    shape: ClassVar[str | None] = "gamma"

    @property
    def flat_from(self) -> float:
        """Gamma lam, the end of the parabola."""
        return self.gamma * self.lam

    @property
    def convex_step(self) -> float:
        """Gamma, since the parabola's curvature is -1 / gamma."""
        return self.gamma

    def phi(self, t: Tensor) -> Tensor:
        """A parabola up to gamma lam, then gamma lam^2 / 2."""
        bent = t.clamp_max(self.gamma * self.lam)
        return self.lam * bent - bent.square() / (2 * self.gamma)

    def slope(self, t: Tensor) -> Tensor:
        """From lam at zero in a straight line to 0 at gamma lam."""
        return (self.lam - t / self.gamma).clamp_min(0)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Firm threshold for step < gamma, hard threshold where the parabola is too concave."""
        firm = (t - step * self.lam) / (1 - step / self.gamma)
        return best_of(t, step, self.phi, firm)


@PENALTIES.register("scad")
@dataclass(frozen=True)
class SCAD(RadialPenalty):
    """Smoothly clipped absolute deviation, a > 1 (Fan and Li 2001, who use a > 2).

    lam t up to lam, (2 a lam t - t^2 - lam^2) / (2 (a - 1)) up to a lam, then (a + 1) lam^2 / 2.
    Like MCP it spares magnitudes above a lam, so a has no default.
    """

    a: Annotated[float, Range(above=1), "the penalty is constant past a lam"]
    shape: ClassVar[str | None] = "a"

    @property
    def flat_from(self) -> float:
        """The end of the parabola, a lam."""
        return self.a * self.lam

    @property
    def convex_step(self) -> float:
        """The parabola's curvature is -1 / (a - 1)."""
        return self.a - 1

    @property
    def remark(self) -> str | None:
        """The original penalty has a > 2."""
        if self.a > 2:
            return None
        return f"SCAD is defined for a > 2; with a={self.a:g} its prox of step 1 jumps"

    def phi(self, t: Tensor) -> Tensor:
        """A line, a parabola, a constant."""
        line = self.lam * t.clamp_max(self.lam)
        rise = t.clamp(self.lam, self.a * self.lam) - self.lam
        return line + self.lam * rise - rise.square() / (2 * (self.a - 1))

    def slope(self, t: Tensor) -> Tensor:
        """Lam up to lam, then in a straight line to 0 at a lam."""
        return ((self.a * self.lam - t) / (self.a - 1)).clamp(0, self.lam)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Soft threshold, the middle piece, or the magnitude itself, whichever costs least."""
        soft = t - step * self.lam
        middle = ((self.a - 1) * t - step * self.a * self.lam) / (self.a - 1 - step)
        return best_of(t, step, self.phi, soft, middle)


@PENALTIES.register("logsum")
@dataclass(frozen=True)
class LogSum(RadialPenalty):
    """A logarithm, steep at zero: lam log(1 + t / eps) (Candes, Wakin and Boyd 2008)."""

    eps: Annotated[Positive, "the magnitude below which it is steep"]
    shape: ClassVar[str | None] = "eps"

    @property
    def convex_step(self) -> float:
        """eps^2 / lam."""
        return _step_within(self.lam, self.eps**2)

    def phi(self, t: Tensor) -> Tensor:
        """The logarithm of 1 + t / eps, times lam."""
        return self.lam * torch.log1p(t / self.eps)

    def slope(self, t: Tensor) -> Tensor:
        """From lam / eps at zero down to nothing."""
        return self.lam / (self.eps + t)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """The larger root of (u - t)(eps + u) + step lam = 0, or zero."""
        root = ((t + self.eps).square() - 4 * step * self.lam).sqrt()
        return best_of(t, step, self.phi, (t - self.eps + root) / 2)


@PENALTIES.register("l1ml2")
@dataclass(frozen=True)
class L1MinusL2(RadialPenalty):
    """What the magnitudes of a block lack to a single one: lam (sum of t - 2-norm of t).

    The only penalty here that couples the rows of a block; `phi` and `slope` are each row's share.
    It is zero on one row, so its prox never empties a block (Lou and Yan 2018, lemma 1).
    """

    @property
    def convex_step(self) -> float:
        """None: the subtracted norm is concave without bound near zero."""
        return 0.0

    def phi(self, t: Tensor) -> Tensor:
        """Each magnitude's share t_i - t_i^2 / |t|, times lam; the shares add up to the penalty."""
        return self.lam * (t - t.square() / t.norm().clamp_min(torch.finfo(t.dtype).tiny))

    def slope(self, t: Tensor) -> Tensor:
        """The derivative of the whole penalty by each magnitude."""
        return self.lam * (1 - t / t.norm())

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Soft threshold and stretch; the largest magnitude alone where the threshold takes all.

        Of equal largest ones the first is kept: any is a minimiser, stretching them all is not.
        """
        soft = (t - step * self.lam).clamp_min(0)
        length = soft.norm()
        stretched = soft * (1 + step * self.lam / length.clamp_min(torch.finfo(t.dtype).tiny))
        alone = torch.zeros_like(t)
        alone[t.argmax()] = t.max()
        return torch.where(length > 0, stretched, alone)


def _step_within(bend: float, room: float) -> float:
    """The step at which the curvature -bend / room of a penalty is made up for; never when 0."""
    return room / bend if bend > 0 else math.inf
