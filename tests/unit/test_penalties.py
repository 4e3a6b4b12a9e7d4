"""Known values of the penalties: thresholds, plateaus, refusals, and an oracle of its own."""

import ast
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prunekit.errors import ConfigError
from prunekit.penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    L1MinusL2,
    LogSum,
    Lp,
    Penalty,
    RadialPenalty,
    TransformedL1,
)

THRESHOLDS = [  # the largest magnitude that the prox sends to zero; lam = 0.3
    (L0(0.3), 1, 0.774597),
    (L1(0.3), 1, 0.3),
    (Lp(0.3, 1 / 2), 1, 0.672211),
    (Lp(0.3, 2 / 3), 1, 0.598140),
    (Lp(0.3, 1 / 4), 1, 0.739235),
    (Lp(0.3, 3 / 4), 1, 0.548041),
    (TransformedL1(0.3, 0.1), 1, 0.762404),
    (TransformedL1(0.3, 0.5), 1, 0.698683),
    (TransformedL1(0.3, 1), 1, 0.595445),
    (TransformedL1(0.3, 2), 1, 0.45),
    (TransformedL1(0.3, 10), 1, 0.33),
    (MCP(0.3, 0.2), 1, 0.134164),
    (MCP(0.3, 0.5), 1, 0.212132),
    (MCP(0.3, 1), 1, 0.3),
    (MCP(0.3, 3), 1, 0.3),
    (SCAD(0.3, 3.7), 1, 0.3),
    (SCAD(0.3, 1.5), 3, 0.821584),
]
ORACLE = Path(__file__).resolve().parents[3] / "shared/methods/checks/prox_check.py"


@pytest.mark.parametrize(("penalty", "step", "threshold"), THRESHOLDS, ids=str)
def test_threshold(penalty: Penalty, step: float, threshold: float):
    """By bisection: the prox of a magnitude is zero up to one point and never after."""
    low, high = 0.0, 5.0
    for _ in range(40):
        middle = (low + high) / 2
        zero = float(penalty.prox(scalar(middle), step)) == 0
        low, high = (middle, high) if zero else (low, middle)
    assert high == pytest.approx(threshold, abs=1e-6)


def as_published(name: str, x: float, lam: float, a: float) -> tuple[float, float]:
    """The penalty and its derivative at x > 0, from the table of the specification."""
    if name == "l1":
        return lam * x, lam
    if name == "lp":
        return lam * x**a, lam * a / x ** (1 - a)
    if name == "tl1":
        return lam * (a + 1) * x / (a + x), lam * a * (a + 1) / (a + x) ** 2
    if name == "mcp":
        if x <= a * lam:
            return lam * x - x**2 / (2 * a), lam - x / a
        return a * lam**2 / 2, 0.0
    if x <= lam:
        return lam * x, lam
    if x <= a * lam:
        return (2 * a * lam * x - x**2 - lam**2) / (2 * (a - 1)), (a * lam - x) / (a - 1)
    return (a + 1) * lam**2 / 2, 0.0


PUBLISHED = [
    ("l1", L1(0.3), 0.0),
    *(("lp", Lp(0.3, p), p) for p in (0.25, 0.5, 0.75)),
    *(("tl1", TransformedL1(0.3, a), a) for a in (0.1, 0.5, 1.0, 10.0)),
    *(("mcp", MCP(0.3, a), a) for a in (0.2, 1.0, 5e3)),
    *(("scad", SCAD(0.3, a), a) for a in (1.5, 3.7, 5e3)),
]


@pytest.mark.parametrize(("name", "penalty", "a"), PUBLISHED, ids=str)
def test_values_and_derivatives_of_the_table(name: str, penalty: Penalty, a: float):
    for x in (1e-7, 1e-3, 0.05, 0.2, 0.3, 0.45, 0.5, 1.0, 2.0, 1e4):
        value, slope = as_published(name, x, 0.3, a)
        for sign in (1.0, -1.0):
            assert float(penalty.value(scalar(sign * x))) == pytest.approx(value, rel=1e-9)
            cases = float(penalty.subgradient(scalar(sign * x)))
            assert cases == pytest.approx(sign * slope, rel=1e-9, abs=1e-12)
    assert float(penalty.value(scalar(0.0))) == 0
    assert float(penalty.subgradient(scalar(0.0))) == 0


def test_limits_of_the_families():
    x = torch.linspace(0.01, 2, 50, dtype=torch.float64)[:, None]
    ell1, count = float(L1(0.3).value(x)), float(L0(0.3).value(x))
    assert float(TransformedL1(0.3, 1e7).value(x)) == pytest.approx(ell1, rel=1e-6)
    assert float(TransformedL1(0.3, 1e-9).value(x)) == pytest.approx(count, rel=1e-6)
    assert float(MCP(0.3, 1e8).value(x)) == pytest.approx(ell1, rel=1e-6)
    assert float(SCAD(0.3, 1e8).value(x)) == pytest.approx(ell1, rel=1e-6)
    assert float(Lp(0.3, 1 - 1e-9).value(x)) == pytest.approx(ell1, rel=1e-6)


@pytest.fixture(scope="module")
def oracle() -> ModuleType:
    """The functions of the shared check, without the minutes of work behind them."""
    if not ORACLE.is_file():
        pytest.skip("../shared/methods/checks/prox_check.py is not here")
    tree = ast.parse(ORACLE.read_text())
    kept = (ast.FunctionDef, ast.Import)
    tree.body = [node for node in tree.body if isinstance(node, kept)]
    spec = importlib.util.spec_from_loader("prox_check", None)
    module = importlib.util.module_from_spec(spec)
    exec(compile(tree, str(ORACLE), "exec"), vars(module))
    return module


def checked(oracle: ModuleType, lam: float) -> list[tuple[Penalty, object, object, dict]]:
    """Our penalty, their prox, their value, their settings, for every set that they check."""
    check, cases = oracle, []

    def add(penalty, prox, value, **settings):
        cases.append((penalty, prox, value, {"lam": lam, **settings}))

    add(L1(lam), check.prox_l1, check.P_l1)
    add(L0(lam), check.prox_l0, check.P_l0)
    add(Lp(lam, 0.5), check.prox_lhalf, lambda x, lam: check.P_lp(x, lam, 0.5))
    add(Lp(lam, 2 / 3), check.prox_l23, lambda x, lam: check.P_lp(x, lam, 2 / 3))
    for p in (0.25, 0.5, 2 / 3, 0.75, 0.9):
        add(Lp(lam, p), check.prox_lp_iter, check.P_lp, p=p)
    for a in (0.1, 0.5, 1.0, 2.0, 10.0):
        add(TransformedL1(lam, a), check.prox_tl1, check.P_tl1, a=a)
    for a in (0.2, 0.5, 1.0, 1.5, 3.0, 10.0):
        add(MCP(lam, a), check.prox_mcp, check.P_mcp, a=a)
    for a in (1.05, 1.5, 2.0, 2.5, 3.7, 10.0):
        add(SCAD(lam, a), check.prox_scad, check.P_scad, a=a)
    return cases


@pytest.mark.parametrize("lam", [0.05, 0.3, 1.0, 2.5])
@pytest.mark.parametrize("eta", [0.1, 1.0, 3.0])
def test_prox_against_the_shared_oracle(oracle: ModuleType, lam: float, eta: float):
    """Equal values, equal cost, and equal minimisers wherever there is only one."""
    v = torch.linspace(-6 * lam - 2, 6 * lam + 2, 173, dtype=torch.float64)
    for penalty, prox, value, settings in checked(oracle, lam):
        ours = penalty.prox(v[:, None], eta).flatten().numpy()
        theirs = prox(v.numpy(), eta=eta, **settings)
        costs = [0.5 * (x - v.numpy()) ** 2 + eta * value(x, **settings) for x in (ours, theirs)]
        assert abs(costs[0] - costs[1]).max() < 1e-11, penalty
        total = value(v.numpy(), **settings).sum()
        assert float(penalty.value(v[:, None])) == pytest.approx(total, rel=1e-12)
        elsewhere = abs(ours - theirs) > 1e-6
        assert elsewhere.sum() <= 4, penalty  # ties at a jump, where both are minimal


CONCAVE = [
    *((Lp(0.4, p, eps=0.05), None) for p in (0.25, 0.75)),
    *((TransformedL1(0.4, a), a**2 / (0.8 * (a + 1))) for a in (0.1, 1.0, 10.0)),
    (MCP(0.4, 0.7), 0.7),
    (SCAD(0.4, 1.5), 0.5),
    (SCAD(0.4, 3.7), 2.7),
    (LogSum(0.4, 0.1), 0.025),
]


@pytest.mark.parametrize(("penalty", "limit"), CONCAVE, ids=str)
def test_the_convex_step_is_the_largest(penalty: RadialPenalty, limit: float | None):
    """Second differences of the prox objective: none negative up to it, some beyond."""
    assert limit is None or penalty.convex_step == pytest.approx(limit)
    t = torch.linspace(0, 3, 60_001, dtype=torch.float64)
    for factor, convex in ((0.99, True), (1.01, False)):
        cost = t.square() / (2 * factor * penalty.convex_step) + penalty.phi(t)
        assert bool((cost.diff().diff() >= -1e-13).all()) == convex


def test_where_there_is_no_largest_convex_step():
    assert L1(0.3).convex_step == TransformedL1(0.0, 1.0).convex_step == math.inf
    assert L0(0.3).convex_step == Lp(0.3).convex_step == L1MinusL2(0.3).convex_step == 0


def test_flat_parts_begin_where_the_slope_ends():
    for penalty in (MCP(0.3, 2.0), SCAD(0.3, 3.7)):
        at = penalty.flat_from
        assert float(penalty.subgradient(scalar(at))) == pytest.approx(0, abs=1e-15)
        assert float(penalty.subgradient(scalar(0.99 * at))) > 0
    assert L1(0.3).flat_from == TransformedL1(0.3, 1.0).flat_from == math.inf


def test_lp_with_eps_is_lp_where_eps_is_small_and_bounded_at_zero():
    plain, smooth = Lp(0.3, 0.5), Lp(0.3, 0.5, eps=1e-8)
    for x in (1.0, 0.01):
        assert float(smooth.subgradient(scalar(x))) == pytest.approx(
            float(plain.subgradient(scalar(x))), rel=1e-6
        )
    assert float(smooth.subgradient(scalar(1e-300))) == pytest.approx(0.3 * 0.5 * 1e4)
    assert float(Lp(0.3, 0.5, eps=0.1).value(scalar(0.0))) == 0
    assert SCAD(0.1, 2.0).remark and SCAD(0.1, 2.1).remark is None


def scalar(value: float) -> torch.Tensor:
    return torch.tensor([[value]], dtype=torch.float64)


def test_values_at_known_points():
    assert float(TransformedL1(0.3, 2.0).value(scalar(-1.0))) == pytest.approx(0.3)
    assert float(MCP(0.3, 2.0).value(scalar(5.0))) == pytest.approx(2.0 * 0.09 / 2)
    assert float(SCAD(0.3, 3.7).value(scalar(-5.0))) == pytest.approx(4.7 * 0.09 / 2)
    assert float(LogSum(0.3, 0.1).value(scalar(0.1))) == pytest.approx(0.3 * 0.6931471805599453)
    assert float(L0(0.3).value(torch.tensor([[0.0, 0.0], [0.0, 1e-9]]))) == pytest.approx(0.3)
    assert float(L1(0.5).value(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))) == pytest.approx(2.5)
    assert float(L1MinusL2(1.0).value(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))) == pytest.approx(2)
    assert float(L1MinusL2(1.0).value(torch.zeros(2, 2))) == 0.0


@pytest.mark.parametrize(
    ("penalty", "kinks"), [(MCP(0.3, 2.0), [0.6]), (SCAD(0.3, 3.7), [0.3, 1.11])], ids=str
)
def test_value_and_slope_have_no_jumps(penalty: RadialPenalty, kinks: list[float]):
    for kink in kinks:
        t = torch.tensor([kink - 1e-9, kink + 1e-9], dtype=torch.float64)
        assert float(penalty.phi(t).diff().abs()) < 1e-8
        assert float(penalty.slope(t).diff().abs()) < 1e-8


def test_large_magnitudes_are_left_alone_by_mcp_and_scad():
    for penalty in (MCP(0.3, 2.0), SCAD(0.3, 3.7)):
        assert float(penalty.prox(scalar(4.0), 1.0)) == 4.0
        assert float(penalty.subgradient(scalar(4.0))) == 0.0


def test_tiny_steps_shrink_by_the_right_amount_in_float32():
    rows = torch.tensor([[0.003], [-0.002]])
    shrunk = (rows - Lp(1e-4, 0.5).prox(rows, 1e-3)).abs().flatten().double()
    expected = 1e-3 * 1e-4 * 0.5 * rows.abs().flatten().double() ** -0.5
    assert torch.allclose(shrunk, expected, rtol=0.02)


@pytest.mark.parametrize(
    "penalty",
    [L0(0), L1(0), Lp(0), TransformedL1(0), MCP(0, 2), SCAD(0, 3), LogSum(0, 0.1), L1MinusL2(0)],
    ids=str,
)
def test_no_strength_no_change(penalty: Penalty):
    rows = torch.tensor([[0.3, -0.4], [0.0, 0.0], [5.0, 1.0]])
    assert torch.allclose(penalty.prox(rows, 0.7), rows)
    assert float(penalty.value(rows)) == 0.0


def test_l1_minus_l2_where_the_published_formula_breaks_down():
    penalty = L1MinusL2(1.0)
    assert penalty.prox(torch.zeros(3, 1), 1.0).flatten().tolist() == [0, 0, 0]
    ties = torch.tensor([[0.5], [0.5], [0.2]])
    assert penalty.prox(ties, 1.0).flatten().tolist() == [0.5, 0, 0]
    at_threshold = torch.tensor([[0.5], [1.0]])
    assert penalty.prox(at_threshold, 1.0).flatten().tolist() == [0, 1.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(-0.1), "lam=-0.1 must be at least 0"),
        (lambda: Lp(0.1, 1.0), "p=1.0 must be below 1"),
        (lambda: Lp(0.1, 0.0), "p=0.0 must be above 0"),
        (lambda: Lp(0.1, 0.5, eps=-1), "eps=-1 must be at least 0"),
        (lambda: TransformedL1(0.1, 0), "a=0 must be above 0"),
        (lambda: MCP(0.1, 0), "gamma=0 must be above 0"),
        (lambda: SCAD(0.1, 1), "a=1 must be above 1"),
        (lambda: LogSum(0.1, -1), "eps=-1 must be above 0"),
        (lambda: L0("0.1"), "lam='0.1' is not a finite number"),
    ],
)
def test_bad_settings_are_refused_where_they_are_given(make, message: str):
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_step_of_zero_is_refused():
    with pytest.raises(ConfigError, match="step=0 must be above 0"):
        L1(0.1).prox(torch.ones(2, 2), 0)
