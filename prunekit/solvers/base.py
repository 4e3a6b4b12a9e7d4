"""The interface of solvers: hooks around the optimizer's step, and a state that can be saved."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Size, Tensor
from torch.optim import Optimizer

from prunekit.errors import ArtifactError, ConfigError
from prunekit.penalties.base import Penalty
from prunekit.registry import Registry
from prunekit.rows import Rows
from prunekit.schema import Checked

log = logging.getLogger(__name__)

SMALL_NORMS = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # row norms below each of these are counted
_FLAT_SHARE = 0.5  # share of rows beyond the penalty's slope that is worth a warning
_VISIBLE = 0.01  # relative fall of the penalty that counts as an effect


class Solver(Checked, ABC):
    """An algorithm that makes network training minimise loss + penalty.

    A training loop that knows its length calls `expect` once. Then it calls `backward`, unscales
    and clips, `before_step`, `optimizer.step`, `after_step`; once at the end it calls `finish`. A
    solver is made from settings alone and then bound to a penalty and to rows.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # empty: the penalty is only reported
    lower_step: ClassVar[str] = "lower the learning rate"  # advice that shortens the prox steps

    def bind(self, penalty: Penalty, blocks: Sequence[Rows]) -> None:
        """Take the penalty and the rows that it acts on; raises ConfigError for an unfit pair.

        Logs a warning where the penalty has no effect on the rows as they are.
        """
        check_fit(self, penalty)
        if not blocks:
            raise ConfigError("the target has no rows to penalise; choose another target or layers")
        self.penalty, self.blocks = penalty, tuple(blocks)
        self.warned: set[str] = set()
        if self.needs and penalty.lam > 0:
            self.warn("flat", _flatness_warning(penalty, blocks))
            self.warn("remark", penalty.remark)
        self.at_start: tuple[float, int] | None = None
        self.start()

    def start(self) -> None:
        """Prepare the state for the bound rows."""

    def warn(self, subject: str, line: str | None) -> None:
        """Log a warning, at most once per subject."""
        if line is not None and subject not in self.warned:
            self.warned.add(subject)
            log.warning(line)

    def expect(self, steps: int, optimizer: Optimizer) -> None:
        """Adapt to a run of `steps` optimizer steps, at the rates that `optimizer` has now.

        Logs a warning where the penalty cannot act in so few steps.
        """
        if self.needs:
            self.at_start = self._extent([block.read() for block in self.blocks])

    def prox_lengths(self, rates: Sequence[float], momentum: float) -> list[float]:
        """Return the lengths of the prox steps that a run amounts to.

        `rates` are those of its optimizer steps, `momentum` is that of SGD.
        """
        return [*rates]

    def prox(self, block: Rows, rows: Tensor, step: float) -> Tensor:
        """Apply the penalty's prox to the rows of a block; the block's weight scales the step."""
        weighted = step * block.weight
        self.warn("step", _step_warning(self.penalty, weighted, self.lower_step))
        return self.penalty.prox(rows, weighted)

    def before_step(self, optimizer: Optimizer) -> None:
        """Edit gradients, after they are unscaled and clipped."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Edit parameters, after the optimizer's step."""

    @abstractmethod
    def finish(self) -> None:
        """Write the solution into the parameters, with its exact zeros where it has them."""

    @property
    def done(self) -> bool:
        """Return whether a stop rule ended the run; training stops after that epoch."""
        return False

    def metrics(self) -> dict[str, float]:
        """Return columns for the training log.

        These are the penalty, the numbers of rows that are not zero (in all and per block), and
        `small_norm_shares`.
        """
        matrices = self.solution()
        counts = {
            f"rows/{block.name}": int((matrix != 0).any(dim=1).sum())
            for block, matrix in zip(self.blocks, matrices, strict=True)
        }
        penalty, total = self._extent(matrices)
        return {"penalty": penalty, "rows": total, **counts, **small_norm_shares(self.blocks)}

    def notes(self) -> tuple[str, ...]:
        """Return what a report must say at the end, such as that the penalty had no effect."""
        if not self.needs or self.penalty.lam == 0 or "unused" in self.warned:
            return ()
        if (reason := self.unused()) is not None:
            return (reason,)
        if self.at_start is None:
            return ()
        (before, alive_before), (after, alive) = self.at_start, self._extent(self.solution())
        if alive < alive_before or after < (1 - _VISIBLE) * before:
            return ()
        return (
            f"the penalty had no visible effect: no row of {alive} became zero, and its value went "
            f"from {before:.4g} to {after:.4g}; raise its strength lam={self.penalty.lam:g}, or "
            "train for more steps",
        )

    def unused(self) -> str | None:
        """Return why the penalty has not acted in any step, None where it has."""
        return None

    def _extent(self, matrices: Sequence[Tensor]) -> tuple[float, int]:
        """Return the value of the penalty on all matrices, and the number of rows not zero."""
        value = sum(
            block.weight * float(self.penalty.value(matrix))
            for block, matrix in zip(self.blocks, matrices, strict=True)
        )
        return value, sum(int((matrix != 0).any(dim=1).sum()) for matrix in matrices)

    def solution(self) -> list[Tensor]:
        """Return the sparse matrix of every block, whose row norms are the scores for pruning."""
        return [block.read() for block in self.blocks]

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors and numbers that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


SOLVERS: Registry[Solver] = Registry("solver")


def small_norm_shares(blocks: Sequence[Rows]) -> dict[str, float]:
    """Return the share of rows with a norm below each of `SMALL_NORMS`, from "below/1e-02" on.

    The norms are those of the parameters, not of a solver's solution, since a subgradient method
    leaves rows small but not zero.
    """
    norms = torch.cat([block.read().norm(dim=1).cpu() for block in blocks])
    return {f"below/{bound:.0e}": float((norms < bound).float().mean()) for bound in SMALL_NORMS}


class HasNeeds(Protocol):
    """A solver of any kind that names what it needs a penalty to offer."""

    needs: ClassVar[frozenset[str]]


def check_fit(solver: HasNeeds, penalty: Penalty) -> None:
    """Raise ConfigError when the penalty lacks what the solver needs."""
    missing = solver.needs - penalty.offers
    if missing:
        raise ConfigError(
            f"solver {type(solver).__name__} needs {' and '.join(sorted(missing))}, which penalty "
            f"{type(penalty).__name__} does not offer (only {', '.join(sorted(penalty.offers))}); "
            "choose another solver or penalty"
        )


def learning_rate(optimizer: Optimizer, block: Rows) -> float:
    """Return the rate of the parameter group that owns the block; raises ConfigError for none."""
    owned = {id(param) for param in block.parameters}
    for group in optimizer.param_groups:
        if any(id(param) in owned for param in group["params"]):
            return float(group["lr"])
    raise ConfigError(f"the optimizer does not train {block.name}, which the penalty acts on")


def check_state(blocks: Sequence[Rows], saved: Sequence[Tensor], shapes: Sequence[Size]) -> None:
    """Raise ArtifactError unless `saved` has one tensor per block, of the shape in `shapes`."""
    if len(saved) != len(blocks):
        raise ArtifactError(
            f"the solver state has {len(saved)} blocks of rows, the target {len(blocks)}; "
            "resume with the settings the state was made with"
        )
    for block, tensor, shape in zip(blocks, saved, shapes, strict=True):
        if tensor.shape != shape:
            raise ArtifactError(
                f"the solver state of {block.name} is {tuple(tensor.shape)}, not {tuple(shape)}; "
                "resume with the model the state was made with"
            )


def _flatness_warning(penalty: Penalty, blocks: Sequence[Rows]) -> str | None:
    """Return a warning where a penalty with a flat part has no effect on all or most rows."""
    start = penalty.flat_from
    if not 0 < start < float("inf"):
        return None
    norms = torch.cat([block.read().double().norm(dim=1).cpu() for block in blocks])
    share = float((norms >= start).double().mean())
    flat = f"{type(penalty).__name__} is flat from {start:g} on"
    if share == 1:
        least = f"{float(norms.min()):g}"
        return (
            f"{flat} and the smallest of {len(norms)} rows is {least}: it does nothing; "
            f"raise {penalty.shape} (in settings regularizer.flat)"
        )
    if share > _FLAT_SHARE:
        return f"{flat}, so it does nothing to {share:.0%} of {len(norms)} rows as they are now"
    return None


def _step_warning(penalty: Penalty, step: float, advice: str) -> str | None:
    """Return a warning where a prox step is longer than the penalty's concavity allows.

    Penalties that are too concave for any step are exempt, since their prox always jumps.
    """
    limit = penalty.convex_step
    if not 0 < limit < step:
        return None
    return (
        f"the prox step {step:g} is above {limit:g}, where the prox of {type(penalty).__name__} "
        f"begins to jump and rows of a middle size vanish at once; {advice} or raise "
        f"{penalty.shape}"
    )
