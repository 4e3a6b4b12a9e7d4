"""The training loop: order of a step, rates, exact resumption, evaluation, refusals."""

import copy
import math
from functools import partial

import pytest
import torch
from networks import classifier as network
from torch import nn
from torch.optim import LBFGS, SGD, Adam

from prunekit.data import Data, Normalize, Synthetic, TensorBatches
from prunekit.errors import ArtifactError, ConfigError, DataError, TrainingError
from prunekit.penalties import L1
from prunekit.rows import Rows, Slice
from prunekit.solvers import AULM, PALM, Proximal, Solver, Subgradient
from prunekit.training import (
    Checkpoint,
    Constant,
    Cosine,
    Schedule,
    Steps,
    evaluate,
    fit,
    mix_seeds,
    predictions,
)
from prunekit.training.schedule import precision_warning

TOY = Synthetic(classes=3, image_size=8, train=50, val=12, test=12, crop=1, flip=True)


def plan(epochs=3, optimizer=None, **options):
    return Schedule(epochs, 16, optimizer or partial(SGD, lr=0.1, momentum=0.9), **options)


class Recorder(Solver):
    """Notes what it is called for; its state is how often it was called."""

    def __init__(self, stop_after=None):
        self.calls, self.count, self.stop_after = [], 0, stop_after

    def before_step(self, optimizer):
        grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
        self.calls.append(("before", float(nn.utils.get_total_norm(grads))))

    def after_step(self, optimizer):
        self.count += 1
        self.calls.append(("after", optimizer.param_groups[0]["lr"]))

    def finish(self):
        self.calls.append(("finish", None))

    @property
    def done(self):
        return self.stop_after is not None and self.count >= self.stop_after

    def metrics(self):
        return {"count": self.count}

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def one_example(value=2.0):
    """A data set of one example, x = `value` and label 0."""
    x, y = torch.full((1, 1, 1, 1), value), torch.zeros(1, dtype=torch.long)
    batches = TensorBatches(x, y, Normalize((0.0,), (1.0,)))
    nothing = TensorBatches(x[:0], y[:0], Normalize((0.0,), (1.0,)))
    return Data(batches, nothing, batches, 2, (1, 1, 1))


def flat_linear():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    nn.init.zeros_(model[1].weight)
    return model


def test_one_step_by_hand():
    model = flat_linear()
    rows = fit(model, one_example(), Schedule(1, 1, partial(SGD, lr=0.5)))
    # softmax is (1/2, 1/2), so the gradient is x * (-1/2, 1/2) = (-1, 1)
    assert model[1].weight.flatten().tolist() == pytest.approx([0.5, -0.5])
    assert rows[0]["train_loss"] == pytest.approx(0.693147, abs=1e-6)
    assert rows[0]["epoch"] == 1 and rows[0]["lr"] == 0.5
    assert "val_loss" not in rows[0]


def test_clip_bounds_the_gradient_before_the_solver_sees_it():
    model, solver = flat_linear(), Recorder()
    fit(model, one_example(), Schedule(1, 1, partial(SGD, lr=1.0), clip=0.1), solver=solver)
    assert [name for name, _ in solver.calls] == ["before", "after"]
    assert solver.calls[0][1] == pytest.approx(0.1, rel=1e-4)


def examples(count):
    """Training data of `count` images that are not augmented."""
    draw = torch.Generator().manual_seed(7)
    x = torch.randn(count, 1, 8, 8, generator=draw)
    y = torch.randint(0, 3, (count,), generator=draw)
    plain = Normalize((0.0,), (1.0,))
    batches = TensorBatches(x, y, plain)
    return Data(batches, TensorBatches(x[:0], y[:0], plain), batches, 3, (1, 8, 8))


def penalised(solver, model, lam=0.05):
    """The solver, bound to the scales of the model's batch norm."""
    scales = Rows("norm", (Slice(model[1].weight),), torch.arange(1, 5))
    solver.bind(L1(lam), [scales])
    return solver


def fixed():
    """The small network in float64 without dropout, whose batch norm ignores the batch."""
    model = network().double()
    model[1].weight.data = torch.tensor([0.5, -0.02, 1.0, 0.01], dtype=torch.float64)
    model[4].p = 0.0
    return model


def one_epoch(solver, batch, count, **options):
    """The network after an epoch under a solver that is bound to its scales."""
    model, data = fixed(), examples(count)
    data.train.images, data.test.images = data.train.images.double(), data.test.images.double()
    schedule = Schedule(1, batch, partial(SGD, lr=0.1, momentum=0.9), **options)
    bound = penalised(solver, model)
    rows = fit(model, data, schedule, solver=bound, frozen=[model[1]], seed=1)
    return model, bound, rows


SPARSE = [Subgradient, partial(Proximal, every=1), partial(AULM, inner=1), partial(PALM, beta=3.0)]


@pytest.mark.parametrize("make", SPARSE)
@pytest.mark.parametrize(("count", "batch"), [(16, 4), (14, 4), (3, 1)])
def test_accumulated_batches_are_one_large_one(make, count, batch):
    """Four batches a step, the last of them smaller or missing; the penalty joins once."""
    whole, solver, rows = one_epoch(make(), 16, count)
    split, other, result = one_epoch(make(), batch, count, accumulate=4)
    for a, b in zip(whole.state_dict().values(), split.state_dict().values(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)
    assert torch.allclose(solver.solution()[0], other.solution()[0], atol=1e-12)
    assert result[0]["train_loss"] == pytest.approx(rows[0]["train_loss"])
    assert result[0]["train_top1"] == pytest.approx(rows[0]["train_top1"])
    assert not same(whole, fixed())


def test_what_is_left_of_an_epoch_is_a_step_too(monkeypatch):
    totals = []

    def noted(items, label, total):
        totals.append(total)
        return items

    monkeypatch.setattr("prunekit.training.loop.track", noted)
    solver, model = Recorder(), network()
    decay = Steps([0.5], 0.1)
    plans = Schedule(1, 4, partial(SGD, lr=0.1), accumulate=2, decay=decay)
    rows = fit(model, examples(22), plans, solver=solver)
    rates = [rate for name, rate in solver.calls if name == "after"]
    assert rates == pytest.approx([0.1, 0.1, 0.01])  # 2 + 2 + 2 batches
    assert [name for name, _ in solver.calls] == ["before", "after"] * 3
    assert totals == [6]
    assert int(model[1].num_batches_tracked) == 6
    assert rows[0]["lr"] == pytest.approx(0.01)


def test_the_loss_scale_of_float16_is_gone_before_clip_and_penalty():
    """Gradients of one step that float16 holds exactly: (-1, 1) / 4, clipped to norm 1 / 8."""
    for precision in ("float32", "float16"):
        model = flat_linear()
        nn.init.constant_(model[1].weight, 0.25)
        solver = Subgradient()
        solver.bind(L1(3.0), [Rows("fc", (Slice(model[1].weight),), torch.arange(1, 3))])
        schedule = Schedule(1, 1, partial(SGD, lr=0.125), clip=0.125, precision=precision)
        fit(model, one_example(0.5), schedule, solver=solver)
        part = 0.125 / 2**0.5
        expected = [0.25 - 0.125 * (-part + 3.0), 0.25 - 0.125 * (part + 3.0)]
        assert model[1].weight.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def gentle(model, x, y):
    """A loss whose gradient float16 holds under the first loss scale, 65536."""
    logits = model(x)
    return nn.functional.cross_entropy(logits, y) / 64, logits


@pytest.mark.parametrize(("batch", "accumulate"), [(16, 1), (4, 4)])
def test_a_step_in_float16_is_one_in_float32_up_to_rounding(batch, accumulate):
    moved = {}
    for precision in ("float32", "float16"):
        model = network()
        model[4].p = 0.0
        solver, frozen = penalised(Subgradient(), model, lam=0.01), [model[1]]
        options = {"precision": precision, "accumulate": accumulate}
        schedule = Schedule(1, batch, partial(SGD, lr=1.0), **options)
        fit(model, examples(16), schedule, solver=solver, loss=gentle, frozen=frozen)
        start = network().state_dict()
        moved[precision] = {key: value - start[key] for key, value in model.state_dict().items()}
    for key, change in moved["float32"].items():
        assert torch.allclose(moved["float16"][key], change, rtol=0.02, atol=1e-4), key
    assert float(moved["float32"]["1.weight"].max()) < -0.005


def steep(model, x, y):
    """A loss whose gradient overflows float16 until its scale came down a good deal."""
    logits = model(x)
    return nn.functional.cross_entropy(logits, y) * 300, logits


def test_a_step_that_the_loss_scale_leaves_out_is_none_for_the_solver():
    class Witness(Recorder):
        def before_step(self, optimizer):
            self.before = model[5].weight.detach().clone()
            self.tried = getattr(self, "tried", 0) + 1

        def after_step(self, optimizer):
            super().after_step(optimizer)
            assert not torch.equal(model[5].weight, self.before)

    model, solver = network(), Witness()
    schedule = plan(4, partial(SGD, lr=1e-4), precision="float16")
    rows = fit(model, TOY.load(), schedule, solver=solver, loss=steep)
    assert solver.tried == 12 and 0 < solver.count < 12
    assert rows[-1]["count"] == solver.count
    aulm = penalised(AULM(inner=1000, rho=20.0), model := network())
    fit(model, TOY.load(), schedule, solver=aulm, loss=steep)
    assert aulm.steps == solver.count


def test_the_loss_scale_resumes_with_the_run(tmp_path):
    """Without its state the resumed run would overflow again and leave steps out."""

    def run(model, path, loss):
        schedule = plan(4, partial(SGD, lr=1e-4, momentum=0.9), precision="float16")
        solver = penalised(PALM(beta=3.0), model)
        return fit(
            model,
            TOY.load(),
            schedule,
            solver=solver,
            checkpoint=Checkpoint(path, "toy"),
            loss=loss,
        ), solver

    def killed(model, x, y):
        killed.calls += 1
        if killed.calls == 9:
            raise Killed
        return steep(model, x, y)

    killed.calls = 0
    whole, again = network(), network()
    expected, solver = run(whole, tmp_path / "whole.pt", steep)
    with pytest.raises(Killed):
        run(network(), tmp_path / "last.pt", killed)
    result, other = run(again, tmp_path / "last.pt", steep)
    assert result == expected and same(whole, again)
    assert torch.equal(solver.solution()[0], other.solution()[0])
    left_out = torch.load(tmp_path / "last.pt", weights_only=True)["scaler"]
    assert left_out["scale"] < 65536


def test_a_checkpoint_of_another_precision_is_refused(tmp_path):
    kept = Checkpoint(tmp_path / "last.pt", "toy")
    fit(network(), TOY.load(), plan(1), checkpoint=kept)
    with pytest.raises(ArtifactError, match="belongs to another training run"):
        fit(network(), TOY.load(), plan(2, precision="float16"), checkpoint=kept)


def test_label_smoothing_reaches_the_loss():
    plain, smooth = flat_linear(), flat_linear()
    fit(plain, one_example(), Schedule(1, 1, partial(SGD, lr=0.5)))
    fit(smooth, one_example(), Schedule(1, 1, partial(SGD, lr=0.5), label_smoothing=0.5))
    largest = [float(model[1].weight.detach().abs().max()) for model in (smooth, plain)]
    assert largest[0] == pytest.approx(largest[1] / 2)


def test_rates_follow_the_decay_step_by_step():
    solver = Recorder()
    fit(network(), TOY.load(), plan(2, decay=Steps([0.5], 0.1)), solver=solver)
    assert [rate for name, rate in solver.calls if name == "after"] == pytest.approx(
        [0.1, 0.1, 0.1, 0.01, 0.01, 0.01]
    )


def test_groups_keep_their_own_rates_and_others_stay():
    model = network()
    before = copy.deepcopy(model)
    groups = [{"params": model[0].parameters(), "lr": 0.0}, {"params": model[5].parameters()}]
    fit(model, TOY.load(), plan(1, partial(SGD, lr=0.1)), params=groups)
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[1].weight, before[1].weight)
    assert not torch.equal(model[5].weight, before[5].weight)


def test_gradients_of_untrained_parameters_do_not_pile_up():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    nn.init.ones_(model[1].weight)
    nn.init.ones_(model[2].weight)

    def first_logit(model, x, y):
        logits = model(x)
        return logits[:, 0].mean(), logits

    groups = [{"params": model[2].parameters(), "lr": 0.0}]
    fit(model, one_example(), plan(3), params=groups, loss=first_logit)
    assert float(model[1].weight.grad) == 2.0


def test_frozen_modules_keep_their_statistics():
    model = network()
    fit(model, TOY.load(), plan(1), frozen=[model[1]])
    assert model[1].running_mean.eq(0).all()
    assert int(model[1].num_batches_tracked) == 0


def test_own_loss_is_used():
    def zero(model, x, y):
        logits = model(x)
        return logits.sum() * 0, logits

    model = network()
    before = copy.deepcopy(model[5].weight)
    rows = fit(model, TOY.load(), plan(1), loss=zero)
    assert rows[0]["train_loss"] == 0
    assert torch.equal(model[5].weight, before)


def test_training_learns_and_reports():
    easy = Synthetic(classes=3, image_size=8, train=60, val=12, noise=0.5).load()
    rows = fit(network(), easy, plan(5, partial(SGD, lr=0.05)))
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert rows[-1]["train_loss"] < rows[0]["train_loss"] / 2
    assert rows[-1]["val_top1"] > 60
    assert set(rows[0]) == {"epoch", "lr", "train_loss", "train_top1", "val_loss", "val_top1"}


def test_same_seed_same_weights_whatever_happened_before():
    first, second, other = network(), network(), network()
    fit(first, TOY.load(), plan(1), seed=3)
    torch.rand(7)
    fit(second, TOY.load(), plan(1), seed=3)
    fit(other, TOY.load(), plan(1), seed=4)
    assert same(first, second) and not same(first, other)


def test_bfloat16_runs_under_autocast():
    kinds = []

    def noting(model, x, y):
        logits = model(x)
        kinds.append(logits.dtype)
        return nn.functional.cross_entropy(logits.float(), y), logits

    fit(network(), TOY.load(), plan(1, precision="bfloat16"), loss=noting)
    assert set(kinds) == {torch.bfloat16}


@pytest.mark.parametrize("able", [True, False])
def test_a_precision_that_the_cpu_works_around_is_told(able, monkeypatch, caplog):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: able)
    fit(network(), TOY.load(), plan(1, precision="bfloat16"))
    warnings = [
        line.getMessage() for line in caplog.records if "precision=bfloat16" in line.message
    ]
    assert len(warnings) == (0 if able else 1)
    assert precision_warning("bfloat16", "cuda") is None
    assert precision_warning("float32", "cpu") is None


def test_a_torch_that_cannot_tell_says_nothing(monkeypatch):
    monkeypatch.setattr("prunekit.training.schedule._PROBES", {"bfloat16": "_no_such_probe"})
    assert precision_warning("bfloat16", "cpu") is None


def test_no_epochs_is_no_training():
    model = network()
    assert fit(model, TOY.load(), plan(0)) == []
    assert same(model, network())


class Killed(Exception):
    """Stands for a killed process."""


def dies_at(call):
    """A loss that raises when it is called for the `call`-th time."""
    calls = []

    def loss(model, x, y):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        logits = model(x)
        return nn.functional.cross_entropy(logits, y), logits

    return loss


@pytest.mark.parametrize("optimizer", [partial(SGD, lr=0.1, momentum=0.9), partial(Adam, lr=0.01)])
@pytest.mark.parametrize("call", [1, 3, 4, 6, 9])  # three steps an epoch
def test_killed_in_any_step_and_repeated_ends_the_same(tmp_path, optimizer, call):
    data, schedule = TOY.load(), plan(3, optimizer, decay=Cosine(), clip=1.0)
    whole = network()
    expected = fit(
        whole,
        data,
        schedule,
        solver=Recorder(),
        checkpoint=Checkpoint(tmp_path / "whole.pt", "toy"),
    )
    kept = Checkpoint(tmp_path / "last.pt", "toy")
    with pytest.raises(Killed):
        fit(network(), data, schedule, solver=Recorder(), checkpoint=kept, loss=dies_at(call))
    again, solver = network(), Recorder()
    assert fit(again, data, schedule, solver=solver, checkpoint=kept) == expected
    assert same(whole, again)
    assert solver.count == 9


def test_killed_between_epochs_and_repeated_ends_the_same(tmp_path):
    whole, again, kept = network(), network(), Checkpoint(tmp_path / "last.pt", "toy")
    fit(whole, TOY.load(), plan(3))

    def die(history):
        if len(history) == 2:
            raise Killed

    with pytest.raises(Killed):
        fit(network(), TOY.load(), plan(3), checkpoint=kept, on_epoch=die)
    counts = []
    fit(again, TOY.load(), plan(3), checkpoint=kept, on_epoch=lambda rows: counts.append(len(rows)))
    assert same(whole, again)
    assert counts == [2, 3]  # the row that was lost with the process is reported again


def test_finished_phase_returns_at_once(tmp_path):
    model, again, kept = network(), network(), Checkpoint(tmp_path / "last.pt", "toy")
    rows = fit(model, TOY.load(), plan(2), checkpoint=kept)
    assert fit(again, TOY.load(), plan(2), checkpoint=kept, loss=dies_at(1)) == rows
    assert same(model, again)


def test_solver_that_is_done_ends_training_for_good(tmp_path):
    kept = Checkpoint(tmp_path / "last.pt", "toy")
    rows = fit(network(), TOY.load(), plan(5), solver=Recorder(stop_after=4), checkpoint=kept)
    assert [row["count"] for row in rows] == [3, 6]
    again = fit(network(), TOY.load(), plan(5), solver=Recorder(), checkpoint=kept)
    assert again == rows


def test_checkpoint_of_another_network_is_refused(tmp_path):
    kept = Checkpoint(tmp_path / "last.pt", "toy")
    fit(network(), TOY.load(), plan(1), checkpoint=kept)
    wider = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ArtifactError, match=r"belongs to another training run.*; delete it"):
        fit(wider, TOY.load(), plan(1), checkpoint=kept)
    with pytest.raises(ArtifactError, match=r"belongs to another training run"):
        fit(network(), TOY.load(), plan(1), checkpoint=kept, solver=Recorder())
    with pytest.raises(ArtifactError, match=r"it holds 1 epochs, this schedule has 0"):
        fit(network(), TOY.load(), plan(0), checkpoint=kept)


def test_infinite_loss_is_named_and_the_checkpoint_stays(tmp_path):
    def breaks(model, x, y):
        logits = model(x)
        breaks.calls += 1
        return logits.sum() * (float("nan") if breaks.calls == 5 else 0.0), logits

    breaks.calls, kept = 0, Checkpoint(tmp_path / "last.pt", "toy")
    with pytest.raises(TrainingError) as caught:
        fit(network(), TOY.load(), plan(3), checkpoint=kept, loss=breaks, label="sparsify")
    assert str(caught.value) == (
        "sparsify: the loss is nan in epoch 2, step 2, at learning rate 0.1; "
        "lower the rate or set clip"
    )
    assert len(fit(network(), TOY.load(), plan(1), checkpoint=kept)) == 1


def test_infinite_weights_are_found_in_validation():
    model = network()

    def spoil(_, x, y):
        logits = model(x)
        if len(y) < 16:
            with torch.no_grad():
                model[5].bias.fill_(float("nan"))
        return logits.sum() * 0, logits

    with pytest.raises(TrainingError, match=r"the loss is nan in epoch 1, validation"):
        fit(model, Synthetic(classes=3, image_size=8, train=50, val=10).load(), plan(1), loss=spoil)


def answers(*labels):
    """A model that reads its logits from the image, and data on which they are one-hot."""
    images = torch.eye(6)[torch.tensor(labels)].reshape(-1, 6, 1, 1)
    truth = torch.zeros(len(labels), dtype=torch.long)
    return nn.Flatten(), TensorBatches(images, truth, Normalize((0.0,) * 6, (1.0,) * 6))


def test_evaluate_by_hand():
    model, batches = answers(0, 0, 1, 5)
    result = evaluate(model, batches, "cpu", batch=3)
    right = torch.tensor(5.0 + 2.718281828).log() - 1
    wrong = torch.tensor(5.0 + 2.718281828).log()
    assert result["top1"] == 50 and result["top5"] == 100
    assert result["loss"] == pytest.approx(float((right + wrong) / 2), abs=1e-5)


def test_predictions_are_in_order():
    model, batches = answers(3, 1, 4, 1, 5)
    logits, labels = predictions(model, batches, "cpu", batch=2)
    assert logits.argmax(dim=1).tolist() == [3, 1, 4, 1, 5]
    assert labels.tolist() == [0] * 5


def test_evaluate_restores_every_mode():
    model = network().train()
    model[1].eval()
    evaluate(model, TOY.load().test, "cpu")
    assert model.training and not model[1].training and model[4].training


def test_evaluate_needs_examples():
    with pytest.raises(DataError, match=r"no examples to evaluate on; set dataset.val above 0"):
        evaluate(flat_linear(), one_example().val, "cpu")


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        (Constant(), [1, 1, 1, 1]),
        (Steps([0.5, 0.75], 0.1), [1, 1, 0.1, 0.01]),
        (Steps([1, 3], 0.5), [1, 0.5, 0.5, 0.25]),
        (Cosine(), [1, 0.853553, 0.5, 0.146447]),
        (Cosine(final=0.5), [1, 0.926777, 0.75, 0.573223]),
        (Cosine(warmup=0.5), [0.01, 0.505, 1, 0.5]),
    ],
)
def test_decays_by_hand(decay, expected):
    result = [decay.factor(epoch, 4) for epoch in range(4)]
    assert result == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan("abc"), "epochs='abc' is not a whole number"),
        (lambda: plan(-1), "epochs=-1 must be at least 0"),
        (lambda: Schedule(1, 0, partial(SGD, lr=1)), "batch=0 must be at least 1"),
        (lambda: plan(clip=0), "clip=0 must be above 0"),
        (lambda: plan(label_smoothing=1), "label_smoothing=1 must be below 1"),
        (lambda: plan(accumulate=0), "accumulate=0 must be at least 1"),
        (
            lambda: plan(precision="half"),
            "precision='half' is unknown; accepted: float32, bfloat16, float16",
        ),
        (lambda: plan(decay="cosine"), "decay='cosine' is no plan; use Constant, Steps or Cosine"),
        (
            lambda: plan(1, partial(SGD, lr=-1)),
            "optimizer.lr=-1 is refused by SGD: .*learning rate",
        ),
        (lambda: plan(1, partial(SGD, lr="a")), "lr='a' is refused by SGD: text stands where a n"),
        (lambda: plan(1, partial(SGD, momentum=math.inf)), "momentum=inf is not a finite number"),
        (
            lambda: plan(1, partial(SGD, lr=-1, momentum=-1)),
            "optimizer=SGD refuses lr=-1, momentum=-1: .*; give other values",
        ),
        (
            lambda: plan(1, SGD(network().parameters(), 1)),
            "optimizer is a SGD, not a function",
        ),
        (lambda: plan(1, list), "makes no PyTorch optimizer; give a class of torch.optim with"),
        (lambda: plan(1, LBFGS), "optimizer=LBFGS evaluates the loss by itself; use SGD or Adam"),
        (lambda: Steps(0.5), "milestones=0.5 is not a list; write"),
        (lambda: Steps([0]), "milestones=0 must be above 0"),
        (lambda: Steps([0.5], 0), "by=0 must be above 0"),
        (lambda: Cosine(warmup=1), "warmup=1 must be below 1"),
        (lambda: Cosine(final=-1), "final=-1 must be at least 0"),
    ],
)
def test_bad_schedules_are_refused_at_once(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_mix_is_stable_and_tells_orders_apart():
    assert mix_seeds(0, 1, 2) == 4727102316523150270
    assert len({mix_seeds(a, b) for a in range(20) for b in range(20)}) == 400
    assert 0 <= mix_seeds(-5) < 2**63


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_training_on_a_gpu_matches_the_cpu():
    models = {device: network().to(device) for device in ("cpu", "cuda")}
    models["cpu"][4].p = models["cuda"][4].p = 0.0  # dropout draws on the device
    rows = {d: fit(m, TOY.load(d), plan(2), device=d) for d, m in models.items()}
    assert rows["cpu"][-1]["train_loss"] == pytest.approx(rows["cuda"][-1]["train_loss"], rel=1e-3)
