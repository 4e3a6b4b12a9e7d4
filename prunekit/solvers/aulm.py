"""Splitting with multipliers: alternative updating with Lagrange multipliers, and ADMM."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.rows import grad_of
from prunekit.schema import Count, NotNegative, Positive, Range, Whole
from prunekit.solvers.base import SOLVERS, learning_rate
from prunekit.solvers.splitting import Splitting, alive, distance, norm

CALM = 3  # outer steps in a row within the tolerance before it counts as convergence
REACH = 5.0  # lr rho inner / (1 - momentum) below which K cannot follow its target


@SOLVERS.register("aulm")
@dataclass
class AULM(Splitting):
    """Alternative updating with Lagrange multipliers (Lin et al. 2019, SSR eq. 5-12, algorithm 1).

    K, the parameters, and F, their sparse copy, are kept together by multipliers Y:
    L(K) + penalty(F) + <Y, K - F> + (rho / 2) |K - F|^2. `inner` optimizer steps move K, then one
    outer step updates F and Y and over-relaxes them by k / (k + r), r >= 3 (infinite: not at all).

    A run lasts as long as its schedule, unless a stop rule is set: `max_outer` outer steps; a
    relative |K - F| or change of F within `tol` three times in a row; or the same rows of F, some
    of them zero, for `patience` outer steps. 0 switches a rule off. A tolerance needs lam / rho
    well above it times the row norms: while Y still builds up, F moves by lam / rho only.
    """

    rho: Annotated[Positive, "how strongly the parameters are tied to their sparse copy"] = 1.0
    inner: Annotated[Count, "optimizer steps between two updates of the sparse copy"] = 50
    r: Annotated[float, Range(at_least=3, infinite=True), "over-relaxes by k / (k + r)"] = 3.0
    max_outer: Annotated[Whole, "stops after so many updates; 0: off"] = 0
    tol: Annotated[NotNegative, "stops at so small a relative change; 0: off"] = 0.0
    patience: Annotated[Whole, "stops when the zeros stay for so many updates; 0: off"] = 0
    copies: ClassVar[tuple[str, ...]] = ("F", "Fhat", "Y", "Yhat")
    lower_step: ClassVar[str] = "raise rho"
    counters: ClassVar[tuple[str, ...]] = ("steps", "outer", "calm", "still")

    def start(self) -> None:
        """F = K and Y = 0: the first inner steps pull K to where it was."""
        self.steps = self.outer = self.calm = self.still = 0
        self.F = self.parameters()
        self.Y = [torch.zeros_like(rows) for rows in self.F]
        self.Fhat, self.Yhat = list(self.F), list(self.Y)
        self._aim()

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Add the gradient of (rho / 2) |K - T1|^2 with T1 = Fhat - Yhat / rho (eq. 10-11)."""
        if self.steps == 0:
            self._warn_if_slow(optimizer)
        for param, target in self.targets:
            grad_of(param).add_(param - target, alpha=self.rho)

    def after_step(self, optimizer: Optimizer) -> None:
        """Every `inner` steps of K, one step of F and Y."""
        self.steps += 1
        if self.steps % self.inner == 0:
            self.update()

    def update(self) -> None:
        """One outer step: F (eq. 12-16), Y (eq. 7), relaxation (eq. 8-9)."""
        K, F, Y = self.parameters(), self.F, self.Y
        relax = self.outer / (self.outer + self.r)
        self.F = [
            self.prox(block, k + yhat / self.rho, 1 / self.rho)
            for block, k, yhat in zip(self.blocks, K, self.Yhat, strict=True)
        ]
        self.Y = [
            yhat + self.rho * (k - f) for yhat, k, f in zip(self.Yhat, K, self.F, strict=True)
        ]
        self.Yhat = [new + relax * (new - old) for new, old in zip(self.Y, Y, strict=True)]
        self.Fhat = [new + relax * (new - old) for new, old in zip(self.F, F, strict=True)]
        self.outer += 1
        self._aim()
        self._watch(K, F)

    @property
    def done(self) -> bool:
        """Whether one of the stop rules fired."""
        return (
            0 < self.max_outer <= self.outer
            or (self.tol > 0 and self.calm >= CALM)
            or 0 < self.patience <= self.still
        )

    def metrics(self) -> dict[str, float]:
        """The usual ones, the relative distance of K and F, and outer steps done."""
        return {**super().metrics(), "outer": self.outer}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; ArtifactError when it belongs to other rows."""
        super().load_state_dict(state)
        self._aim()

    def _aim(self) -> None:
        """Lay T1 out like the parameters, once for all `inner` steps."""
        self.targets = [
            (param, entries.contiguous())
            for block, fhat, yhat in zip(self.blocks, self.Fhat, self.Yhat, strict=True)
            for param, entries in block.scatter(fhat - yhat / self.rho)
        ]

    def _watch(self, K: list[Tensor], before: list[Tensor]) -> None:
        """Count the outer steps in a row that look converged; no work for rules that are off."""
        if self.tol > 0:
            calm = distance(K, self.F) <= self.tol * norm(K)
            calm = calm or distance(self.F, before) <= self.tol * norm(self.F)
            self.calm = self.calm + 1 if calm else 0
        if self.patience > 0:
            left, was = alive(self.F), alive(before)
            same = bool((left == was).all()) and not bool(left.all())
            self.still = self.still + 1 if same else 0

    def _warn_if_slow(self, optimizer: Optimizer) -> None:
        momentum = optimizer.param_groups[0].get("momentum")
        if momentum is None:  # the rule holds for SGD, adaptive methods set their own pace
            return
        rate = min(learning_rate(optimizer, block) for block in self.blocks)
        reach = rate * self.rho * self.inner / (1 - momentum)
        if reach < REACH:
            self.warn(
                "slow",
                f"lr * rho * inner / (1 - momentum) = {reach:.2g} is below {REACH:g}, so the "
                "weights cannot follow their sparse copy; "
                f"raise inner={self.inner} or rho={self.rho:g}",
            )


@SOLVERS.register("admm")
@dataclass
class ADMM(AULM):
    """AULM without over-relaxation, as in the code that was released with the paper."""

    r: float = field(default=math.inf, init=False)
