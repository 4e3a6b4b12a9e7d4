"""The solver of Hinge: proximal gradient on convolutions and their matrices jointly."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch import Tensor
from torch.optim import Optimizer

from prunekit.errors import ConfigError
from prunekit.rows import Rows
from prunekit.schema import Checked, NotNegative, Positive, Range
from prunekit.solvers.base import SOLVERS
from prunekit.solvers.gradient import Proximal

NEW_WEIGHT = 0.9  # weight of the newest gradient ratio in the running one, as in the released code
MAX_RATIO = 9 / 5  # the running ratio is clamped between 1 / MAX_RATIO and MAX_RATIO
_ROLES = ("first", "second")


@dataclass(frozen=True)
class Annealing(Checked):
    """Divides lam by `factor` when a norm falls to the first level, and again at each further one.

    The norm is the sum of the row norms of the first matrices, averaged over blocks or summed over
    layers, as published per network (Li et al. 2020, section 3.7). Levels are in its units, or with
    `unit="start"` relative to its value at the start, which suits any network.
    """

    factor: Annotated[float, Range(at_least=1), "divisor of lam at each level"] = 2.0
    at: Annotated[Sequence[Positive], "levels of the norm, falling"] = (0.5, 0.25)
    over: Annotated[Literal["blocks", "layers"], "mean over blocks, or sum over layers"] = "blocks"
    unit: Annotated[Literal["start", "norm"], "levels are relative to the first norm, or norms"] = (
        "start"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at or list(self.at) != sorted(self.at, reverse=True):
            raise ConfigError(f"at={list(self.at)} must fall: the higher level first")

    def norm(self, blocks: Sequence[Rows]) -> float:
        """Return the norm of the parameters as they are."""
        first = _first_matrices(blocks)
        total = sum_of_norms(block.read() for block in first)
        return total / len(first) if self.over == "blocks" else total

    def share(self, norm: float, start: float) -> float:
        """Return the factor on lam at this norm; `start` is the norm at the start."""
        scale = start if self.unit == "start" else 1.0
        passed = sum(norm <= level * scale for level in self.at)
        return float(self.factor**-passed)


@dataclass
class Hinge(Proximal):
    """Proximal steps on the matrices A, with the rates of a block's two matrices balanced.

    W and A have separate rates by their parameter groups. If blocks have a first and a second
    matrix, the rate of the first is divided by ratio^`exponent`; ratio is the running ratio of the
    gradient norms of all first to all second matrices (Li et al. 2020, section 3.5). The prox uses
    the rate of the schedule. `slowed` says which parameters have the divided rate: the first
    matrices, as in the paper, or "all" but the second ones, as in the released code.
    """

    exponent: Annotated[NotNegative, "power of the ratio of gradients; 0: no balancing"] = 1.35
    annealing: Annotated[Annealing | None, "how lam falls; null: it is constant"] = None
    slowed: Annotated[
        Literal["first", "all"], "whose rate is divided: the first matrices, or all but the second"
    ] = "first"

    def start(self) -> None:
        """Start with equal rates and the full lam."""
        super().start()
        self.ratio, self.share = 1.0, 1.0
        self.initial = self.annealing.norm(self.blocks) if self.annealing else 0.0
        self.roles = {role: [b for b in self.blocks if b.role == role] for role in _ROLES}
        self._divided: list[tuple[dict[str, Any], float]] = []

    def before_step(self, optimizer: Optimizer) -> None:
        """Divide the rate of the first matrices, and update the factor on lam."""
        self._restore_rates()
        if self.exponent and all(self.roles.values()):
            first, second = (self._gradient_norm(role) for role in _ROLES)
            self.ratio = running_ratio(self.ratio, first, second)
            self._divide_rates(optimizer)
        if self.annealing:
            self.share = self.annealing.share(self.annealing.norm(self.blocks), self.initial)

    def after_step(self, optimizer: Optimizer) -> None:
        """Apply the prox with the rates of the schedule."""
        self._restore_rates()
        super().after_step(optimizer)

    def step_of(self, optimizer: Optimizer, index: int) -> float:
        """Return the rate times the factor on lam."""
        return super().step_of(optimizer, index) * self.share

    def metrics(self) -> dict[str, float]:
        """Add the running ratio of gradients, the factor on lam, and the norm for annealing."""
        metrics = {**super().metrics(), "gradient_ratio": self.ratio, "lam_share": self.share}
        if self.annealing:
            metrics["annealing_norm"] = self.annealing.norm(self.blocks)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Add the running ratio, the norm at the start, and the last factor on lam."""
        own = {"ratio": self.ratio, "initial": self.initial, "share": self.share}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self.ratio, self.initial = float(state["ratio"]), float(state["initial"])
        self.share = float(state.get("share", self.share))  # earlier versions did not save it

    def _gradient_norm(self, role: str) -> float:
        return sum_of_norms(block.read_grad() for block in self.roles[role])

    def _divide_rates(self, optimizer: Optimizer) -> None:
        """Divide rates, and record the previous ones."""
        for group in self._groups_to_slow(optimizer):
            self._divided.append((group, group["lr"]))
            group["lr"] /= self.ratio**self.exponent

    def _restore_rates(self) -> None:
        """Restore the rates, except those that were changed after they were divided."""
        for group, rate in self._divided:
            if group["lr"] == rate / self.ratio**self.exponent:
                group["lr"] = rate
        self._divided = []

    def _groups_to_slow(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        first, second = (
            {id(param) for block in self.roles[role] for param in block.parameters}
            for role in _ROLES
        )
        groups = []
        for group in optimizer.param_groups:
            members = {id(param) for param in group["params"]}
            if members & second and members & first:
                raise ConfigError(
                    "the two matrices of a block share a parameter group, so their rates cannot "
                    "differ; give each role its own, or solver.exponent=0"
                )
            if members & first or (self.slowed == "all" and not members & second):
                groups.append(group)
        return groups


@SOLVERS.register("hinge")
def hinge() -> Hinge:
    """Return the published solver, with annealing."""
    return Hinge(annealing=Annealing())


def running_ratio(ratio: float, first: float, second: float) -> float:
    """Return the running ratio after a step with these gradient norms, if both are positive."""
    if first == 0 or second == 0:
        return ratio
    mixed = NEW_WEIGHT * first / second + (1 - NEW_WEIGHT) * ratio
    return min(max(mixed, 1 / MAX_RATIO), MAX_RATIO)


def sum_of_norms(matrices: Iterable[Tensor]) -> float:
    """Return the sum of the norms of all rows."""
    return float(sum(rows.norm(dim=1).sum() for rows in matrices))


def _first_matrices(blocks: Sequence[Rows]) -> list[Rows]:
    """Return the first matrices; without roles, the first block of rows of each parameter."""
    first = [block for block in blocks if block.role == "first"]
    return first or [*{block.parameters: block for block in reversed(blocks)}.values()]
