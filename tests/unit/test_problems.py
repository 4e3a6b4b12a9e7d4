"""Joint and layer-by-layer training under a penalty, on a network that trains in no time."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from prunekit.data import Synthetic
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.penalties import L0, L1
from prunekit.solvers import ADMM, AULM, Proximal, Subgradient
from prunekit.targets import Filters, Scales
from prunekit.training import Checkpoint, Joint, Layerwise, Regularizer, Schedule, Training


@pytest.fixture(autouse=True)
def single():
    """Many threads only get into each other's way on a network of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Tiny(nn.Module):
    """Two convolutions, the first with a batch norm, and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(16, 8)
        self.fc2 = nn.Linear(8, 3)

    def forward(self, x):
        x = self.conv2(self.bn1(self.conv1(x)).relu()).relu()
        return self.fc2(self.fc1(self.flatten(self.pool(x))).relu())


LAYERS = ("conv1", "conv2", "fc1")
DATA = Synthetic(classes=3, image_size=8, train=64, test=12, val=16).load()


def sgd(epochs: int = 2, **settings: float) -> Schedule:
    return Schedule(epochs, 16, partial(torch.optim.SGD, **{"lr": 0.05, **settings}))


def regularizer(lam: float = 0.05, solver=None, target=None) -> Regularizer:
    return Regularizer(L1(lam), target or Filters(bias=True), solver or Proximal())


def training(schedule: Schedule | None = None, model: nn.Module | None = None, **more) -> Training:
    torch.manual_seed(0)
    model = model or Tiny()
    graph = ChannelGraph.trace(model, DATA.example)
    return Training(model, graph, DATA, schedule or sgd(), **more)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {key for key in before if not torch.equal(before[key], after[key])}


class Watched(Proximal):
    """Notes which parameters a phase moves, and which rows are zero when it ends."""

    log: list[tuple[str, set[str]]] = []  # noqa: RUF012
    model: nn.Module

    def start(self) -> None:
        super().start()
        type(self).opening = state(type(self).model)

    def finish(self) -> None:
        super().finish()
        cls = type(self)
        cls.log.append((self.blocks[0].name, moved(cls.opening, state(cls.model))))


class TestJoint:
    """All layers at once."""

    def test_every_layer_trains_and_loses_rows(self):
        job = training(sgd(4))
        before = state(job.model)
        scores = Joint().solve(regularizer(2.0), job)
        assert {key.split(".")[0] for key in moved(before, state(job.model))} >= {*LAYERS, "fc2"}
        assert set(scores) == set(LAYERS)
        assert any(bool((score == 0).any()) for score in scores.values())

    def test_scores_are_the_norms_of_the_filters_with_their_biases(self):
        job = training()
        scores = Joint().solve(regularizer(0.3), job)
        for name in LAYERS:
            layer = job.model.get_submodule(name)
            rows = torch.cat([layer.weight.flatten(1), layer.bias[:, None]], 1)
            torch.testing.assert_close(scores[name].float(), rows.norm(dim=1).detach())

    def test_without_strength_it_is_plain_training(self):
        plain, penalised = training(), training()
        Joint().solve(regularizer(0.0), penalised)
        Joint().solve(regularizer(0.0, Subgradient(threshold=0.0)), plain)
        assert moved(state(plain.model), state(penalised.model)) == set()

    def test_more_strength_leaves_fewer_rows(self):
        counts = []
        for lam in (0.01, 1.0, 9.0):
            scores = Joint().solve(regularizer(lam), training(sgd(4)))
            counts.append(sum(int((score > 0).sum()) for score in scores.values()))
        assert counts[0] > counts[1] > counts[2]

    def test_free_takes_weight_decay_off_the_penalised_parameters(self):
        """A strong decay and no data gradient to speak of: only what decays shrinks."""
        heavy = sgd(1, lr=1e-3, weight_decay=200.0)
        before = state(Tiny())
        norms = {}
        for decay in ("all", "free"):
            job = training(heavy)
            before = state(job.model)
            Joint(decay=decay).solve(regularizer(0.0), job)
            norms[decay] = {
                key: float(value.norm() / before[key].norm())
                for key, value in state(job.model).items()
                if key in ("conv1.weight", "conv2.weight", "fc1.weight", "fc2.weight")
            }
        assert all(ratio < 0.8 for ratio in norms["all"].values())
        assert norms["free"].pop("fc2.weight") < 0.8  # not penalised
        assert all(ratio == pytest.approx(1, abs=0.02) for ratio in norms["free"].values())

    @pytest.mark.parametrize("norms", ["live", "frozen"])
    def test_frozen_keeps_batch_norm_statistics(self, norms):
        job = training()
        before = state(job.model)
        Joint(norms=norms).solve(regularizer(), job)
        changed = {key for key in moved(before, state(job.model)) if "bn1" in key}
        statistics = {"bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked"}
        assert changed & statistics == (set() if norms == "frozen" else statistics)
        assert {"bn1.weight", "bn1.bias"} <= changed

    def test_the_solver_given_stays_as_it_was(self):
        """A regularizer may be used again: each run binds a copy."""
        given = regularizer(0.1, AULM(inner=2))
        first = Joint().solve(given, training())
        second = Joint().solve(given, training())
        assert not hasattr(given.solver, "blocks")
        assert all(torch.equal(first[name], second[name]) for name in first)

    @pytest.mark.parametrize("setting", [{"norms": "warm"}, {"decay": "none"}])
    def test_unknown_words_are_refused(self, setting):
        with pytest.raises(ConfigError, match=next(iter(setting))):
            Joint(**setting)


class TestLayerwise:
    """Front to back."""

    def watch(self, between: Schedule | None = None) -> tuple[Training, dict[str, torch.Tensor]]:
        job = training()
        Watched.log, Watched.model = [], job.model
        scores = Layerwise(between).solve(regularizer(2.0, Watched()), job)
        return job, scores

    def test_a_phase_moves_its_own_layer_alone(self):
        self.watch()
        assert [name for name, _ in Watched.log] == list(LAYERS)
        for name, changed in Watched.log:
            own = {key for key in changed if not key.startswith("bn1.")}
            assert own == {f"{name}.weight", f"{name}.bias"}
            # running statistics follow the data; scale and shift are parameters
            assert not {"bn1.weight", "bn1.bias"} & changed

    def test_what_follows_the_last_layer_never_moves(self):
        job = training()
        before = state(job.model)
        Layerwise().solve(regularizer(2.0), job)
        assert not {key for key in moved(before, state(job.model)) if key.startswith("fc2")}

    def test_between_tunes_all_and_keeps_zero_rows(self):
        job, scores = self.watch(sgd(1, momentum=0.9, weight_decay=0.01))
        changed = moved(Watched.opening, state(job.model))
        assert {"fc2.weight", "bn1.weight", "conv1.weight"} <= changed
        assert sum(int((score == 0).sum()) for score in scores.values()) > 0
        for name in LAYERS:
            gone = scores[name] == 0
            assert not job.model.get_submodule(name).weight[gone].any()
            assert not job.model.get_submodule(name).bias[gone].any()

    def test_rows_that_vanished_in_one_phase_stay_gone_in_the_next(self):
        job, scores = self.watch()
        for name in LAYERS:
            weight = job.model.get_submodule(name).weight.detach().flatten(1)
            assert torch.equal(weight.norm(dim=1) == 0, scores[name] == 0)

    def test_the_history_names_its_phases(self, tmp_path):
        seen = []
        job = training(on_epoch=seen.append, checkpoint=Checkpoint(tmp_path / "last.pt", "toy"))
        Layerwise(sgd(1)).solve(regularizer(0.1, ADMM(inner=2)), job)
        phases = list(dict.fromkeys(row["phase"] for row in seen[-1]))
        assert phases == ["0-conv1", "1-tune", "1-conv2", "2-tune", "2-fc1", "3-tune"]
        assert [len(rows) for rows in seen] == list(range(1, 10))
        assert {file.name for file in tmp_path.iterdir()} == {f"last-{p}.pt" for p in phases}

    def test_a_finished_phase_is_not_trained_again(self, tmp_path):
        """Same checkpoints, another network to start from: the answer is that of the first."""
        kept = Checkpoint(tmp_path / "last.pt", "toy")
        job = training(checkpoint=kept)
        first = Layerwise().solve(regularizer(0.3), job)
        torch.manual_seed(5)
        again = Training(
            Tiny(), job.graph, DATA, sgd(), checkpoint=Checkpoint(tmp_path / "last.pt", "toy")
        )
        graph = ChannelGraph.trace(again.model, DATA.example)
        again = Training(
            again.model, graph, DATA, sgd(), checkpoint=Checkpoint(tmp_path / "last.pt", "toy")
        )
        second = Layerwise().solve(regularizer(0.3), again)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert moved(state(job.model), state(again.model)) == set()

    def test_scales_train_one_norm_at_a_time(self):
        job = training()
        before = state(job.model)
        scores = Layerwise().solve(regularizer(0.1, target=Scales()), job)
        assert set(scores) == {"conv1"}
        assert moved(before, state(job.model)) - {
            *("bn1.running_mean", "bn1.running_var", "bn1.num_batches_tracked")
        } == {"bn1.weight", "bn1.bias"}


def test_a_penalty_without_what_the_solver_needs_is_refused():
    with pytest.raises(ConfigError, match="Subgradient"):
        Regularizer(L0(0.1), Filters(), Subgradient())


@pytest.mark.parametrize("part", ["penalty", "target", "solver"])
def test_parts_of_another_kind_are_refused(part):
    parts = {"penalty": L1(0.1), "target": Filters(), "solver": Proximal()}
    with pytest.raises(ConfigError, match=f"{part}={{.*not a {part.title()}"):
        Regularizer(**{**parts, part: {"lam": 1}})


@pytest.mark.parametrize("between", [3, "short", {"epochs": 1}])
def test_between_is_a_schedule(between):
    with pytest.raises(ConfigError, match="between"):
        Layerwise(between)
