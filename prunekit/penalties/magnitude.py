"""The penalties of row norms, one class each.

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

NEWTON_STEPS = 10  # at most 9 reach the precision of float64, for p from 0.01 to 0.999
DOUBLE_ROOT_STEPS = 40  # near a double root each step only halves the distance


@PENALTIES.register("l0")
@dataclass(frozen=True)
class L0(RadialPenalty):
    """The number of rows that are not zero, times lam.

    On filters this is l2,0 (SSR eq. 15 and theorem 1). It has no useful subgradient.
    """

    offers: ClassVar[frozenset[str]] = frozenset({"prox"})

    @property
    def convex_step(self) -> float:
        """Zero, since the penalty itself jumps."""
        return 0.0

    def phi(self, t: Tensor) -> Tensor:
        """Return lam for each magnitude that is not zero."""
        return self.lam * (t != 0).to(t.dtype)

    def slope(self, t: Tensor) -> Tensor:
        """Return zero, the derivative everywhere but at the jump; `offers` excludes its use."""
        return torch.zeros_like(t)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Apply the hard threshold sqrt(2 step lam); a tie becomes zero."""
        return torch.where(t > math.sqrt(2 * step * self.lam), t, 0.0)


@PENALTIES.register("l1")
@dataclass(frozen=True)
class L1(RadialPenalty):
    """The sum of the magnitudes: lam t.

    On filters this is l2,1, the group lasso (SSR eq. 14), on single entries the lasso (SSR eq. 16).
    """

    def phi(self, t: Tensor) -> Tensor:
        """Return lam t."""
        return self.lam * t

    def slope(self, t: Tensor) -> Tensor:
        """Return lam."""
        return torch.full_like(t, self.lam)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Apply the soft threshold step lam."""
        return (t - step * self.lam).clamp_min(0)

    def lam_max(self, cross: Tensor) -> float:
        """Return the largest row norm."""
        return float(cross.double().norm(dim=1).amax())

    def dual_scale(
        self, residual: Tensor, coupling: Tensor | None = None, needed: float = 0.0
    ) -> float | None:
        """Return the factor that scales the largest row norm down to lam."""
        largest = self.lam_max(residual)
        return min(1.0, self.lam / largest) if largest > 0 else 1.0

    def dual_excess(self, residual: Tensor) -> Tensor:
        """Return by how much each row norm exceeds lam."""
        norms: Tensor = residual.double().norm(dim=1)
        return (norms - self.lam).clamp_min(0)


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
        """The step eps^(2-p) / (lam p (1 - p)), which is zero without eps."""
        return _convex_step(self.lam * self.p * (1 - self.p), self.eps ** (2 - self.p))

    def phi(self, t: Tensor) -> Tensor:
        """Return lam ((t + eps)^p - eps^p)."""
        offset: float = self.eps**self.p
        return self.lam * ((t + self.eps) ** self.p - offset)

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative, which without eps grows without bound towards zero."""
        return self.lam * self.p * (t + self.eps) ** (self.p - 1)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Return the largest root of u + step lam p u^(p-1) = t by Newton's method, or zero.

        From u = t the iterates decrease, since the left side is convex and increasing above
        `floor`, the smallest non-zero result (Marjanovic and Solo 2012). With eps the same equation
        holds for u + eps and t + eps, above the minimum of the left side. Two roots meet at that
        minimum, so near it each step only halves the distance.
        """
        strength, p, shifted = step * self.lam, self.p, t + self.eps
        share, steps = (2, NEWTON_STEPS) if self.eps == 0 else (p * (1 + 1e-6), DOUBLE_ROOT_STEPS)
        floor = (share * strength * (1 - p)) ** (1 / (2 - p))
        u = shifted.clamp_min(floor)
        for _ in range(steps):
            ratio = strength * p * u ** (p - 2)
            u = (u - (u + ratio * u - shifted) / (1 - (1 - p) * ratio)).clamp_min(floor)
        return best_of(t, step, self.phi, u - self.eps)


@PENALTIES.register("tl1")
@dataclass(frozen=True)
class TransformedL1(RadialPenalty):
    """lam (a + 1) t / (a + t), between l0 (small a) and l1 (large a) (Zhang and Xin 2017)."""

    a: Annotated[Positive, "small: near l0, large: near l1"] = 1.0
    shape: ClassVar[str | None] = "a"

    @property
    def convex_step(self) -> float:
        """The step a^2 / (2 lam (a + 1))."""
        return _convex_step(2 * self.lam * (self.a + 1), self.a**2)

    def phi(self, t: Tensor) -> Tensor:
        """Return lam (a + 1) t / (a + t): lam at t = 1, and less than lam (a + 1)."""
        return self.lam * (self.a + 1) * t / (self.a + t)

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative, which decreases from lam (a + 1) / a to zero."""
        return self.lam * self.a * (self.a + 1) / (self.a + t) ** 2

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Return the largest root of a cubic in a + u, in its trigonometric form, or zero."""
        width = self.a + t
        cosine = 1 - 13.5 * step * self.lam * self.a * (self.a + 1) / width**3
        angle = torch.arccos(cosine.clamp(-1, 1)) / 3
        return best_of(t, step, self.phi, (2 * width * torch.cos(angle) - 2 * self.a + t) / 3)


@PENALTIES.register("mcp")
@dataclass(frozen=True)
class MCP(RadialPenalty):
    """Minimax concave penalty: lam t - t^2 / (2 gamma), constant past gamma lam (Zhang 2010).

    Magnitudes above gamma lam are not penalised. If all are above, the penalty has no effect, so
    gamma has no default.
    """

    gamma: Annotated[Positive, "the penalty is constant past gamma lam"]
    shape: ClassVar[str | None] = "gamma"

    @property
    def flat_from(self) -> float:
        """The end gamma lam of the parabola."""
        return self.gamma * self.lam

    @property
    def convex_step(self) -> float:
        """The step gamma, since the parabola has the curvature -1 / gamma."""
        return self.gamma

    def phi(self, t: Tensor) -> Tensor:
        """Return a parabola up to gamma lam, then the constant gamma lam^2 / 2."""
        bent = t.clamp_max(self.gamma * self.lam)
        return self.lam * bent - bent.square() / (2 * self.gamma)

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative, which decreases linearly from lam at 0 to 0 at gamma lam."""
        return (self.lam - t / self.gamma).clamp_min(0)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Apply the firm threshold for step < gamma, else the hard threshold."""
        firm = (t - step * self.lam) / (1 - step / self.gamma)
        return best_of(t, step, self.phi, firm)


@PENALTIES.register("scad")
@dataclass(frozen=True)
class SCAD(RadialPenalty):
    """Smoothly clipped absolute deviation, a > 1 (Fan and Li 2001, who use a > 2).

    lam t up to lam, (2 a lam t - t^2 - lam^2) / (2 (a - 1)) up to a lam, then (a + 1) lam^2 / 2.
    Like MCP it does not penalise magnitudes above a lam, so a has no default.
    """

    a: Annotated[float, Range(above=1), "the penalty is constant past a lam"]
    shape: ClassVar[str | None] = "a"

    @property
    def flat_from(self) -> float:
        """The end a lam of the parabola."""
        return self.a * self.lam

    @property
    def convex_step(self) -> float:
        """The step a - 1, since the parabola has the curvature -1 / (a - 1)."""
        return self.a - 1

    @property
    def remark(self) -> str | None:
        """A warning for a <= 2, which the original penalty excludes."""
        if self.a > 2:
            return None
        return f"SCAD is defined for a > 2; with a={self.a:g} its prox of step 1 jumps"

    def phi(self, t: Tensor) -> Tensor:
        """Return a line up to lam, a parabola up to a lam, and then a constant."""
        line = self.lam * t.clamp_max(self.lam)
        rise = t.clamp(self.lam, self.a * self.lam) - self.lam
        return line + self.lam * rise - rise.square() / (2 * (self.a - 1))

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative: lam up to lam, then decreasing linearly to 0 at a lam."""
        return ((self.a * self.lam - t) / (self.a - 1)).clamp(0, self.lam)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Return the best of the soft threshold, the middle piece and the magnitude itself."""
        soft = t - step * self.lam
        middle = ((self.a - 1) * t - step * self.a * self.lam) / (self.a - 1 - step)
        return best_of(t, step, self.phi, soft, middle)


@PENALTIES.register("logsum")
@dataclass(frozen=True)
class LogSum(RadialPenalty):
    """The logarithm lam log(1 + t / eps) (Candes, Wakin and Boyd 2008)."""

    eps: Annotated[Positive, "the magnitude below which it is steep"]
    shape: ClassVar[str | None] = "eps"

    @property
    def convex_step(self) -> float:
        """The step eps^2 / lam."""
        return _convex_step(self.lam, self.eps**2)

    def phi(self, t: Tensor) -> Tensor:
        """Return lam log(1 + t / eps)."""
        return self.lam * torch.log1p(t / self.eps)

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative, which decreases from lam / eps to zero."""
        return self.lam / (self.eps + t)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Return the larger root of (u - t)(eps + u) + step lam = 0, or zero."""
        root = ((t + self.eps).square() - 4 * step * self.lam).sqrt()
        return best_of(t, step, self.phi, (t - self.eps + root) / 2)


@PENALTIES.register("l1ml2")
@dataclass(frozen=True)
class L1MinusL2(RadialPenalty):
    """lam (sum of t - 2-norm of t), which is zero if at most one row of the block is not zero.

    This penalty couples the rows of a block; `phi` and `slope` are the shares of each row. Its prox
    never makes all rows of a block zero (Lou and Yan 2018, lemma 1).
    """

    @property
    def convex_step(self) -> float:
        """Zero, since the curvature of the subtracted norm is unbounded near zero."""
        return 0.0

    def phi(self, t: Tensor) -> Tensor:
        """Return each magnitude's share lam (t_i - t_i^2 / |t|); they add up to the penalty."""
        length: Tensor = t.norm()
        return self.lam * (t - t.square() / length.clamp_min(torch.finfo(t.dtype).tiny))

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative of the whole penalty by each magnitude."""
        length: Tensor = t.norm()
        return self.lam * (1 - t / length)

    def prox_magnitude(self, t: Tensor, step: float) -> Tensor:
        """Apply the soft threshold, then rescale; if all become zero, keep the largest magnitude.

        Of equal largest ones only the first is kept, which is a minimiser; keeping all is not.
        """
        soft = (t - step * self.lam).clamp_min(0)
        length = soft.norm()
        stretched = soft * (1 + step * self.lam / length.clamp_min(torch.finfo(t.dtype).tiny))
        alone = torch.zeros_like(t)
        alone[t.argmax()] = t.max()
        return torch.where(length > 0, stretched, alone)


def _convex_step(numerator: float, denominator: float) -> float:
    """Return the step 1 / c for a penalty of curvature -c, c = numerator / denominator."""
    return denominator / numerator if numerator > 0 else math.inf
