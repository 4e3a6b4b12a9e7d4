"""Joint proximal gradient on convolutions and their sparsity-inducing matrices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from torch.optim import Optimizer

from prunekit.errors import ConfigError
from prunekit.rows import Rows
from prunekit.schema import Checked, NotNegative, Positive, Range
from prunekit.solvers.base import SOLVERS
from prunekit.solvers.proximal import Proximal

NEWEST = 0.9  # weight of a step's gradient ratio in the running one, as in the released code
MOST = 9 / 5  # the running ratio stays between 1 / MOST and MOST


@dataclass(frozen=True)
class Annealing(Checked):
    """lam falls by `factor` when the norms fall to the first level, and once more at the second.

    The norm is the sum of row norms of a first matrix, averaged `over` the blocks, or summed over
    all layers, as published per network (Li et al. 2020, section 3.7). `at` is in its units, or
    with `unit="start"` a share of its value in the beginning, which suits any network.
    """

    factor: Annotated[float, Range(at_least=1), "what lam is divided by at each level"] = 2.0
    at: Annotated[Sequence[Positive], "levels of the norm, falling"] = (0.5, 0.25)
    over: Annotated[Literal["blocks", "layers"], "mean over blocks, or sum over layers"] = "blocks"
    unit: Annotated[Literal["start", "norm"], "levels are shares of the first norm, or norms"] = (
        "start"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.at or list(self.at) != sorted(self.at, reverse=True):
            raise ConfigError(f"at={list(self.at)} must fall: the higher level first")

    def norm(self, blocks: Sequence[Rows]) -> float:
        """The statistic, of the parameters as they are."""
        leading = _leading(blocks)
        total = norms(block.read() for block in leading)
        return total / len(leading) if self.over == "blocks" else total

    def share(self, norm: float, start: float) -> float:
        """What is left of lam at this norm, which was `start` in the beginning."""
        scale = start if self.unit == "start" else 1.0
        return self.factor ** -sum(norm <= level * scale for level in self.at)


@dataclass
class Hinge(Proximal):
    """Proximal steps on the matrices A, whose two rates in a block are balanced by gradients.

    W and A get separate rates by their parameter groups. Where blocks have a first and a second
    matrix, the first one's rate is divided by ratio^`exponent`, the running ratio of the gradient
    norms of all first to all second matrices (Li et al. 2020, section 3.5; 0: rates stay). The
    prox keeps the rate of the schedule. `slowed` are the parameters whose rate is divided: the
    first matrices, as the paper has it, or `all` but the second ones, as the released code does.
    """

    exponent: Annotated[NotNegative, "power of the ratio of gradients; 0: off"] = 1.35
    annealing: Annotated[Annealing | None, "how lam falls; null: it stays"] = None
    slowed: Annotated[Literal["first", "all"], "whose rate falls; all: but the second's"] = "first"

    def start(self) -> None:
        """Rates are equal and lam is whole."""
        super().start()
        self.ratio, self.share = 1.0, 1.0
        self.initial = self.annealing.norm(self.blocks) if self.annealing else 0.0
        self.roles = {role: [b for b in self.blocks if b.role == role] for role in _ROLES}
        self._slowed: list[tuple[dict[str, Any], float]] = []

    def before_step(self, optimizer: Optimizer) -> None:
        """Slow the first matrices down, and set the share of lam."""
        self._restore()
        if self.exponent and all(self.roles.values()):
            self.ratio = running(self.ratio, *(self._gradient(role) for role in _ROLES))
            self._slow(optimizer)
        if self.annealing:
            self.share = self.annealing.share(self.annealing.norm(self.blocks), self.initial)

    def after_step(self, optimizer: Optimizer) -> None:
        """The prox, at the schedule's rates."""
        self._restore()
        super().after_step(optimizer)

    def step_of(self, optimizer: Optimizer, index: int) -> float:
        """The rate times what is left of lam."""
        return super().step_of(optimizer, index) * self.share

    def metrics(self) -> dict[str, float]:
        """Also the running ratio of gradients, the share of lam, and the norm it goes by."""
        found = {**super().metrics(), "gradient_ratio": self.ratio, "lam_share": self.share}
        if self.annealing:
            found["annealing_norm"] = self.annealing.norm(self.blocks)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Also the ratio, and the norm in the beginning."""
        return {**super().state_dict(), "ratio": self.ratio, "initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        super().load_state_dict(state)
        self.ratio, self.initial = float(state["ratio"]), float(state["initial"])

    def _gradient(self, role: str) -> float:
        return norms(block.read_grad() for block in self.roles[role])

    def _slow(self, optimizer: Optimizer) -> None:
        """Divide rates, and remember what they were."""
        for group in self._slow_groups(optimizer):
            self._slowed.append((group, group["lr"]))
            group["lr"] /= self.ratio**self.exponent

    def _restore(self) -> None:
        """The rates before they were divided, but for those that were set anew since."""
        for group, rate in self._slowed:
            if group["lr"] == rate / self.ratio**self.exponent:
                group["lr"] = rate
        self._slowed = []

    def _slow_groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        wanted, spared = (
            {id(param) for block in self.roles[role] for param in block.parameters}
            for role in _ROLES
        )
        found = []
        for group in optimizer.param_groups:
            owned = {id(param) for param in group["params"]}
            if owned & spared and owned & wanted:
                raise ConfigError(
                    "the two matrices of a block share a parameter group, so their rates cannot "
                    "differ; give each role its own, or solver.exponent=0"
                )
            if owned & wanted or (self.slowed == "all" and not owned & spared):
                found.append(group)
        return found


_ROLES = ("first", "second")


def running(ratio: float, first: float, second: float) -> float:
    """The running ratio after a step with these gradient norms; it stays where one is zero."""
    if first == 0 or second == 0:
        return ratio
    mixed = NEWEST * first / second + (1 - NEWEST) * ratio
    return min(max(mixed, 1 / MOST), MOST)


def norms(matrices: Iterable[Any]) -> float:
    """The sum of all row norms."""
    return float(sum(rows.norm(dim=1).sum() for rows in matrices))


def _leading(blocks: Sequence[Rows]) -> list[Rows]:
    """The first matrices; where blocks have one only, each parameter's first block of rows."""
    first = [block for block in blocks if block.role == "first"]
    return first or [*{block.parameters: block for block in reversed(blocks)}.values()]


@SOLVERS.register("hinge")
def hinge() -> Hinge:
    """The published solver, whose `lam` falls as norms do."""
    return Hinge(annealing=Annealing())
