"""A penalty acts by default, however short training is; where it does not, the stage says so."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import nn

from prunekit.build import build
from prunekit.config import config_dir, groups, resolve
from prunekit.data import Synthetic
from prunekit.graph import ChannelGraph
from prunekit.penalties import L1
from prunekit.rows import Rows, Slice
from prunekit.solvers import ADMM, AULM, PALM, Proximal, Subgradient
from prunekit.targets import Filters
from prunekit.training import Checkpoint, Joint, Layerwise, Regularizer, Schedule, Training

torch.set_num_threads(1)

DATA = Synthetic(classes=3, image_size=8, train=56, test=12, val=0).load()  # 14 steps an epoch
EPOCHS, STEPS = 2, 28


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    )


def trained(solver, lam=0.5, order=None, epochs=EPOCHS, lr=0.02, **more):
    """Return the network after sparse training, and the notes for the report."""
    net, notes = network(), []
    job = Training(
        net,
        ChannelGraph.trace(net, DATA.example),
        DATA,
        Schedule(epochs, 4, partial(torch.optim.SGD, lr=lr, momentum=0.9)),
        on_note=notes.append,
        **more,
    )
    (order or Joint()).solve(Regularizer(L1(lam), Filters(), solver), job)
    return net, notes


def weights(net: nn.Module) -> torch.Tensor:
    return torch.cat([param.detach().flatten() for param in net.parameters()])


@pytest.mark.parametrize("solver", [AULM(), ADMM(), PALM(), Proximal(), Subgradient()], ids=str)
def test_two_strengths_differ_after_28_steps(solver):
    weak, strong = (weights(trained(solver, lam)[0]) for lam in (0.1, 0.5))
    assert not torch.allclose(weak, strong)


@pytest.mark.parametrize(
    ("solver", "reason"),
    [
        (
            AULM(inner=50),
            "0 updates of the sparse copy: solver.inner=50, but training has 28 steps",
        ),
        (
            ADMM(inner=29),
            "0 updates of the sparse copy: solver.inner=29, but training has 28 steps",
        ),
        (Proximal(every=29), "0 proximal steps: solver.every=29, but training has 28 steps"),
    ],
)
def test_a_penalty_that_cannot_act_says_so_before_training(solver, reason, caplog):
    with caplog.at_level(logging.WARNING, logger="prunekit"):
        _, notes = trained(solver)
    assert reason in caplog.text
    assert notes == []  # the warning stands in the report already


def test_a_run_that_ended_before_the_first_update_says_so_at_the_end():
    block = Rows("layer", (Slice(nn.Parameter(torch.ones(2, 2))),), torch.arange(1, 3))
    solver = AULM(inner=3)
    solver.bind(L1(0.1), [block])
    optimizer = torch.optim.SGD(block.parameters, lr=1.0)
    for _ in range(2):
        optimizer.zero_grad()
        solver.before_step(optimizer)
        solver.after_step(optimizer)
    (note,) = solver.notes()
    assert "solver.inner=3" in note and "2 steps" in note


def test_the_number_that_was_chosen_is_in_the_report():
    _, (note, *_) = trained(AULM())
    assert "solver.inner=1 was chosen to fit: 28 updates of the sparse copy in 28 steps" in note
    assert not any("inner" in line for line in trained(AULM(inner=2))[1])


def test_layer_by_layer_every_phase_has_its_own_number():
    _, notes = trained(AULM(), order=Layerwise(), epochs=4)
    assert [n.split(":")[0] for n in notes if "solver.inner=3 was" in n] == ["0", "2"]


@pytest.mark.parametrize(
    ("steps", "rate", "momentum", "rho", "inner"),
    [
        (800, 0.01, 0.9, 1.0, 50),  # as long as the network needs to follow
        (100_000, 0.001, 0.9, 1.0, 500),
        (8000, 0.01, 0.9, 4.0, 13),
        (8000, 0.1, 0.0, 1.0, 50),
        (28, 0.01, 0.9, 1.0, 1),  # at most a 16th of the run
        (320, 0.01, 0.9, 1.0, 20),
        (0, 0.01, 0.9, 1.0, 1),
        (8000, 0.0, 0.9, 1.0, 50),  # no number is enough
    ],
)
def test_the_inner_steps_fit_rate_and_length(steps, rate, momentum, rho, inner):
    block = Rows("layer", (Slice(nn.Parameter(torch.ones(2, 2))),), torch.arange(1, 3))
    solver = AULM(rho=rho)
    solver.bind(L1(0.1), [block])
    solver.expect(steps, torch.optim.SGD(block.parameters, lr=rate, momentum=momentum))
    assert solver.interval == inner


def test_a_loop_of_ones_own_need_not_know_its_length():
    block = Rows("layer", (Slice(nn.Parameter(torch.ones(2, 2))),), torch.arange(1, 3))
    solver = AULM()
    solver.bind(L1(0.1), [block])
    optimizer = torch.optim.SGD(block.parameters, lr=1.0)
    for _ in range(10):
        optimizer.zero_grad()
        solver.before_step(optimizer)
        solver.after_step(optimizer)
    assert (solver.interval, solver.outer) == (5, 2)
    again = AULM()
    again.bind(L1(0.1), [block])
    again.load_state_dict(solver.state_dict())
    assert (again.interval, again.outer) == (5, 2)


def test_a_resumed_run_goes_on_with_the_same_number(tmp_path):
    whole, notes = trained(AULM(), epochs=6)

    class Killed(Exception):
        pass

    def stop(history):
        if len(history) == 3:
            raise Killed

    file = tmp_path / "last.pt"
    with pytest.raises(Killed):
        trained(AULM(), epochs=6, checkpoint=Checkpoint(file, "x"), on_epoch=stop)
    resumed, again = trained(AULM(), epochs=6, checkpoint=Checkpoint(file, "x"))
    assert torch.equal(weights(whole), weights(resumed))
    assert notes == again


@pytest.mark.parametrize("solver", [AULM(inner=2), PALM(spread=0), Proximal(), Subgradient()])
def test_a_penalty_too_weak_to_be_seen_is_told_with_its_numbers(solver):
    _, (note,) = trained(solver, lam=1e-7)
    assert "no row of 12 became zero" in note and "lam=1e-07" in note
    assert trained(solver, lam=0.0)[1] == []  # no penalty was asked for
    assert trained(solver, lam=1.0, epochs=6)[1] == []


def composed(*overrides: str) -> dict:
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return resolve(compose(config_name="run", overrides=list(overrides)))


@pytest.mark.slow
def test_experiments_keep_the_number_that_they_ran_with():
    """The default was 50 once; an experiment is what it was, and so is the identity of its runs."""
    kept = {"ssr_vgg16_gap_imagenet": 500, "ssr_resnet50_imagenet": 500}
    kept |= {"ssr_googlenet_imagenet": 500, "ssr_alexnet_gap_imagenet": 500}
    kept |= dict.fromkeys(("ssr_vgg16_imagenet", "ssr_alexnet_imagenet"), 500)
    found = {name: composed(f"experiment={name}") for name in groups()["experiment"]}
    inner = {
        name: settings["solver"]["inner"]
        for name, settings in found.items()
        if "inner" in settings["solver"] and settings["regularizer"]["name"] != "none"
    }
    assert inner == {name: kept.get(name, 50) for name in inner}
    assert len(inner) == 16


@pytest.mark.parametrize(("name", "made"), [("aulm", AULM), ("admm", ADMM)])
def test_the_former_default_has_a_name(name, made):
    node = composed(f"solver={name}_50")["solver"]
    assert build(node, "solver") == made(inner=50)
    plain = composed(f"solver={name}")["solver"]
    assert {**plain, "inner": 50} == node and plain["inner"] is None
