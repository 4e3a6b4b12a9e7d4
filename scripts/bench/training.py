"""Speed of training, as ratios: a step is that of ResNet-20 on a batch of 128."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2

from prunekit import penalties, solvers, targets
from prunekit.data import Data, HorizontalFlip, Normalize, RandomCrop, TensorBatches
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.methods.hinge import Annealing, Hinge, InsertMatrices, Matrices, Placement
from prunekit.models import resnet20
from prunekit.solvers.base import Solver, check_fit
from prunekit.training import Schedule, fit
from scripts.bench.ratios import Row, below, ratio, row, seconds

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
    "ADMM": partial(solvers.ADMM, inner=CYCLE),
    "AULM": partial(solvers.AULM, inner=CYCLE),
    "PALM": solvers.PALM,
}
ROLES = ("first", "second")
TARGETS = {"filters": targets.Filters(), "scales": targets.Scales()}
NORMALIZE = Normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def rows(rounds: int) -> Iterator[Row]:
    """Yield every ratio with its bound, and the seconds that `prunekit --help` takes."""
    torch.set_flush_denormal(True)
    yield from penalty_steps(rounds)
    yield from hinge_steps(rounds)
    yield training_loop(rounds)
    yield data_path(rounds)
    yield start(rounds)


def penalty_steps(rounds: int) -> Iterator[Row]:
    """Compare steps under every penalty and solver, on filters and scales, with steps without.

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
                quotient = 1 + ratio(hooks, bare, rounds) / CYCLE
                what = f"step with {solver_name} {penalty_name} on {target_name} / without"
                yield _at_most(what, quotient)


def hinge_steps(rounds: int) -> Iterator[Row]:
    """Compare steps of Hinge's solver on a network with matrices with steps without it."""
    model, (x, y) = resnet20(), _batch()
    InsertMatrices.of(model, x[:1], Placement(blocks={"basic": ("rows", "rows")})).apply(model)
    model = model.to(memory_format=torch.channels_last)
    blocks = Matrices(balance=True).rows(model, ChannelGraph.trace(model, x[:1]))
    for name in ("L1", "Lp", "LogSum", "L1MinusL2"):
        solver = Hinge(annealing=Annealing())
        solver.bind(PENALTIES[name], blocks)
        roles = [[p for b in blocks if b.role == role for p in b.parameters] for role in ROLES]
        in_roles = {id(param) for role in roles for param in role}
        rest = [param for param in model.parameters() if id(param) not in in_roles]
        optimizer = torch.optim.SGD([{"params": part} for part in (rest, *roles)], lr=1e-3)
        _steps(model, optimizer, x, y, 1)
        bare = partial(_steps, model, optimizer, x, y, 1)
        quotient = 1 + ratio(partial(_hooks, solver, optimizer), bare, rounds) / CYCLE
        what = f"step with Hinge {name} on rows of matrices / without"
        yield _at_most(what, quotient)


def _at_most(what: str, quotient: float) -> Row:
    return row(what, quotient, "<= 1.10", quotient <= 1.10)


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
    """Compare the throughput of `fit` with that of bare steps on one fixed batch."""
    steps = 10
    x, y = _batch()
    batches = _Fixed(x, y, steps)
    data = Data(batches, _Fixed(x, y, 0), batches, 10, (3, 32, 32))
    schedule = Schedule(1, BATCH, partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    model = resnet20().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    bare = partial(_steps, model, optimizer, x, y, steps)
    quotient = ratio(bare, lambda: fit(model, data, schedule), rounds)
    return row("training loop / bare steps, throughput", quotient, ">= 0.90", quotient >= 0.90)


class _Fixed:
    """A source of batches that gives the same batch over and over."""

    def __init__(self, x: Tensor, y: Tensor, count: int) -> None:
        self.x, self.y, self.count, self.size = x, y, count, count * len(y)

    @property
    def labels(self) -> Tensor:
        return self.y.repeat(self.count)

    def steps(self, batch: int) -> int:
        return self.count

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        return iter([(self.x, self.y)] * self.count)

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return self.epoch(batch, None)


def data_path(rounds: int) -> Row:
    """Compare an epoch of augmented tensors with a DataLoader over the same augmentations."""
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
    quotient = ratio(lambda: list(plain), lambda: list(ours.epoch(BATCH, 0)), rounds)
    return row("tensor data path / plain DataLoader, throughput", quotient, "> 1", quotient > 1)


def start(rounds: int) -> Row:
    """Time `prunekit --help`, the one absolute figure."""
    command = [sys.executable, "-m", "prunekit", "--help"]
    times = [seconds(partial(subprocess.run, command, capture_output=True)) for _ in range(rounds)]
    return below("prunekit --help, seconds", min(times), 0.2)


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, 32, 32, generator=generator)
    y = torch.randint(0, 10, (BATCH,), generator=generator)
    return x.contiguous(memory_format=torch.channels_last), y
