"""Strengths that fit a schedule: real solvers, without a loss, empty about half of the rows."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from torch import nn

from prunekit.errors import ConfigError
from prunekit.penalties import L0, L1, MCP, SCAD, L1MinusL2, LogSum, Lp, Penalty, TransformedL1
from prunekit.rows import Rows, Slice
from prunekit.solvers import AULM, PALM, Proximal, Solver, Subgradient, fitting_strength
from prunekit.targets import Filters
from prunekit.training import Cosine, FittedRegularizer, Regularizer, Schedule, Steps

PENALTIES = {
    "l1": L1(1.0),
    "l0": L0(1.0),
    "lp": Lp(1.0),
    "tl1": TransformedL1(1.0),
    "mcp": MCP(1e-4, gamma=3e4),
    "scad": SCAD(1e-4, a=3e4),
    "logsum": LogSum(1.0, eps=0.1),
    "l1 - l2": L1MinusL2(1.0),
}
SOLVERS = {
    "proximal": Proximal(),
    "rarely": Proximal(every=7),
    "palm": PALM(),
    "aulm": AULM(),
}
SCHEDULES = {
    "constant": Schedule(5, 32, partial(torch.optim.SGD, lr=0.02)),
    "momentum": Schedule(4, 32, partial(torch.optim.SGD, lr=0.01, momentum=0.9)),
    "cosine": Schedule(6, 32, partial(torch.optim.SGD, lr=0.05), Cosine(warmup=0.2)),
    "steps": Schedule(6, 32, partial(torch.optim.SGD, lr=0.05), Steps((0.5,))),
}
BATCHES = 40


def rows_of(count: int = 200, features: int = 5) -> tuple[nn.Parameter, Rows]:
    """Rows with norms between 0.5 and 1.5, in random directions."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(count, features, generator=generator)
    norms = torch.linspace(0.5, 1.5, count)[torch.randperm(count, generator=generator)]
    param = nn.Parameter(weight / weight.norm(dim=1, keepdim=True) * norms[:, None])
    return param, Rows("fc", (Slice(param),), torch.arange(1, count + 1))


def run(penalty: Penalty, solver: Solver, schedule: Schedule) -> torch.Tensor:
    """Run the solver as training does, with gradients of zero; return its solution."""
    param, block = rows_of()
    lam = fitting_strength(penalty, [block], solver.prox_lengths(*schedule.rates(BATCHES)))
    solver = copy.deepcopy(solver)
    solver.bind(penalty.with_strength(lam), [block])
    optimizer = schedule.optimizer([param])
    solver.expect(schedule.epochs * BATCHES, optimizer)
    rate = optimizer.param_groups[0]["lr"]
    for step in range(schedule.epochs * BATCHES):
        factor = schedule.decay.factor(step / BATCHES, schedule.epochs)
        optimizer.param_groups[0]["lr"] = rate * factor
        param.grad = torch.zeros_like(param)
        solver.before_step(optimizer)
        optimizer.step()
        solver.after_step(optimizer)
    return solver.solution()[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_penalty_alone_empties_about_half(penalty, solver, schedule):
    solution = run(PENALTIES[penalty], SOLVERS[solver], SCHEDULES[schedule])
    zero = (solution == 0).all(dim=1)
    assert 0.15 <= float(zero.float().mean()) <= 0.8


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_subgradient_brings_half_of_the_rows_near_zero(schedule):
    solution = run(L1(1.0), Subgradient(threshold=0.0), SCHEDULES[schedule])
    near = solution.norm(dim=1) < 0.1
    assert 0.4 <= float(near.float().mean()) <= 0.7


def test_the_strength_of_l1_is_the_median_over_the_length_of_all_steps():
    _, block = rows_of()
    assert fitting_strength(L1(7.0), [block], [0.01] * 300) == pytest.approx(1.0 / 3, rel=0.05)
    assert fitting_strength(L1(7.0), [block], [0.01] * 30_000) == pytest.approx(1.0 / 300, rel=0.05)


def test_a_weight_counts_as_longer_steps():
    _, block = rows_of()
    heavy = Rows("fc", block.slices, block.units, weight=4.0)
    assert fitting_strength(L1(1.0), [heavy], [0.01] * 300) == pytest.approx(1.0 / 12, rel=0.05)


def test_published_slimming_gets_about_its_published_strength():
    """160 epochs of 782 batches, 0.1 divided by ten at a half and at three quarters; scales 0.5."""
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    schedule = Schedule(160, 64, optimizer, Steps((0.5, 0.75)))
    rates, momentum = schedule.rates(782)
    assert sum(rates) == pytest.approx(782 * (80 * 0.1 + 40 * 0.01 + 40 * 0.001))
    scales = nn.Parameter(torch.full((64,), 0.5))
    block = Rows("bn", (Slice(scales),), torch.arange(1, 65))
    lengths = Proximal().prox_lengths(rates, momentum)
    assert 0.5e-4 < fitting_strength(L1(1.0), [block], lengths) < 2e-4


def test_a_regularizer_chooses_what_fits_half_of_its_schedule():
    _, block = rows_of()
    schedule = Schedule(5, 32, partial(torch.optim.SGD, lr=0.02), accumulate=2)
    fitted = FittedRegularizer(L1(1.0), Filters(), Proximal())
    solver, (note,) = fitted.bind([block], schedule, 2 * BATCHES)
    assert solver.penalty.lam == pytest.approx(1.0 / (0.02 * 100), rel=0.05)
    assert f"regularizer.lam={solver.penalty.lam:g} was chosen" in note and "200 steps" in note
    given, notes = Regularizer(L1(0.3), Filters(), Proximal()).bind([block], schedule, BATCHES)
    assert given.penalty.lam == 0.3 and notes == ()


def test_a_penalty_that_turns_flat_does_so_at_the_same_norm_whatever_its_strength():
    for penalty in (MCP(0.1, gamma=20.0), SCAD(0.1, a=20.0)):
        assert penalty.with_strength(0.4).flat_from == pytest.approx(2.0)
        assert penalty.with_strength(0.4).lam == 0.4


def test_no_strength_fits_a_run_without_steps():
    _, block = rows_of()
    nothing = Schedule(0, 32, partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(
        ConfigError, match=r"no strength of L1 fits 0 epochs .* set regularizer\.lam"
    ):
        FittedRegularizer(L1(1.0), Filters(), Proximal()).bind([block], nothing, 9)
    param = nn.Parameter(torch.zeros(4, 2))
    zeros = Rows("fc", (Slice(param),), torch.arange(1, 5))
    assert fitting_strength(L1(1.0), [zeros], [0.1] * 10) is None
