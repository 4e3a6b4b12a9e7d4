"""Splitting solvers: the parameters are trained towards a sparse copy of the penalised rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from prunekit.rows import Rows, grad_of
from prunekit.schema import Count, NotNegative, PartShare, Positive, Range, Whole
from prunekit.solvers.base import SOLVERS, Solver, check_state, learning_rate

CONVERGED_STEPS = 3  # outer steps in a row within the tolerance that count as convergence
MIN_STEP_PRODUCT = 5.0  # lr rho inner / (1 - momentum) below which K cannot follow its target
ADAPTIVE_STEPS = 50  # for K to follow, with optimizers that choose their own step length
UPDATES = 16  # of F that a run should have room for, however short it is


class Splitting(Solver):
    """The base of solvers with two copies of the rows: K in the network, and F, which is sparse.

    K are the parameters, which the loss acts on. Subclasses define how K and F approach each other.
    `copies` and `counters` name what a resumed run needs; `counters` maps keys of the state to
    attributes.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"prox"})
    copies: ClassVar[tuple[str, ...]] = ("F",)
    counters: ClassVar[Mapping[str, str]] = {}
    F: list[Tensor]

    def solution(self) -> list[Tensor]:
        """Return F, whose zeros are exact, unlike those of K."""
        return list(self.F)

    def finish(self) -> None:
        """Zero the rows of K that are zero in F; the others keep K, since the prox shrank F."""
        for block, k, f in zip(self.blocks, self.parameters(), self.F, strict=True):
            block.write(k.masked_fill((f == 0).all(dim=1, keepdim=True), 0.0))

    def metrics(self) -> dict[str, float]:
        """Return the usual columns, and the relative distance of K and F."""
        K = self.parameters()
        return {**super().metrics(), "gap": distance(K, self.F) / max(norm(K), 1e-30)}

    def state_dict(self) -> dict[str, Any]:
        """Return copies and counters, from which a run resumes bit for bit."""
        counters = {key: getattr(self, name) for key, name in self.counters.items()}
        return counters | {name: getattr(self, name) for name in self.copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; raises ArtifactError when it belongs to other rows."""
        for name in self.copies:
            check_state(self.blocks, state[name], [rows.shape for rows in self.F])
        for key, name in self.counters.items():
            setattr(self, name, int(state[key]))
        for name in self.copies:
            pairs = zip(state[name], self.F, strict=True)
            setattr(self, name, [saved.to(rows) for saved, rows in pairs])

    def parameters(self) -> list[Tensor]:
        """Return K, read from the network."""
        return [block.read() for block in self.blocks]


def norm(matrices: Sequence[Tensor]) -> float:
    """Return the 2-norm of all entries of all matrices."""
    return math.sqrt(sum(float(rows.double().square().sum()) for rows in matrices))


def distance(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Return the 2-norm of the difference."""
    return norm([a - b for a, b in zip(left, right, strict=True)])


def nonzero_rows(matrices: Sequence[Tensor]) -> Tensor:
    """Return one mask over the rows of all matrices, True where a row is not zero."""
    return torch.cat([(rows != 0).any(dim=1).cpu() for rows in matrices])


@SOLVERS.register("aulm")
@dataclass
class AULM(Splitting):
    """Alternative updating with Lagrange multipliers (Lin et al. 2019, SSR eq. 5-12, algorithm 1).

    Multipliers Y tie K, the parameters, to F, their sparse copy:
    L(K) + penalty(F) + <Y, K - F> + (rho / 2) |K - F|^2. `inner` optimizer steps move K, then one
    outer step updates F and Y and over-relaxes them by k / (k + r), r >= 3 (infinite: not at all).

    With `inner` None, K gets the steps that it needs to follow its target by a factor of e^-5 at
    the rate of the schedule, 5 (1 - momentum) / (rate rho), but at most a 16th of all steps.

    A run lasts as long as its schedule, unless a stop rule is set: `max_outer` outer steps; a
    relative |K - F| or change of F within `tol` three times in a row; or the same zero rows of F,
    at least one, for `patience` outer steps. 0 disables a rule. `tol` times the row norms should be
    well below lam / rho, because F only moves by lam / rho while Y builds up.
    """

    rho: Annotated[Positive, "how strongly the parameters are tied to their sparse copy"] = 1.0
    inner: Annotated[
        Count | None, "steps between two updates of the sparse copy; null: fits the schedule"
    ] = None
    r: Annotated[float, Range(at_least=3, infinite=True), "over-relaxes by k / (k + r)"] = 3.0
    max_outer: Annotated[Whole, "stops after so many updates; 0: off"] = 0
    tol: Annotated[NotNegative, "stops below this relative change; 0: off"] = 0.0
    patience: Annotated[
        Whole, "stops when the zero rows are the same for so many updates; 0: off"
    ] = 0
    copies: ClassVar[tuple[str, ...]] = ("F", "Fhat", "Y", "Yhat")
    lower_step: ClassVar[str] = "raise rho"
    counters: ClassVar[Mapping[str, str]] = {
        "steps": "steps",
        "outer": "outer",
        "calm": "converged_steps",
        "still": "stable_steps",
    }

    def start(self) -> None:
        """Set F = K and Y = 0, so that the first inner steps pull K to its start."""
        self.steps = self.outer = self.converged_steps = self.stable_steps = 0
        self.interval = self.inner or 0  # 0: not chosen yet
        self.F = self.parameters()
        self.Y = [torch.zeros_like(rows) for rows in self.F]
        self.Fhat, self.Yhat = list(self.F), list(self.Y)
        self._set_targets()

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        """Add the gradient of (rho / 2) |K - T1|^2 with T1 = Fhat - Yhat / rho (eq. 10-11)."""
        if self.steps == 0 and self.at_start is None:
            self._warn_if_slow(optimizer)
        for param, target in self.targets:
            grad_of(param).add_(param - target, alpha=self.rho)

    def after_step(self, optimizer: Optimizer) -> None:
        """Update F and Y after every `inner` steps of K."""
        self.steps += 1
        self.interval = self.interval or self._steps_to_follow(optimizer)
        if self.steps % self.interval == 0:
            self.update()

    def expect(self, steps: int, optimizer: Optimizer) -> None:
        """Choose `inner` where it is not set; warn where it leaves no step or is too short."""
        super().expect(steps, optimizer)
        if self.inner is None:
            self.interval = max(1, min(self._steps_to_follow(optimizer), steps // UPDATES))
        elif steps < self.inner:
            self.warn("unused", _no_update(self.inner, steps))
        self._warn_if_slow(optimizer)

    def prox_lengths(self, rates: Sequence[float], momentum: float) -> list[float]:
        """Return steps of 1 / rho, as far as K can follow: from the first update on, Y pulls it."""
        first = self.inner or len(rates) // UPDATES
        return [1 / self.rho] * max(1, round(self.rho * sum(rates[first:]) / (1 - momentum)))

    def update(self) -> None:
        """Take one outer step: F (eq. 12-16), Y (eq. 7), over-relaxation (eq. 8-9)."""
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
        self._set_targets()
        self._count_converged(K, F)

    @property
    def done(self) -> bool:
        """Return whether one of the stop rules applies."""
        return (
            0 < self.max_outer <= self.outer
            or (self.tol > 0 and self.converged_steps >= CONVERGED_STEPS)
            or 0 < self.patience <= self.stable_steps
        )

    def metrics(self) -> dict[str, float]:
        """Return the usual columns, the relative distance of K and F, and the outer steps."""
        return {**super().metrics(), "outer": self.outer}

    def notes(self) -> tuple[str, ...]:
        """Add the number of steps that was chosen for `inner`."""
        if self.inner is not None or self.outer == 0:
            return super().notes()
        chosen = (
            f"solver.inner={self.interval} was chosen to fit: {self.outer} updates of the sparse "
            f"copy in {self.steps} steps"
        )
        return (chosen, *super().notes())

    def unused(self) -> str | None:
        """Return that the sparse copy was never updated, if so."""
        return _no_update(self.interval or self.inner or 1, self.steps) if not self.outer else None

    def state_dict(self) -> dict[str, Any]:
        """Return copies and counters, and the number of inner steps where it was chosen."""
        chosen = {} if self.inner is not None else {"interval": self.interval}
        return super().state_dict() | chosen

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; raises ArtifactError when it belongs to other rows."""
        super().load_state_dict(state)
        self.interval = int(state.get("interval", self.interval))
        self._set_targets()

    def _set_targets(self) -> None:
        """Lay T1 out like the parameters, once for all `inner` steps."""
        self.targets = [
            (param, entries.contiguous())
            for block, fhat, yhat in zip(self.blocks, self.Fhat, self.Yhat, strict=True)
            for param, entries in block.scatter(fhat - yhat / self.rho)
        ]

    def _count_converged(self, K: list[Tensor], previous: list[Tensor]) -> None:
        """Count outer steps in a row that look converged; disabled rules cost nothing."""
        if self.tol > 0:
            converged = distance(K, self.F) <= self.tol * norm(K)
            converged = converged or distance(self.F, previous) <= self.tol * norm(self.F)
            self.converged_steps = self.converged_steps + 1 if converged else 0
        if self.patience > 0:
            now, before = nonzero_rows(self.F), nonzero_rows(previous)
            stable = bool((now == before).all()) and not bool(now.all())
            self.stable_steps = self.stable_steps + 1 if stable else 0

    def _pull(self, optimizer: Optimizer) -> float | None:
        """Return lr rho / (1 - momentum), by which K moves to its target in one step of SGD.

        None stands for adaptive optimizers, which choose their own step length.
        """
        momentum = optimizer.param_groups[0].get("momentum")
        if momentum is None:
            return None
        rate = min(learning_rate(optimizer, block) for block in self.blocks)
        return float(rate * self.rho / (1 - momentum))

    def _steps_to_follow(self, optimizer: Optimizer) -> int:
        """Return how many steps K needs to follow its target."""
        pull = self._pull(optimizer)
        if not pull:  # at a rate of zero no number of steps is enough
            return ADAPTIVE_STEPS
        return math.ceil(round(MIN_STEP_PRODUCT / pull, 6))

    def _warn_if_slow(self, optimizer: Optimizer) -> None:
        pull = self._pull(optimizer)
        if pull is None or not self.interval:
            return
        product = pull * self.interval
        if product < MIN_STEP_PRODUCT * (1 - 1e-6):
            mend = (
                f"raise inner={self.inner} or" if self.inner else "train for more steps, or raise"
            )
            self.warn(
                "slow",
                f"lr * rho * inner / (1 - momentum) = {product:.2g} is below {MIN_STEP_PRODUCT:g} "
                f"with inner={self.interval}, so the weights cannot follow their sparse copy; "
                f"{mend} rho={self.rho:g}",
            )


def _no_update(inner: int, steps: int) -> str:
    return (
        f"0 updates of the sparse copy: solver.inner={inner}, but training has {steps} steps, so "
        "the penalty does nothing; lower solver.inner, or null chooses it"
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

    This is proximal alternating linearised minimisation, a splitting without multipliers. K are the
    parameters, F their sparse copy (xi in Bui et al. 2023). After each step of the optimizer, which
    only minimises the loss, K moves towards F and F by a prox towards K. Both steps use
    alpha = 1 / rate, with the current rate of the block's parameter group. A fixed point is
    stationary for the sum above, but as published the momentum m of SGD scales the loss by
    1 / (1 - m). Adaptive optimizers likewise rescale the loss, entry by entry.

    F starts as K times 1 +- `spread`, drawn row by row from `seed`: for scales of .5 and a spread
    of .06 this is the published interval [.47, .53].
    """

    beta: Annotated[Positive, "how strongly the network is tied to its sparse copy"] = 100.0
    spread: Annotated[PartShare, "relative noise in the start of the sparse copy"] = 0.06
    seed: Annotated[Whole, "seed of the noise in the sparse copy"] = 0
    lower_step: ClassVar[str] = "raise beta, lower the learning rate"

    def start(self) -> None:
        """Set F to K with noise that is the same in every process."""
        generator = torch.Generator().manual_seed(self.seed)
        self.F = [_with_noise(rows, self.spread, generator) for rows in self.parameters()]

    def prox_lengths(self, rates: Sequence[float], momentum: float) -> list[float]:
        """Return by how much K and F move together: F alone is pulled, by s = 1 / (alpha + beta).

        Where both move at one speed v, K is behind by d = v / (beta s), and v (2 - beta s) = s.
        """
        steps = (rate / (1 + self.beta * rate) for rate in rates)
        return [step / (2 - self.beta * step) for step in steps]

    def after_step(self, optimizer: Optimizer) -> None:
        """Move K towards F, then F towards the new K."""
        self.F = [
            self._update(block, f, learning_rate(optimizer, block))
            for block, f in zip(self.blocks, self.F, strict=True)
        ]

    def _update(self, block: Rows, f: Tensor, rate: float) -> Tensor:
        """Write the new K and return the new F.

        K <- (alpha K + beta F) / (alpha + beta), then F <- prox of the same mean of F and the new
        K; numerators and denominators are multiplied by the rate = 1 / alpha.
        """
        if rate == 0:
            self.warn("rate", f"the rate of {block.name} is 0: neither it nor its copy moves")
            return f
        step = rate / (1 + self.beta * rate)  # 1 / (alpha + beta)
        k = torch.lerp(block.read(), f, self.beta * step)
        block.write(k)
        return self.prox(block, torch.lerp(f, k, self.beta * step), step)


def _with_noise(rows: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    noise = 2 * torch.rand(len(rows), 1, generator=generator, dtype=torch.float64) - 1
    return rows * (1 + spread * noise).to(rows)
