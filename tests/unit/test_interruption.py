"""Training that is stopped within an epoch, by SIGTERM or killed, ends with the same bits."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from networks import classifier as network
from torch import nn
from torch.optim import SGD, Adam

from prunekit.data import Synthetic
from prunekit.errors import ArtifactError
from prunekit.methods.hinge import Annealing, Hinge
from prunekit.penalties import L1
from prunekit.rows import Rows, Slice
from prunekit.solvers import AULM, PALM, KeepZeros, Proximal
from prunekit.termination import Terminated, postponed, terminable
from prunekit.training import Checkpoint, Cosine, Schedule, fit
from prunekit.training.loop import _Trainer

TOY = Synthetic(classes=3, image_size=8, train=76, val=12, test=12, crop=1, flip=True).load()
EPOCHS, STEPS = 3, 4  # of an epoch
SOLVERS = {
    "none": None,
    "aulm": partial(AULM, inner=3, rho=2.0, tol=1e-9, patience=100),
    "palm": partial(PALM, beta=3.0),
    "proximal": partial(Proximal, every=3),
    "zeros": KeepZeros,
    "hinge": partial(Hinge, annealing=Annealing(at=(0.999, 0.99, 0.9))),
}


class Killed(Exception):
    """Stands for a process that is gone."""


class Run:
    """A training run whose steps are counted; `stop` is called in the middle of one of them."""

    def __init__(self, kind: str, optimizer=None, **options) -> None:
        self.kind, self.options = kind, {"decay": Cosine(), "batch": 16, **options}
        self.optimizer = optimizer or partial(SGD, lr=0.1, momentum=0.9)
        self.calls = 0

    def fit(self, path: Path, stop_at: int = 0, stop=None, interval: float = 0.0, **more):
        """Train; return the metrics, all weights, and the solver's solution."""
        model, self.calls = network(), 0
        blocks = [
            Rows("first", (Slice(model[0].weight),), torch.arange(1, 5), 1.0, "first"),
            Rows("second", (Slice(model[5].weight),), torch.arange(5, 8), 1.0, "second"),
        ]
        groups = [{"params": [*model[i].parameters()]} for i in (0, 1, 5)]
        solver = make() if (make := SOLVERS[self.kind]) else None
        if solver:
            solver.bind(L1(0.02), blocks)

        def loss(net, x, y):
            self.calls += 1
            if self.calls == stop_at:
                stop()
            logits = net(x)
            return nn.functional.cross_entropy(logits, y), logits

        history = fit(
            model,
            TOY,
            Schedule(EPOCHS, optimizer=self.optimizer, **self.options),
            solver=solver,
            params=groups,
            loss=loss,
            checkpoint=Checkpoint(path, "toy", interval),
            **more,
        )
        rows = solver.solution() if solver else []
        return history, [*model.state_dict().values(), *rows]


def die() -> None:
    raise Killed


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def assert_same(found, expected) -> None:
    assert found[0] == expected[0]
    pairs = zip(found[1], expected[1], strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("kind", SOLVERS)
@pytest.mark.parametrize("call", [2, 3, 5, 8, 12])
def test_killed_in_any_step_it_goes_on_at_that_step(tmp_path, kind, call):
    run = Run(kind)
    expected = run.fit(tmp_path / "whole.pt", interval=1e9)
    with pytest.raises(Killed):
        run.fit(tmp_path / "last.pt", call, die)
    assert_same(run.fit(tmp_path / "last.pt"), expected)
    assert run.calls == EPOCHS * STEPS - (call - 1), "no step is taken twice"


@pytest.mark.parametrize(
    "run",
    [
        Run("aulm", partial(Adam, lr=0.01)),
        Run("palm", batch=8, accumulate=2, clip=0.5),
        Run("hinge", precision="float16"),
    ],
    ids=["adam", "accumulated", "float16"],
)
def test_killed_again_and_again(tmp_path, run):
    expected = run.fit(tmp_path / "whole.pt", interval=1e9)
    for _ in range(40):
        try:
            found = run.fit(tmp_path / "last.pt", 3, die)
            break
        except Killed:
            continue
    assert_same(found, expected)


@pytest.mark.parametrize("kind", ["none", "hinge"])
@pytest.mark.parametrize("call", [1, 3, 4, 5])
def test_sigterm_finishes_the_step_and_saves_it(tmp_path, kind, call):
    """Even where the time for a checkpoint has not come."""
    run = Run(kind)
    expected = run.fit(tmp_path / "whole.pt", interval=1e9)
    with terminable(), pytest.raises(Terminated):
        run.fit(tmp_path / "last.pt", call, terminate, interval=1e9)
    assert run.calls == call
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    epochs, steps = divmod(call, STEPS)
    taken = saved["progress"]["steps"] if saved["progress"] else 0
    assert (len(saved["history"]), taken) in ((epochs, steps), (epochs - 1, STEPS))
    assert_same(run.fit(tmp_path / "last.pt", interval=1e9), expected)
    assert run.calls == EPOCHS * STEPS - call


@pytest.mark.parametrize("kind", ["hinge", "aulm"])
def test_sigterm_in_validation_loses_no_step(tmp_path, kind, monkeypatch):
    run = Run(kind)
    expected = run.fit(tmp_path / "whole.pt", interval=1e9)

    def validate(self, batches, epoch):
        terminate()

    with monkeypatch.context() as patch, terminable(), pytest.raises(Terminated):
        patch.setattr(_Trainer, "validate", validate)
        run.fit(tmp_path / "last.pt", interval=1e9)
    assert_same(run.fit(tmp_path / "last.pt", interval=1e9), expected)
    assert run.calls == (EPOCHS - 1) * STEPS


def test_an_epoch_is_saved_when_the_time_has_come(tmp_path, monkeypatch):
    clock = iter(range(0, 100_000, 100))  # 100 seconds a look
    slow = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("prunekit.training.loop.time", slow)
    steps = []

    def save(self, state):
        steps.append(state["progress"]["steps"] if state["progress"] else None)

    monkeypatch.setattr(Checkpoint, "save", save)
    Run("none").fit(tmp_path / "last.pt", interval=200.0)
    assert steps == [2, 4, None] * EPOCHS


@pytest.mark.parametrize(
    "damage",
    [
        {"steps": 5},
        {"steps": -1},
        {"losses": torch.zeros(3)},
        {"losses": "none"},
        {"random": {"cpu": torch.zeros(3)}},
        {"random": {"nowhere": torch.zeros(3)}},
        {"hits": torch.zeros(2)},
    ],
    ids=str,
)
def test_progress_that_does_not_fit_is_refused(tmp_path, damage):
    run, path = Run("none"), tmp_path / "last.pt"
    with pytest.raises(Killed):
        run.fit(path, 3, die)
    state = torch.load(path, weights_only=True)
    torch.save(state | {"progress": state["progress"] | damage}, path)
    with pytest.raises(ArtifactError, match=r"cannot continue from .*last.pt: .*; delete it to"):
        run.fit(path)


@pytest.mark.parametrize("value", [torch.zeros(3), torch.zeros(1), "text", 5], ids=str)
def test_a_momentum_that_does_not_fit_is_refused(tmp_path, value):
    """Optimizers do not look at it before their next step."""
    run, path = Run("palm"), tmp_path / "last.pt"
    with pytest.raises(Killed):
        run.fit(path, 6, die)
    state = torch.load(path, weights_only=True)
    for entry in state["optimizer"]["state"].values():
        entry["momentum_buffer"] = value
    torch.save(state, path)
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match=r"cannot continue from .*last.pt: .*; delete it to"):
        run.fit(path, interval=1e9)
    assert path.read_bytes() == before


def test_a_state_of_another_solver_is_refused_with_the_file(tmp_path):
    path = tmp_path / "last.pt"
    Run("palm").fit(path)
    with pytest.raises(ArtifactError, match=r"cannot continue from .*last.pt"):
        Run("aulm").fit(path)


class TestTermination:
    """SIGTERM is an exception where the command asked for it, and waits where it must."""

    def test_it_is_raised_at_once_or_at_the_end_of_what_is_postponed(self):
        done = []
        with terminable():
            with pytest.raises(Terminated):
                terminate()
            with pytest.raises(Terminated), postponed():
                terminate()
                with postponed():
                    done.append("all of it")
        assert done == ["all of it"]
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def test_a_handler_of_the_program_around_stays(self):
        received = []
        before = signal.signal(signal.SIGTERM, lambda *_: received.append(1))
        try:
            with terminable(), postponed():
                terminate()
            assert received == [1]
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_threads_are_left_alone(self):
        failures = []

        def work():
            try:
                with terminable(), postponed():
                    pass
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert failures == []
