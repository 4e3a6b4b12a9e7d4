"""What a training solver is: hooks around the optimizer's step, and a state that can be saved."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Size, Tensor
from torch.optim import Optimizer

from prunekit.errors import ArtifactError, ConfigError
from prunekit.penalties.base import Penalty
from prunekit.registry import Registry
from prunekit.rows import Rows
from prunekit.schema import Checked
from prunekit.solvers.warnings import about_flatness, about_step

log = logging.getLogger(__name__)

BELOW = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # row norms that are counted as small


class Solver(Checked, ABC):
    """Makes network training minimise loss + penalty.

    The order in a training loop: `backward`, unscale, clip, `before_step`, `optimizer.step`,
    `after_step`; once at the end `finish`. Constructed from settings alone, then bound.
    """

    needs: ClassVar[frozenset[str]] = frozenset()  # nothing: the penalty is only reported
    lower_step: ClassVar[str] = "lower the learning rate"  # what makes its prox steps shorter

    def bind(self, penalty: Penalty, blocks: Sequence[Rows]) -> None:
        """Take the penalty and the rows it acts on; refuses a pair that does not fit.

        Logs a warning where the penalty does nothing to the rows as they are.
        """
        check_fit(self, penalty)
        if not blocks:
            raise ConfigError("the target has no rows to penalise; choose another target or layers")
        self.penalty, self.blocks = penalty, tuple(blocks)
        self.warned: set[str] = set()
        if self.needs and penalty.lam > 0:
            self.warn("flat", about_flatness(penalty, blocks))
            self.warn("remark", penalty.remark)
        self.start()

    def start(self) -> None:
        """Prepare the state for the bound rows."""

    def warn(self, subject: str, line: str | None) -> None:
        """Log a warning, one a subject and run."""
        if line is not None and subject not in self.warned:
            self.warned.add(subject)
            log.warning(line)

    def prox(self, block: Rows, rows: Tensor, step: float) -> Tensor:
        """The prox of the penalty on a block, whose weight lengthens the step."""
        weighted = step * block.weight
        self.warn("step", about_step(self.penalty, weighted, self.lower_step))
        return self.penalty.prox(rows, weighted)

    def before_step(self, optimizer: Optimizer) -> None:
        """After backward, unscaling and clipping; may edit gradients."""

    def after_step(self, optimizer: Optimizer) -> None:
        """After the optimizer's step; may edit parameters."""

    @abstractmethod
    def finish(self) -> None:
        """Leave the solver's answer in the parameters: exact zeros where it has them."""

    @property
    def done(self) -> bool:
        """Whether the stop rule fired; training ends with the epoch in which it did."""
        return False

    def metrics(self) -> dict[str, float]:
        """Numbers worth a column in the training log.

        The penalty, rows left in all and per block, and the shares of small rows (see `below`).
        """
        matrices = self.solution()
        left = {
            f"rows/{block.name}": int((matrix != 0).any(dim=1).sum())
            for block, matrix in zip(self.blocks, matrices, strict=True)
        }
        penalty = sum(
            block.weight * float(self.penalty.value(matrix))
            for block, matrix in zip(self.blocks, matrices, strict=True)
        )
        return {"penalty": penalty, "rows": sum(left.values()), **left, **below(self.blocks)}

    def solution(self) -> list[Tensor]:
        """The sparse matrix of every block, whose row norms are the scores for pruning."""
        return [block.read() for block in self.blocks]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers that a resumed run needs."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""


SOLVERS: Registry[Solver] = Registry("solver")


def below(blocks: Sequence[Rows]) -> dict[str, float]:
    """The share of rows with a norm below each of `BELOW`, as "below/1e-02" to "below/1e-06".

    Of the parameters as they are, which a subgradient leaves small but not zero, and not of a
    solver's solution.
    """
    norms = torch.cat([block.read().norm(dim=1).cpu() for block in blocks])
    return {f"below/{limit:.0e}": float((norms < limit).float().mean()) for limit in BELOW}


def check_fit(solver: Solver, penalty: Penalty) -> None:
    """Raise ConfigError when the penalty lacks what the solver needs; no data is needed for it."""
    missing = solver.needs - penalty.offers
    if missing:
        raise ConfigError(
            f"solver {type(solver).__name__} needs {' and '.join(sorted(missing))}, which penalty "
            f"{type(penalty).__name__} does not offer (only {', '.join(sorted(penalty.offers))}); "
            "choose another solver or penalty"
        )


def learning_rate(optimizer: Optimizer, block: Rows) -> float:
    """The rate of the parameter group that owns the block's parameters."""
    wanted = {id(param) for param in block.parameters}
    for group in optimizer.param_groups:
        if any(id(param) in wanted for param in group["params"]):
            return float(group["lr"])
    raise ConfigError(f"the optimizer does not train {block.name}, which the penalty acts on")


def check_state(blocks: Sequence[Rows], saved: Sequence[Tensor], shapes: Sequence[Size]) -> None:
    """Raise ArtifactError unless there is one saved tensor per block, of the shape given for it."""
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
