"""What splitting solvers share: the network trains towards a sparse copy of the penalised rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.rows import Rows, grad_of
from prunekit.schema import Count, NotNegative, PartShare, Positive, Range, Whole
from prunekit.solvers.base import SOLVERS, Solver, check_state, learning_rate


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
