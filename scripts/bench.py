"""Speed as ratios inside one run: both sides of every ratio are timed in alternation.

    python scripts/bench.py [--rounds 4] [--csv FILE]

Median over rounds; a step is forward, backward and update of ResNet-20 on a batch of 128.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from prunekit import penalties, solvers, targets
from prunekit.console import say, table
from prunekit.data import Data, HorizontalFlip, Normalize, RandomCrop, TensorBatches
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.methods.hinge import Annealing, Hinge, InsertMatrices, Matrices, Placement
from prunekit.models import resnet20
from prunekit.runs.files import write_csv
from prunekit.solvers.base import Solver, check_fit
from prunekit.training import Schedule, fit

BATCH = 128
CYCLE = 50  # steps between two outer updates of the splitting solvers
PENALTIES = {
    "L0": penalties.L0(1e-4),
    "L1": penalties.L1(1e-4),
    "Lp": penalties.Lp(1e-4, p=0.5),
    "TransformedL1": penalties.TransformedL1(1e-4, a=1.0),
    "MCP": penalties.MCP(1e-4, gamma=1e4),
    "SCAD": penalties.SCAD(1e-4, a=1e4),
    "LogSum": penalties.LogSum(1e-4, eps=0.1),
    "L1MinusL2": penalties.L1MinusL2(1e-4),
}
SOLVERS = {
    "Subgradient": solvers.Subgradient,
    "Proximal": solvers.Proximal,
    "ADMM": solvers.ADMM,
    "AULM": solvers.AULM,
    "PALM": solvers.PALM,
}
ROLES = ("first", "second")
TARGETS = {"filters": targets.Filters(), "scales": targets.Scales()}
NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))

Row = dict[str, str | float]


def main() -> int:
    """Print every ratio with its bound; exit code 1 when one is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    rows = [
        *penalty_steps(arguments.rounds),
        *hinge_steps(arguments.rounds),
        training_loop(arguments.rounds),
        data_path(arguments.rounds),
        start(arguments.rounds),
    ]
    return publish("ratios", rows, arguments.csv)


def publish(title: str, rows: list[Row], file: Path | None) -> int:
    """Show the rows, write them to a file if there is one; exit code 1 when a bound is missed."""
    table(title, list(rows[0]), [[str(value) for value in row.values()] for row in rows])
    if file:
        write_csv(file, rows)
    missed = [str(row["what"]) for row in rows if row["holds"] == "no"]
    say(f"missed: {', '.join(missed)}" if missed else "every bound holds")
    return 1 if missed else 0


def row(what: str, ratio: float, bound: str, holds: bool) -> Row:
    """One line of the result."""
    return {
        "what": what,
        "ratio": round(ratio, 3),
        "bound": bound,
        "holds": "yes" if holds else "no",
    }


def ratio(first: Callable[[], object], second: Callable[[], object], rounds: int) -> float:
    """The median over rounds of seconds of `first` over seconds of `second`, in alternation."""
    first(), second()
    return statistics.median(_seconds(first) / _seconds(second) for _ in range(rounds))


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def penalty_steps(rounds: int) -> Iterator[Row]:
    """A step under every penalty and solver on filters and scales against a step without.

    The two hooks add their time to a step, so they are timed by themselves, over `CYCLE` steps
    with the outer updates that fall into them; bare steps are timed in between.
    """
    model = resnet20().to(memory_format=torch.channels_last)
    x, y = _batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    graph = ChannelGraph.trace(model, x[:1])
    start = {name: value.clone() for name, value in model.state_dict().items()}
    bare = partial(_steps, model, optimizer, x, y, 1)
    for target_name, target in TARGETS.items():
        for solver_name, make in SOLVERS.items():
            for penalty_name, penalty in PENALTIES.items():
                solver = make()
                try:
                    check_fit(solver, penalty)
                except ConfigError:
                    continue
                model.load_state_dict(start)
                solver.bind(penalty, target.rows(model, graph))
                hooks = partial(_hooks, solver, optimizer)
                found = 1 + ratio(hooks, bare, rounds) / CYCLE
                what = f"step with {solver_name} {penalty_name} on {target_name} / without"
                yield row(what, found, "<= 1.10", found <= 1.10)


def hinge_steps(rounds: int) -> Iterator[Row]:
    """A step of Hinge's solver on a network with matrices, rates and lam adjusted, the same way."""
    model, (x, y) = resnet20(), _batch()
    InsertMatrices.of(model, x[:1], Placement(blocks={"basic": ("rows", "rows")})).apply(model)
    model = model.to(memory_format=torch.channels_last)
    blocks = Matrices(balance=True).rows(model, ChannelGraph.trace(model, x[:1]))
    for name in ("L1", "Lp", "LogSum", "L1MinusL2"):
        solver = Hinge(annealing=Annealing())
        solver.bind(PENALTIES[name], blocks)
        roles = [[p for b in blocks if b.role == role for p in b.parameters] for role in ROLES]
        taken = {id(param) for role in roles for param in role}
        rest = [param for param in model.parameters() if id(param) not in taken]
        optimizer = torch.optim.SGD([{"params": part} for part in (rest, *roles)], lr=1e-3)
        _steps(model, optimizer, x, y, 1)
        bare = partial(_steps, model, optimizer, x, y, 1)
        found = 1 + ratio(partial(_hooks, solver, optimizer), bare, rounds) / CYCLE
        what = f"step with Hinge {name} on rows of matrices / without"
        yield row(what, found, "<= 1.10", found <= 1.10)


def _hooks(solver: Solver, optimizer: torch.optim.Optimizer) -> None:
    for _ in range(CYCLE):
        solver.before_step(optimizer)
        solver.after_step(optimizer)


def _steps(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int
) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def training_loop(rounds: int) -> Row:
    """Throughput of `fit` over that of bare steps on one fixed batch."""
    steps = 10
    x, y = _batch()
    batches = _Fixed(x, y, steps)
    data = Data(batches, _Fixed(x, y, 0), batches, 10, (3, 32, 32))
    schedule = Schedule(1, BATCH, partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    model = resnet20().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    bare = partial(_steps, model, optimizer, x, y, steps)
    found = ratio(bare, lambda: fit(model, data, schedule), rounds)
    return row("training loop / bare steps, throughput", found, ">= 0.90", found >= 0.90)


class _Fixed:
    """The same batch over and over."""

    def __init__(self, x: Tensor, y: Tensor, count: int) -> None:
        self.x, self.y, self.count, self.size = x, y, count, count * len(y)

    def steps(self, batch: int) -> int:
        return self.count

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(self.x, self.y)] * self.count)

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(batch, None)


def data_path(rounds: int) -> Row:
    """An epoch of augmented tensors against a DataLoader over the same augmentations."""
    images = torch.randint(0, 256, (4096, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, 10, (4096,))
    ours = TensorBatches(images, labels, NORMALIZE, (RandomCrop(4), HorizontalFlip()))
    change = v2.Compose(
        [
            v2.RandomCrop(32, padding=4),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(NORMALIZE.mean, NORMALIZE.std),
        ]
    )
    plain = DataLoader(
        TensorDataset(images, labels),
        BATCH,
        shuffle=True,
        collate_fn=lambda pairs: (
            torch.stack([change(image) for image, _ in pairs]),
            torch.stack([label for _, label in pairs]),
        ),
    )
    found = ratio(lambda: list(plain), lambda: list(ours.epoch(BATCH, 0)), rounds)
    return row("tensor data path / plain DataLoader, throughput", found, "> 1", found > 1)


def start(rounds: int) -> Row:
    """Seconds of `prunekit --help`, the one absolute figure."""
    command = [sys.executable, "-m", "prunekit", "--help"]
    times = [_seconds(partial(subprocess.run, command, capture_output=True)) for _ in range(rounds)]
    found = min(times)
    return row("prunekit --help, seconds", found, "< 0.2", found < 0.2)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)
    return x.contiguous(memory_format=torch.channels_last), y


if __name__ == "__main__":
    sys.exit(main())
