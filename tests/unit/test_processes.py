"""Several processes train as one would: the penalty joins after their gradients were averaged."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

import prunekit
from prunekit.penalties import L1
from prunekit.solvers import AULM, PALM, Proximal, Solver, Subgradient

torch.set_num_threads(1)

SOLVERS = {
    "subgradient": lambda: Subgradient(),
    "proximal": lambda: Proximal(every=2),
    "palm": lambda: PALM(beta=2.0),
    "aulm": lambda: AULM(inner=2, rho=20.0),
}
RANKS, STEPS, EXAMPLES = 2, 5, 12


def network(seed: int) -> nn.Module:
    """Batch norm keeps its statistics, so that halves of a batch add up to the whole."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    model = nn.Sequential(*layers).double()
    nn.init.constant_(model[1].weight, 0.5)
    return model.eval()


def batch(step: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    x = torch.randn(EXAMPLES, 1, 6, 6, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, 3, (EXAMPLES,), generator=draw)


def train(model: nn.Module, solver: Solver, part: slice) -> tuple[list[Tensor], list[Tensor]]:
    """The scales and their gradients with the penalty after every step, then the solution."""
    sparse = prunekit.attach(
        model, torch.zeros(1, 1, 6, 6).double(), penalty=L1(0.3), solver=solver, target="scales"
    )
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    seen = []
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[part]), y[part]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        sparse.before_step(optimizer)
        seen.append(inner[1].weight.grad.clone())
        optimizer.step()
        sparse.after_step(optimizer)
        seen.append(inner[1].weight.detach().clone())
    return seen, [rows.clone() for rows in solver.solution()]


def work(rank: int, place: Path) -> None:
    """One of the processes; they start from different weights, which wrapping makes equal."""
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place / 'meeting'}",
        rank=rank,
        world_size=RANKS,
        timeout=timedelta(seconds=120),
    )
    share = EXAMPLES // RANKS
    part = slice(rank * share, (rank + 1) * share)
    found = {
        name: train(DistributedDataParallel(network(seed=rank)), make(), part)
        for name, make in SOLVERS.items()
    }
    torch.save(found, place / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each process saw."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this torch has no gloo to connect processes with")
    place = tmp_path_factory.mktemp("ranks")
    loopback = {"win32": "Loopback", "darwin": "lo0"}.get(sys.platform, "lo")
    env = {**os.environ, "GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(place)], env=env)
        for rank in range(RANKS)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * RANKS
    return [torch.load(place / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SOLVERS)
def test_processes_are_one_on_the_joint_batch(ranks: list[dict], name: str):
    seen, solution = train(network(seed=0), SOLVERS[name](), slice(None))
    for rank in ranks:
        for mine, other, expected in zip(rank[name][0], ranks[0][name][0], seen, strict=True):
            assert torch.equal(mine, other)
            assert torch.allclose(mine, expected, atol=1e-12)
        for mine, expected in zip(rank[name][1], solution, strict=True):
            assert torch.equal(mine == 0, expected == 0)
            assert torch.allclose(mine, expected, atol=1e-12)


def test_what_is_wrapped_is_cut_as_it_is():
    model = network(seed=0).float()
    wrapped = nn.DataParallel(model)
    sparse = prunekit.attach(wrapped, torch.zeros(1, 1, 6, 6), penalty=L1(0.1), solver=Proximal())
    assert list(sparse.scores()) == ["0"]
    with torch.no_grad():
        model[0].weight[1] = 0
    assert prunekit.shrink(wrapped, sparse.graph, sparse.scores()).module[0].out_channels == 3


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
