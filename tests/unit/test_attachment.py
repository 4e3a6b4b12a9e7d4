"""Tests of sparse training in a custom loop: attach, two hooks, scores."""

import pytest
import torch
from torch import Tensor, nn

from prunekit.attachment import Attached, attach, shrink
from prunekit.errors import ConfigError
from prunekit.penalties import L0, L1
from prunekit.solvers import AULM, Proximal, Subgradient
from prunekit.targets import Filters

torch.set_num_threads(1)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x)).mean((2, 3)))


EXAMPLE = torch.zeros(1, 1, 6, 6)


def train(net: Net, sparse: Attached, optimizer: torch.optim.Optimizer, steps: int) -> None:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(16, 1, 6, 6, generator=draw)
    y = torch.randint(0, 3, (16,), generator=draw)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        sparse.before_step(optimizer)
        optimizer.step()
        sparse.after_step(optimizer)


@pytest.mark.parametrize("solver", [AULM(inner=5), Proximal()], ids=str)
def test_a_loop_of_ones_own(solver):
    net = Net()
    sparse = attach(net, EXAMPLE, penalty=L1(0.3), solver=solver)
    train(net, sparse, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), 60)
    sparse.finish()
    scores = sparse.scores()
    assert {name: len(score) for name, score in scores.items()} == {"conv1": 4, "conv2": 6}
    dead = sum(int((score == 0).sum()) for score in scores.values())
    assert 0 < dead == 10 - sparse.metrics()["rows"]
    for name, score in scores.items():
        filters = net.get_submodule(name).weight.detach().flatten(1)
        assert torch.equal((filters == 0).all(dim=1), score == 0)


def test_scores_are_norms_over_all_rows_of_a_unit():
    net = Net()
    sparse = attach(net, EXAMPLE, penalty=L1(0.1), solver=Proximal(), target=Filters(bias=True))
    rows = torch.cat([net.conv1.weight.flatten(1), net.conv1.bias[:, None]], dim=1)
    assert torch.allclose(sparse.scores()["conv1"], rows.detach().double().norm(dim=1))
    scales = attach(net, EXAMPLE, penalty=L1(0.1), solver=Proximal(), target="scales")
    assert list(scales.scores()) == ["conv1"]
    assert torch.allclose(scales.scores()["conv1"], net.norm.weight.detach().abs().double())


def test_a_state_carries_over_to_a_new_attachment():
    net = Net()
    sparse = attach(net, EXAMPLE, penalty=L1(0.3), solver=AULM(inner=3))
    train(net, sparse, torch.optim.SGD(net.parameters(), lr=0.1), 10)
    again = attach(net, EXAMPLE, penalty=L1(0.3), solver=AULM(inner=3))
    again.load_state_dict(sparse.state_dict())
    for name, score in sparse.scores().items():
        assert torch.equal(again.scores()[name], score)


def test_what_does_not_fit_is_refused_at_once():
    with pytest.raises(ConfigError, match="needs subgradient"):
        attach(Net(), EXAMPLE, penalty=L0(0.1), solver=Subgradient())
    with pytest.raises(ConfigError, match="penalty='l1' needs lam; give the object: L1"):
        attach(Net(), EXAMPLE, penalty="l1", solver=Proximal())
    with pytest.raises(ConfigError, match=r"penalty=L1 is a class; L1\(...\) makes an object"):
        attach(Net(), EXAMPLE, penalty=L1, solver=Proximal())
    with pytest.raises(
        ConfigError, match="solver=3 is a int, not a Solver; give an object, or one"
    ):
        attach(Net(), EXAMPLE, penalty=L1(0.1), solver=3)
    with pytest.raises(ConfigError, match=r"lam=0.2 beside L1"):
        attach(Net(), EXAMPLE, penalty=L1(0.1), solver="aulm", lam=0.2)
    with pytest.raises(ConfigError, match="target='filers' is unknown; did you mean filters"):
        attach(Net(), EXAMPLE, penalty=L1(0.1), solver=Proximal(), target="filers")
    with pytest.raises(ConfigError, match=r"layers\.stem matches no block of rows"):
        target = Filters(layers={"stem": 1.0})
        attach(Net(), EXAMPLE, penalty=L1(0.1), solver=Proximal(), target=target)


def test_names_mean_objects_with_their_default_settings():
    torch.manual_seed(0)
    named = attach(Net(), EXAMPLE, penalty="l1", lam=0.3, solver="aulm", target="filters")
    torch.manual_seed(0)
    made = attach(Net(), EXAMPLE, penalty=L1(0.3), solver=AULM(), target=Filters())
    assert (named.solver, named.solver.penalty) == (made.solver, made.solver.penalty)
    assert [block.name for block in named.blocks] == [block.name for block in made.blocks]
    zeros = {name: torch.zeros_like(score) for name, score in named.scores().items()}
    zeros = {name: score.index_fill(0, torch.tensor([1]), 1.0) for name, score in zeros.items()}
    by_name = shrink(Net(), named.graph, zeros, "zeros")
    assert str(by_name) == str(shrink(Net(), named.graph, zeros))
