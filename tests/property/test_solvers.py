"""On a convex problem every solver that has exact zeros finds the group lasso."""

import copy

import pytest
import torch
from torch import Tensor, nn

from prunekit.penalties import L0, L1
from prunekit.rows import Rows, Slice
from prunekit.solvers import ADMM, AULM, Proximal, Solver, Subgradient

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

    def optimum(self) -> Tensor:
        """Group lasso by accelerated proximal gradient, written without the package."""
        G, B = self.X.T @ self.X / EXAMPLES, self.X.T @ self.Z / EXAMPLES
        L = float(torch.linalg.eigvalsh(G).max())
        K = torch.zeros(OUTPUTS, INPUTS, dtype=torch.float64)
        y, t = K, 1.0
        for _ in range(3000):
            moved = y - (y @ G - B.T) / L
            size = moved.norm(dim=1, keepdim=True)
            new = moved * (1 - LAM / L / size.clamp_min(1e-12)).clamp_min(0)
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
    (found,) = solver.solution()
    zero = (best == 0).all(dim=1)
    assert 0 < int(zero.sum()) < OUTPUTS
    assert torch.equal((found == 0).all(dim=1), zero)
    assert toy.objective(found) == pytest.approx(toy.objective(best), abs=1e-6)
    assert toy.objective(found) >= toy.objective(best) - 1e-10


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


@pytest.mark.parametrize("name", ["aulm", "admm", "proximal"])
def test_a_resumed_run_continues_bit_for_bit(name: str):
    def fresh() -> Solver:
        rules = {"tol": 1e-5, "patience": 3}
        return {
            "aulm": AULM(inner=7, **rules),
            "admm": ADMM(inner=7, **rules),
            "proximal": Proximal(every=3),
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
