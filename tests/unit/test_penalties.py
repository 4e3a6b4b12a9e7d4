"""Known values of the penalties: thresholds, plateaus, refusals."""

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


@pytest.mark.parametrize(("penalty", "step", "threshold"), THRESHOLDS, ids=str)
def test_threshold(penalty: Penalty, step: float, threshold: float):
    near = threshold + torch.tensor([[-2e-6], [2e-6]], dtype=torch.float64)
    below, above = penalty.prox(near, step).flatten()
    assert below == 0
    assert above > 0


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
