"""On a convex problem every solver that has exact zeros finds the group lasso."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from prunekit.penalties import L0, L1, MCP, Lp, Penalty, TransformedL1
from prunekit.rows import Rows, Slice
from prunekit.solvers import ADMM, AULM, PALM, Proximal, Solver, Subgradient

torch.set_num_threads(1)

EXAMPLES, INPUTS, OUTPUTS, LAM = 120, 6, 8, 0.35


class Toy:
    """Least squares with row-sparse truth: loss |X K' - Z|^2 / (2 n), trained full-batch."""

    def __init__(self, seed: int = 1) -> None:
        draw = torch.Generator().manual_seed(seed)
        options = {"generator": draw, "dtype": torch.float64}
        strength = torch.linspace(0, 1.2, OUTPUTS, dtype=torch.float64)[:, None]
        truth = torch.randn(OUTPUTS, INPUTS, **options) * strength * 0.6
        self.X = torch.randn(EXAMPLES, INPUTS, **options)
        self.Z = self.X @ truth.T + 0.3 * torch.randn(EXAMPLES, OUTPUTS, **options)
        self.layer = nn.Linear(INPUTS, OUTPUTS, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.layer.weight.copy_(torch.linalg.lstsq(self.X, self.Z).solution.T)
        units = torch.arange(1, OUTPUTS + 1)
        self.block = Rows("layer", (Slice(self.layer.weight),), units, weight=0.5)

    def loss(self, K: Tensor) -> Tensor:
        return (self.X @ K.T - self.Z).square().sum() / (2 * EXAMPLES)

    def objective(self, K: Tensor, lam: float = LAM) -> float:
        return float(self.loss(K) + lam * K.norm(dim=1).sum())

    def optimum(self, lam: float = LAM) -> Tensor:
        """Group lasso by accelerated proximal gradient, written without the package."""
        G, B = self.X.T @ self.X / EXAMPLES, self.X.T @ self.Z / EXAMPLES
        L = float(torch.linalg.eigvalsh(G).max())
        K = torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
        y, t = K, 1.0
        for _ in range(3000):
            moved = y - (y @ G - B.T) / L
            size = moved.norm(dim=1, keepdim=True)
            new = moved * (1 - lam / L / size.clamp_min(1e-12)).clamp_min(0)
            t_new = (1 + (1 + 4 * t * t) ** 0.5) / 2
            y, K, t = new + (t - 1) / t_new * (new - K), new, t_new
        return K

    def train(self, solver: Solver, steps: int, lr: float = 0.2, optimizer=None):
        optimizer = optimizer or torch.optim.SGD(self.layer.parameters(), lr=lr)
        for _ in range(steps):
            optimizer.zero_grad()
            self.loss(self.layer.weight).backward()
            solver.before_step(optimizer)
            optimizer.step()
            solver.after_step(optimizer)
        return optimizer


def bound(toy: Toy, solver: Solver, penalty=None) -> Solver:
    # the block has weight 1/2, so lam is doubled: a solver that ignores weights fails
    solver.bind(penalty or L1(2 * LAM), [toy.block])
    return solver


SOLVERS = [
    (AULM(inner=30), 3000, 0.2),
    (AULM(inner=30, rho=3.0), 3000, 0.2),
    (ADMM(inner=30), 3000, 0.2),
    (Proximal(), 1500, 0.2),
]


@pytest.mark.parametrize(("solver", "steps", "lr"), SOLVERS, ids=str)
def test_the_group_lasso_optimum_is_reached(solver: Solver, steps: int, lr: float):
    toy = Toy()
    best = toy.optimum()
    toy.train(bound(toy, solver), steps, lr)
    (solution,) = solver.solution()
    zero = (best == 0).all(dim=1)
    assert 0 < int(zero.sum()) < OUTPUTS
    assert torch.equal((solution == 0).all(dim=1), zero)
    assert toy.objective(solution) == pytest.approx(toy.objective(best), abs=1e-6)
    assert toy.objective(solution) >= toy.objective(best) - 1e-10


@pytest.mark.parametrize("solver", [AULM(inner=20), Proximal()], ids=str)
def test_the_optimum_of_a_general_convex_solver(solver: Solver):
    cvxpy = pytest.importorskip("cvxpy")
    toy = Toy(seed=3)
    K = cvxpy.Variable((OUTPUTS, INPUTS))
    fit = cvxpy.sum_squares(toy.X.numpy() @ K.T - toy.Z.numpy()) / (2 * EXAMPLES)
    problem = cvxpy.Problem(cvxpy.Minimize(fit + LAM * cvxpy.sum(cvxpy.norm(K, 2, axis=1))))
    problem.solve(solver="CLARABEL")
    toy.train(bound(toy, solver), 2000)
    assert toy.objective(solver.solution()[0]) == pytest.approx(problem.value, abs=1e-6)


def test_momentum_makes_the_loss_weigh_more_than_the_prox():
    """With momentum m the fixed point is the optimum for lam (1 - m)."""
    toy, solver = Toy(), Proximal()
    optimizer = torch.optim.SGD(toy.layer.parameters(), lr=0.1, momentum=0.5)
    toy.train(bound(toy, solver, L1(4 * LAM)), 600, optimizer=optimizer)
    assert torch.allclose(solver.solution()[0], toy.optimum(LAM), atol=1e-6)


def test_relaxation_starts_with_nothing_and_is_the_papers():
    """Two outer steps by hand, straight from SSR eq. 7-9 and 14, K held still by a rate of 0."""
    toy, solver = Toy(), AULM(inner=1, rho=2.0)
    bound(toy, solver)
    K = toy.block.read()

    def prox(T: Tensor) -> Tensor:
        size = T.norm(dim=1, keepdim=True)
        return T * ((size - LAM / 2.0).clamp_min(0) / size)

    optimizer = torch.optim.SGD(toy.layer.parameters(), lr=0.0)
    toy.train(solver, 1, optimizer=optimizer)
    F1 = prox(K)
    Y1 = 2.0 * (K - F1)
    assert torch.allclose(solver.Fhat[0], F1, atol=1e-12)
    assert torch.allclose(solver.Yhat[0], Y1, atol=1e-12)
    toy.train(solver, 1, optimizer=optimizer)
    F2 = prox(K + Y1 / 2.0)
    Y2 = Y1 + 2.0 * (K - F2)
    assert torch.allclose(solver.Fhat[0], F2 + (F2 - F1) / 4, atol=1e-12)
    assert torch.allclose(solver.Yhat[0], Y2 + (Y2 - Y1) / 4, atol=1e-12)
    optimizer.zero_grad()
    solver.before_step(optimizer)
    target = solver.Fhat[0] - solver.Yhat[0] / 2.0
    assert torch.allclose(toy.layer.weight.grad, 2.0 * (K - target), atol=1e-12)


def test_the_support_under_l20_is_that_of_the_first_update():
    toy, solver = Toy(), AULM(inner=20)
    bound(toy, solver, L0(0.5))
    alive = toy.block.read().norm(dim=1) > (2 * 0.5 * 0.5) ** 0.5
    assert 0 < int(alive.sum()) < OUTPUTS
    optimizer = None
    for _ in range(12):
        optimizer = toy.train(solver, 20, optimizer=optimizer)
        assert torch.equal((solver.solution()[0] != 0).any(dim=1), alive)


def test_finish_zeroes_the_rows_of_the_copy_and_keeps_trained_survivors():
    toy, solver = Toy(), AULM(inner=20)
    toy.train(bound(toy, solver), 600)
    K, F = toy.block.read(), solver.solution()[0]
    dead = (F == 0).all(dim=1)
    assert (K[dead] != 0).any()
    solver.finish()
    assert (toy.block.read()[dead] == 0).all()
    assert torch.equal(toy.block.read()[~dead], K[~dead])
    solver.finish()
    assert torch.equal(toy.block.read()[~dead], K[~dead])


BETA = 2.0


def relaxed_optimum(toy: Toy, pull: float = 1.0) -> tuple[Tensor, Tensor]:
    """Minimiser (K, F) of pull loss + LAM |F| + (BETA / 2) |K - F|^2, without the package.

    F is eliminated: what is left of the penalty is its Moreau envelope, whose gradient at K is
    BETA (K - F(K)), so plain gradient descent on K finds the minimum of a smooth convex function.
    """

    def shrunk(K: Tensor) -> Tensor:
        size = K.norm(dim=1, keepdim=True)
        return K * (1 - LAM / BETA / size.clamp_min(1e-12)).clamp_min(0)

    G, B = pull * toy.X.T @ toy.X / EXAMPLES, pull * toy.X.T @ toy.Z / EXAMPLES
    rate = 1 / (float(torch.linalg.eigvalsh(G).max()) + BETA)
    K = torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
    for _ in range(3000):
        K = K - rate * (K @ G - B.T + BETA * (K - shrunk(K)))
    return K, shrunk(K)


def relaxed(toy: Toy, penalty: Penalty, F: Tensor) -> float:
    """What PALM minimises; the toy's block has weight 1/2."""
    K = toy.block.read()
    coupling = BETA / 2 * (K - F).square().sum()
    return float(toy.loss(K) + toy.block.weight * penalty.value(F) + coupling)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_palm_reaches_the_optimum_of_the_relaxed_problem(momentum: float):
    """Momentum lengthens the steps for the loss alone, which then weighs 1 / (1 - momentum)."""
    toy, solver = Toy(), PALM(beta=BETA)
    best, sparse = relaxed_optimum(toy, pull=1 / (1 - momentum))
    optimizer = torch.optim.SGD(toy.layer.parameters(), lr=0.1, momentum=momentum)
    toy.train(bound(toy, solver), 1000, optimizer=optimizer)
    zero = (sparse == 0).all(dim=1)
    assert 0 < int(zero.sum()) < OUTPUTS
    assert torch.equal((solver.solution()[0] == 0).all(dim=1), zero)
    assert torch.allclose(toy.block.read(), best, atol=1e-6)
    assert torch.allclose(solver.solution()[0], sparse, atol=1e-6)


@pytest.mark.parametrize("rates", [[0.1] * 8, [0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.0, 0.001]])
def test_palm_is_the_published_iteration(rates: list[float]):
    """Scales of a quadratic loss, SGD with momentum and weight decay, in numpy from the text."""
    draw = np.random.default_rng(0)
    H = draw.normal(size=(12, 12))
    H, target = H @ H.T / 12, draw.normal(size=12)
    beta, lam, momentum, decay = 0.25, 0.3, 0.9, 1e-2

    scale = nn.Parameter(torch.full((12,), 0.5, dtype=torch.float64))
    block = Rows("norm", (Slice(scale),), torch.arange(1, 13))
    solver = PALM(beta=beta, seed=3)
    solver.bind(L1(lam), [block])
    gamma, xi = np.full(12, 0.5), solver.solution()[0].flatten().numpy()
    assert xi.min() >= 0.47 and xi.max() <= 0.53 and len(set(xi)) == 12
    velocity = np.zeros(12)
    optimizer = torch.optim.SGD([scale], lr=1.0, momentum=momentum, weight_decay=decay)
    Ht, goal = torch.tensor(H), torch.tensor(target)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (0.5 * (scale - goal) @ Ht @ (scale - goal)).backward()
        solver.before_step(optimizer)
        optimizer.step()
        solver.after_step(optimizer)

        velocity = momentum * velocity + H @ (gamma - target) + decay * gamma
        gamma = gamma - rate * velocity
        if rate:
            alpha = 1 / rate
            gamma = (alpha * gamma + beta * xi) / (alpha + beta)
            middle = (alpha * xi + beta * gamma) / (alpha + beta)
            xi = np.sign(middle) * np.maximum(np.abs(middle) - lam / (alpha + beta), 0)
        assert np.allclose(scale.detach().numpy(), gamma, atol=1e-13)
        assert np.allclose(solver.solution()[0].flatten().numpy(), xi, atol=1e-13)


@settings(max_examples=25, deadline=None)
@given(
    penalty=st.one_of(
        st.builds(L1, st.floats(0.05, 2.0)),
        st.builds(L0, st.floats(0.01, 1.0)),
        st.builds(Lp, st.floats(0.05, 1.0), st.sampled_from([0.25, 0.5, 0.75])),
        st.builds(TransformedL1, st.floats(0.05, 1.0), st.sampled_from([0.5, 1.0, 10.0])),
        st.builds(MCP, st.floats(0.05, 1.0), st.floats(0.5, 5.0)),
    ),
    lr=st.floats(0.02, 0.4),
    seed=st.integers(0, 100),
)
def test_palm_never_raises_its_objective(penalty: Penalty, lr: float, seed: int):
    """With alpha at least the curvature of the loss each of the two steps is a descent step."""
    toy, solver = Toy(seed), PALM(beta=BETA, seed=seed)
    solver.bind(penalty, [toy.block])
    curvature = float(torch.linalg.eigvalsh(toy.X.T @ toy.X / EXAMPLES).max())
    optimizer = torch.optim.SGD(toy.layer.parameters(), lr=min(lr, 1 / curvature))
    last = relaxed(toy, penalty, solver.solution()[0])
    for _ in range(15):
        toy.train(solver, 1, optimizer=optimizer)
        now = relaxed(toy, penalty, solver.solution()[0])
        assert now <= last + 1e-10
        last = now


def test_a_point_that_palm_leaves_alone_is_stationary():
    """K from grad loss + BETA (K - F) = 0; F is minimal for its own part of the sum."""
    penalty = TransformedL1(0.4, 1.0)
    toy, solver = Toy(), PALM(beta=BETA)
    solver.bind(penalty, [toy.block])
    toy.train(solver, 1000, lr=0.4)
    K, F = toy.block.read().requires_grad_(), solver.solution()[0]
    (gradient,) = torch.autograd.grad(toy.loss(K), K)
    assert torch.allclose(gradient, -BETA * (K.detach() - F), atol=1e-9)
    kept = (F != 0).any(dim=1)
    assert 0 < int(kept.sum()) < OUTPUTS
    free = F[kept].clone().requires_grad_()
    (slope,) = torch.autograd.grad(toy.block.weight * penalty.value(free), free)
    assert torch.allclose(slope, BETA * (K.detach() - F)[kept], atol=1e-9)
    steepest = toy.block.weight * 0.4 * 2.0 / 1.0  # the slope at 0+, lam (a + 1) / a
    assert (BETA * K[~kept].norm(dim=1) <= steepest).all()


@pytest.mark.parametrize("name", ["aulm", "admm", "proximal", "palm"])
def test_a_resumed_run_continues_bit_for_bit(name: str):
    def fresh() -> Solver:
        rules = {"tol": 1e-5, "patience": 3}
        return {
            "aulm": AULM(inner=7, **rules),
            "admm": ADMM(inner=7, **rules),
            "proximal": Proximal(every=3),
            "palm": PALM(beta=2.0),
        }[name]

    def sgd(toy: Toy):
        return torch.optim.SGD(toy.layer.parameters(), lr=0.1, momentum=0.9)

    whole = Toy()
    solver = bound(whole, fresh())
    optimizer = sgd(whole)
    whole.train(solver, 95, optimizer=optimizer)
    weights = whole.layer.weight.detach().clone()
    saved = copy.deepcopy(solver.state_dict())
    momentum = copy.deepcopy(optimizer.state_dict())
    whole.train(solver, 80, optimizer=optimizer)

    resumed = Toy()
    again = bound(resumed, fresh())
    with torch.no_grad():
        resumed.layer.weight.copy_(weights)
    again.load_state_dict(saved)
    optimizer = sgd(resumed)
    optimizer.load_state_dict(momentum)
    resumed.train(again, 80, optimizer=optimizer)

    assert torch.equal(whole.layer.weight, resumed.layer.weight)
    assert torch.equal(solver.solution()[0], again.solution()[0])
    assert solver.done == again.done
    for key, value in solver.state_dict().items():
        other = again.state_dict()[key]
        if isinstance(value, list):
            assert all(torch.equal(a, b) for a, b in zip(value, other, strict=True)), key
        else:
            assert value == other, key


def test_subgradient_gets_near_the_optimum_without_exact_zeros():
    toy, solver = Toy(), Subgradient(threshold=0.0)
    toy.train(bound(toy, solver), 1500, lr=0.002)
    best = toy.objective(toy.optimum())
    assert best < toy.objective(toy.block.read()) < best + 0.02
    assert (solver.solution()[0] != 0).any(dim=1).all()
