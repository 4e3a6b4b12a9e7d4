"""What solvers promise besides the optimum: zeros, refusals, stop rules, states."""

import logging

import pytest
import torch
from torch import nn

from prunekit.errors import ArtifactError, ConfigError
from prunekit.penalties import L0, L1, MCP, SCAD, LogSum, Lp, TransformedL1
from prunekit.rows import Rows, Slice
from prunekit.solvers import ADMM, AULM, PALM, KeepZeros, Proximal, Solver, Subgradient, check_fit

torch.set_num_threads(1)


def block_of(rows: list[list[float]], name: str = "layer", weight: float = 1.0) -> Rows:
    param = nn.Parameter(torch.tensor(rows))
    return Rows(name, (Slice(param),), torch.arange(1, len(rows) + 1), weight)


def bound(solver: Solver, *blocks: Rows, penalty=None) -> Solver:
    solver.bind(penalty or L1(0.1), list(blocks))
    return solver


def sgd(*blocks: Rows, lr: float = 0.1, **options) -> torch.optim.SGD:
    return torch.optim.SGD([param for b in blocks for param in b.parameters], lr=lr, **options)


def still(block: Rows, solver: Solver, steps: int, lr: float = 0.0) -> None:
    """Steps in which the loss has no gradient."""
    optimizer = sgd(block, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        solver.before_step(optimizer)
        optimizer.step()
        solver.after_step(optimizer)


def test_subgradient_refuses_l0_and_says_what_to_do():
    with pytest.raises(
        ConfigError,
        match=r"solver Subgradient needs subgradient, which penalty L0 does not offer "
        r"\(only prox\); choose another solver or penalty",
    ):
        check_fit(Subgradient(), L0(0.1))
    with pytest.raises(ConfigError, match="needs subgradient"):
        bound(Subgradient(), block_of([[1.0]]), penalty=L0(0.1))


def test_equal_settings_make_equal_solvers():
    assert AULM(inner=3) == AULM(inner=3) != AULM(inner=4)
    assert Proximal(2) == Proximal(2)
    assert ADMM() != AULM()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AULM(rho=0), "rho=0 must be above 0"),
        (lambda: AULM(inner=0), "inner=0 must be at least 1"),
        (lambda: AULM(r=2.0), "r=2.0 must be at least 3"),
        (lambda: AULM(patience=-1), "patience=-1 must be at least 0"),
        (lambda: AULM(max_outer=1.5), "max_outer=1.5 is not a whole number"),
        (lambda: PALM(beta=0), "beta=0 must be above 0"),
        (lambda: PALM(spread=1), "spread=1 must be below 1"),
        (lambda: PALM(seed=-1), "seed=-1 must be at least 0"),
        (lambda: Proximal(every=0), "every=0 must be at least 1"),
        (lambda: Subgradient(threshold=-1.0), "threshold=-1.0 must be at least 0"),
    ],
)
def test_bad_settings_are_refused(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


def test_subgradient_adds_the_weighted_slope_to_the_gradient():
    block = block_of([[3.0, 4.0], [0.0, 0.0]], weight=2.0)
    solver = bound(Subgradient(), block)
    block.parameters[0].grad = torch.ones(2, 2)
    solver.before_step(sgd(block))
    expected = torch.tensor([[1 + 0.2 * 0.6, 1 + 0.2 * 0.8], [1.0, 1.0]])
    assert torch.allclose(block.parameters[0].grad, expected)


def test_subgradient_counts_rows_far_below_the_median_as_zero():
    rows = [[1.0, 0.0], [2.0, 0.0], [0.0, 1e-4], [3.0, 1.0]]
    block = block_of(rows)
    solver = bound(Subgradient(threshold=1e-3), block)
    assert (solver.solution()[0] != 0).any(dim=1).tolist() == [True, True, False, True]
    assert block.read()[2, 1] != 0
    solver.finish()
    assert (block.read() != 0).any(dim=1).tolist() == [True, True, False, True]
    untouched = block_of(rows)
    bound(Subgradient(threshold=0), untouched).finish()
    assert torch.equal(untouched.read(), torch.tensor(rows))


def test_proximal_shrinks_by_rate_times_weight_times_every():
    block = block_of([[3.0, 4.0], [0.03, 0.0]], weight=2.0)
    solver, optimizer = bound(Proximal(every=2), block), sgd(block, lr=0.5)
    before = block.read()
    solver.after_step(optimizer)
    assert torch.equal(block.read(), before)
    solver.after_step(optimizer)
    shrink = 0.1 * 0.5 * 2.0 * 2
    assert float(block.read()[0].norm()) == pytest.approx(5 - shrink)
    assert block.read()[1].tolist() == [0, 0]


def test_proximal_uses_the_rate_of_the_owner_and_survives_a_rate_of_zero():
    fast, slow = block_of([[1.0]], "fast"), block_of([[1.0]], "slow")
    solver = bound(Proximal(), fast, slow, penalty=L1(1.0))
    groups = [{"params": fast.parameters, "lr": 0.5}, {"params": slow.parameters, "lr": 0.0}]
    solver.after_step(torch.optim.SGD(groups, lr=1.0))
    assert (float(fast.read()), float(slow.read())) == (0.5, 1.0)


def test_an_optimizer_without_the_parameters_is_refused():
    block, other = block_of([[1.0]], "conv1"), block_of([[1.0]])
    with pytest.raises(ConfigError, match="does not train conv1"):
        bound(Proximal(), block).after_step(sgd(other))


def test_aulm_pulls_to_the_start_before_the_first_outer_step():
    block = block_of([[1.0, 2.0]])
    solver = bound(AULM(rho=2.0), block)
    block.write(torch.tensor([[1.5, 2.0]]))
    solver.before_step(sgd(block))
    assert block.parameters[0].grad.tolist() == [[1.0, 0.0]]


def test_a_row_that_sums_to_zero_is_not_a_zero_row():
    block = block_of([[3.0, -3.0], [0.01, 0.01]])
    solver = bound(AULM(inner=1), block, penalty=L0(0.1))
    still(block, solver, 1)
    solver.finish()
    assert (block.read() != 0).any(dim=1).tolist() == [True, False]


def test_stop_rules_are_off_by_default_and_switched_on_by_numbers():
    rows = [[3.0, 4.0], [0.01, 0.0]]
    block = block_of(rows)
    solver = bound(AULM(inner=1), block, penalty=L0(0.1))
    still(block, solver, 50)
    assert not solver.done
    for rule, steps in (({"max_outer": 4}, 4), ({"patience": 5}, 6), ({"tol": 1e-3}, None)):
        block = block_of(rows)
        solver = bound(AULM(inner=1, **rule), block, penalty=L0(0.1))
        taken = 0
        while not solver.done and taken < 50:
            still(block, solver, 1)
            taken += 1
        assert solver.done
        assert steps is None or taken == steps


def test_an_unchanged_support_without_any_zero_row_does_not_stop():
    block = block_of([[3.0, 4.0], [1.0, 1.0]])
    solver = bound(AULM(inner=1, patience=2), block, penalty=L0(1e-6))
    still(block, solver, 10)
    assert not solver.done


def test_aulm_warns_once_when_the_weights_cannot_follow(caplog: pytest.LogCaptureFixture):
    block = block_of([[3.0, 4.0]])
    with caplog.at_level(logging.WARNING, logger="prunekit"):
        still(block, bound(AULM(inner=10), block), 25, lr=0.001)
    assert len(caplog.records) == 1
    assert "0.01 is below 5" in caplog.text
    assert "raise inner=10 or rho=1" in caplog.text
    caplog.clear()
    still(block, bound(AULM(inner=50), block), 5, lr=0.1)
    assert not caplog.records


def test_palm_starts_around_the_rows_and_keeps_zeros_and_directions():
    rows = torch.tensor([[3.0, -4.0], [0.0, 0.0], [0.5, 0.5]])
    first, second = (bound(PALM(spread=0.1, seed=s), block_of(rows.tolist())) for s in (0, 0))
    copy = first.solution()[0]
    assert torch.equal(copy, second.solution()[0])
    other = bound(PALM(spread=0.1, seed=1), block_of(rows.tolist())).solution()[0]
    assert not torch.equal(copy, other)
    assert (copy[1] == 0).all()
    factors = copy[[0, 2]] / rows[[0, 2]]
    assert torch.allclose(factors[:, 0], factors[:, 1])
    assert ((factors - 1).abs() < 0.1).all() and (factors != 1).all()
    exact = bound(PALM(spread=0.0), block_of(rows.tolist())).solution()[0]
    assert torch.equal(exact, rows)


def test_palm_finishes_with_the_zeros_of_the_copy_and_trained_survivors():
    block = block_of([[0.5], [0.001], [-0.5]])
    solver = bound(PALM(beta=1.0), block, penalty=L1(0.1))
    still(block, solver, 3, lr=0.1)
    before = block.read()
    assert (before != 0).all()
    assert (solver.solution()[0] != 0).flatten().tolist() == [True, False, True]
    assert solver.metrics()["rows"] == 2
    solver.finish()
    assert block.read().flatten().tolist() == [before[0, 0], 0, before[2, 0]]


def test_palm_uses_the_rate_of_the_owner_and_stands_still_without_one(caplog):
    fast, slow = block_of([[1.0]], "fast"), block_of([[1.0]], "slow")
    solver = bound(PALM(beta=1.0, spread=0.0), fast, slow, penalty=L1(1.0))
    groups = [{"params": fast.parameters, "lr": 1.0}, {"params": slow.parameters, "lr": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    with caplog.at_level(logging.WARNING, logger="prunekit"):
        solver.after_step(optimizer)
        solver.after_step(optimizer)
    # first K and F are both 1, F shrinks by 1 / (1 + 1); then K moves half way to it
    assert [float(block.read()) for block in (fast, slow)] == [0.75, 1.0]
    assert [float(rows) for rows in solver.solution()] == [pytest.approx(0.125), 1.0]
    assert caplog.messages == ["the rate of slow is 0: neither it nor its copy moves"]


class Warned:
    """Warnings of prunekit, gathered while a test runs."""

    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING, logger="prunekit")
        self.caplog = caplog

    def on(self, solver: Solver, penalty, block: Rows, lr: float = 0.1, steps: int = 2) -> str:
        self.caplog.clear()
        still(block, bound(solver, block, penalty=penalty), steps, lr=lr)
        return "\n".join(self.caplog.messages)


@pytest.mark.parametrize("solver", [Subgradient(), Proximal(), AULM(rho=20.0), PALM()], ids=str)
def test_a_penalty_that_is_flat_everywhere_is_named(caplog, solver: Solver):
    warned, half = Warned(caplog), [[0.5], [0.7], [-0.9], [0.6]]
    for penalty, setting in ((MCP(1e-4, 100.0), "gamma"), (SCAD(1e-4, 100.0), "a")):
        assert (
            f"{type(penalty).__name__} is flat from 0.01 on and the smallest of 4 rows is 0.5: it "
            f"does nothing; raise {setting}"
        ) in warned.on(solver, penalty, block_of(half))
    assert "flat from 0.65 on, so it does nothing to 50%" not in warned.on(
        solver, MCP(1e-4, 6500.0), block_of(half)
    )
    assert "flat from 0.55 on, so it does nothing to 75% of 4 rows" in warned.on(
        solver, MCP(1e-4, 5500.0), block_of(half)
    )


def test_what_works_is_not_warned_about(caplog):
    warned, rows = Warned(caplog), [[0.5], [0.7], [0.0]]
    for solver in (Subgradient(), Proximal(), AULM(rho=20.0), PALM(), KeepZeros()):
        for penalty in (L1(0.1), Lp(0.1), TransformedL1(0.01), MCP(0.1, 20.0), SCAD(0.1, 20.0)):
            assert warned.on(solver, penalty, block_of(rows)) == ""
    for penalty in (MCP(0.0, 2.0), SCAD(0.0, 3.0)):
        assert warned.on(Subgradient(), penalty, block_of(rows)) == ""
    for solver in (Proximal(), AULM(rho=20.0), PALM()):  # jumps are the nature of these
        for penalty in (L0(0.1), Lp(0.9, 0.25)):
            assert warned.on(solver, penalty, block_of(rows), lr=1.0) == ""
    assert (
        warned.on(KeepZeros(), MCP(1e-4, 1.0), block_of(rows)) == ""
    )  # it only reports the penalty


@pytest.mark.parametrize(
    ("solver", "penalty", "numbers", "mend"),
    [
        (Proximal(every=4), MCP(10.0, 0.5), "step 0.8 is above 0.5", "lower the learning rate or"),
        (AULM(rho=5.0, inner=2), SCAD(10.0, 1.2), "step 0.4 is above 0.2", "raise rho or raise a"),
        (PALM(beta=5.0), TransformedL1(9.0, 0.5), "step 0.133333 is above 0.00925926", "raise a"),
        (PALM(beta=5.0), LogSum(9.0, 0.5), "step 0.133333 is above 0.0277778", "raise eps"),
        (Proximal(), Lp(9.0, 0.5, eps=0.01), "step 0.2 is above 0.000444444", "raise eps"),
    ],
    ids=str,
)
def test_a_step_beyond_the_convex_regime_is_named_once(caplog, solver, penalty, numbers, mend):
    block = block_of([[0.5], [1.0]], weight=2.0)
    text = Warned(caplog).on(solver, penalty, block, lr=0.1, steps=8)
    lines = [line for line in text.splitlines() if "convex" in line or "step" in line]
    found = [line for line in lines if numbers in line and mend in line]
    assert len(found) == 1 and sum("the prox step" in line for line in lines) == 1


def test_scad_below_its_definition_is_remarked(caplog):
    block = block_of([[0.01], [0.02]])
    text = Warned(caplog).on(Subgradient(), SCAD(0.1, 1.5), block)
    assert text == "SCAD is defined for a > 2; with a=1.5 its prox of step 1 jumps"


def test_subgradient_under_momentum_is_the_published_rule():
    """grad += lam sgn(gamma) before the step, so momentum and weight decay act on both."""
    start = torch.tensor([0.5, -0.2, 0.0, 0.01], dtype=torch.float64)
    pulls = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale = nn.Parameter(start.clone())
    solver = bound(Subgradient(), Rows("norm", (Slice(scale),), torch.arange(1, 5)))
    optimizer = torch.optim.SGD([scale], lr=0.05, momentum=0.9, weight_decay=0.01)
    expected, velocity = start.clone(), torch.zeros(4, dtype=torch.float64)
    for pull in pulls:
        scale.grad = pull.clone()
        solver.before_step(optimizer)
        optimizer.step()
        solver.after_step(optimizer)
        velocity = 0.9 * velocity + pull + 0.1 * torch.sign(expected) + 0.01 * expected
        expected = expected - 0.05 * velocity
        assert torch.allclose(scale.detach(), expected, atol=1e-14)


def test_metrics_count_rows_and_the_gap():
    block = block_of([[3.0, 4.0], [0.01, 0.0]])
    solver = bound(AULM(inner=1), block, penalty=L1(0.1))
    still(block, solver, 1)
    metrics = solver.metrics()
    assert metrics["rows"] == metrics["rows/layer"] == 1
    assert metrics["penalty"] == pytest.approx(0.49)
    assert metrics["gap"] == pytest.approx((0.01 + 0.0001) ** 0.5 / 5.00001, rel=1e-4)
    assert metrics["outer"] == 1


def test_metrics_tell_which_share_of_the_parameters_is_small():
    scales = block_of([[0.5], [-0.005], [5e-5]], "bn1")
    filters = block_of([[3e-6, 4e-6]], "conv")  # a row is small when its norm is
    metrics = bound(Subgradient(), scales, filters).metrics()
    shares = {key: value for key, value in metrics.items() if key.startswith("below/")}
    assert shares == {
        **{"below/1e-02": 0.75, "below/1e-03": 0.5, "below/1e-04": 0.5},
        **{"below/1e-05": 0.25, "below/1e-06": 0.0},
    }


def test_a_state_of_other_rows_is_refused():
    state = bound(AULM(), block_of([[1.0, 2.0]])).state_dict()
    with pytest.raises(ArtifactError, match=r"state of conv1 is \(1, 2\), not \(2, 2\)"):
        bound(AULM(), block_of([[1.0, 2.0], [1.0, 1.0]], "conv1")).load_state_dict(state)
    two = bound(AULM(), block_of([[1.0, 2.0]]), block_of([[1.0]]))
    with pytest.raises(ArtifactError, match="has 1 blocks of rows, the target 2"):
        two.load_state_dict(state)


def test_hold_keeps_zero_rows_zero_under_momentum_and_weight_decay():
    block = block_of([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]])
    optimizer = sgd(block, momentum=0.9)
    block.parameters[0].grad = torch.ones(3, 2)
    optimizer.step()  # leaves momentum behind in the rows that will be held
    block.write(torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]]))
    solver = bound(KeepZeros(), block, penalty=L0(0.0))
    for _ in range(3):
        block.parameters[0].grad = torch.ones(3, 2)
        solver.before_step(optimizer)
        assert block.parameters[0].grad[1].tolist() == [0, 0]
        optimizer.step()
        solver.after_step(optimizer)
        assert block.read()[1].tolist() == [0, 0]
    assert block.read()[2, 0] != 0


def test_hold_restores_its_mask_whatever_it_was_bound_to():
    entries = nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, 2.0]]))
    block = Rows("layer", (Slice(entries, None),), torch.zeros(4, dtype=torch.long))
    state = bound(KeepZeros(), block).state_dict()
    block.write(torch.ones(4, 1))
    solver = bound(KeepZeros(), block)
    solver.load_state_dict(state)
    solver.after_step(sgd(block))
    assert entries.tolist() == [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    "solver", [AULM(inner=2), PALM(), Proximal(), Subgradient(), KeepZeros()], ids=str
)
def test_solvers_work_where_the_parameters_are(solver: Solver):
    """The meta device stands in for an accelerator: mixing devices fails on it."""
    weight = nn.Parameter(torch.empty(4, 3, device="meta"))
    block = Rows("layer", (Slice(weight, 1),), torch.arange(3))
    bound(solver, block)
    for _ in range(4):
        solver.before_step(sgd(block))
        solver.after_step(sgd(block))
