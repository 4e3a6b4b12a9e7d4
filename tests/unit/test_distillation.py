"""Distillation: the loss and its gradient by hand, a teacher that never moves, training with it."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import classifier as network
from torch import nn
from torch.optim import SGD

from prunekit.data import Data, Normalize, Synthetic, TensorBatches
from prunekit.errors import ConfigError
from prunekit.penalties import L1
from prunekit.rows import Rows, Slice
from prunekit.solvers import KeepZeros
from prunekit.training import Checkpoint, CrossEntropy, Distillation, Schedule, fit

TOY = Synthetic(classes=3, image_size=8, train=50, val=12, test=12, crop=1, flip=True)


class Given(nn.Module):
    """Logits that are parameters, whatever the images are."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.as_tensor(logits).clone())

    def forward(self, x):
        return self.logits


def plan(epochs=2, **options):
    return Schedule(epochs, 16, partial(SGD, lr=0.1, momentum=0.9), **options)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def by_hand(student, teacher, labels, weight, temperature, smoothing):
    """The loss in numpy, and its gradient by the logits of the student."""
    count, classes = student.shape
    target = np.eye(classes)[labels] * (1 - smoothing) + smoothing / classes
    entropy = -(target * np.log(softmax(student))).sum() / count
    soft, wanted = softmax(student / temperature), softmax(teacher / temperature)
    divergence = (wanted * np.log(wanted / soft)).sum() / count
    loss = (1 - weight) * entropy + weight * temperature**2 * divergence
    slope = (1 - weight) * (softmax(student) - target) + weight * temperature * (soft - wanted)
    return loss, slope / count


@given(
    seed=st.integers(0, 1000),
    count=st.integers(1, 5),
    classes=st.integers(2, 6),
    weight=st.floats(0, 1),
    temperature=st.floats(0.5, 20),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_loss_and_gradient_are_those_of_a_hand_calculation(
    seed, count, classes, weight, temperature, smoothing
):
    draw = np.random.default_rng(seed)
    student, teacher = draw.normal(0, 3, (2, count, classes))
    labels = draw.integers(0, classes, count)
    model = Given(student)
    loss = Distillation(Given(teacher), weight, temperature, smoothing)
    found, logits = loss(model, torch.zeros(count, 1), torch.from_numpy(labels))
    found.backward()
    expected, slope = by_hand(student, teacher, labels, weight, temperature, smoothing)
    assert found.item() == pytest.approx(expected, abs=1e-10)
    assert logits is model.logits
    assert np.allclose(model.logits.grad.numpy(), slope, atol=1e-10)


def test_the_published_weights_are_the_defaults():
    loss = Distillation(nn.Flatten())
    assert (loss.weight, loss.temperature, loss.smoothing) == (0.4, 4.0, 0.0)


def test_three_numbers_on_paper():
    """One example, two classes: teacher (4 ln 3, 0) is (3/4, 1/4) at T = 4, student (1/2, 1/2)."""
    loss = Distillation(Given([[4 * float(np.log(3)), 0.0]]))
    found, _ = loss(Given([[0.0, 0.0]]), torch.zeros(1, 1), torch.tensor([0]))
    kl = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert found.item() == pytest.approx(0.6 * np.log(2) + 0.4 * 16 * kl, abs=1e-6)
    assert found.item() == pytest.approx(1.2531, abs=1e-4)


def one_example():
    x, y = torch.full((1, 1, 1, 1), 2.0), torch.zeros(1, dtype=torch.long)
    batches = TensorBatches(x, y, Normalize((0.0,), (1.0,)))
    nothing = TensorBatches(x[:0], y[:0], Normalize((0.0,), (1.0,)))
    return Data(batches, nothing, batches, 2, (1, 1, 1))


def linear(weights):
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2, bias=False))
    model[1].weight.data = torch.tensor(weights).reshape(2, 1)
    return model


def test_the_first_step_of_a_training_by_hand():
    """Image 2, label 0, student (0, 0), teacher (2 ln 3, -2 ln 3): (9, 1) / 10 at T = 2."""
    model, corner = linear([0.0, 0.0]), float(np.log(3))
    loss = Distillation(linear([corner, -corner]), weight=0.4, temperature=2.0)
    rows = fit(model, one_example(), Schedule(1, 1, partial(SGD, lr=0.5)), loss=loss)
    kl = 0.9 * np.log(1.8) + 0.1 * np.log(0.2)
    assert rows[0]["train_loss"] == pytest.approx(0.6 * np.log(2) + 0.4 * 4 * kl, abs=1e-6)
    # by the logits 0.6 (-1/2, 1/2) + 0.4 * 2 (-0.4, 0.4), by the weights twice that
    assert model[1].weight.flatten().tolist() == pytest.approx([0.62, -0.62], abs=1e-6)


def same(first, second):
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weight_nothing_is_plain_training_bit_for_bit(smoothing):
    plain, taught, schedule = network(), network(), plan(label_smoothing=smoothing)
    expected = fit(plain, TOY.load(), schedule)
    loss = Distillation(network(1), weight=0.0, smoothing=smoothing)
    assert fit(taught, TOY.load(), schedule, loss=loss) == expected
    assert same(plain, taught)


def test_a_network_has_nothing_to_learn_from_itself():
    model = network().eval()
    x, y = torch.randn(5, 1, 8, 8), torch.arange(5) % 3
    loss, _ = Distillation(model, weight=1.0)(model, x, y)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-5)
    assert max(float(p.grad.abs().max()) for p in model.parameters()) < 1e-5


class TestTheTeacher:
    """It is a copy, in evaluation mode, that training leaves as it is."""

    def test_it_never_moves(self):
        model = network()
        loss, before = Distillation(model), copy.deepcopy(model)
        fit(model, TOY.load(), plan(), loss=loss)
        assert same(loss.teacher, before) and not same(model, before)
        assert not any(module.training for module in loss.teacher.modules())
        assert all(p.grad is None and not p.requires_grad for p in loss.teacher.parameters())

    def test_what_was_given_stays_as_it_was(self):
        given = network().train()
        Distillation(given)
        assert all(module.training for module in given.modules())
        assert all(p.requires_grad for p in given.parameters())

    def test_it_uses_its_statistics_and_no_dropout(self):
        """Beside other images in the batch, an image gets the same logits."""
        given = network()
        given[1].running_mean.data = torch.tensor([0.3, -0.2, 0.1, 0.0])
        loss, x = Distillation(given, weight=1.0, temperature=1.0), torch.randn(6, 1, 8, 8)
        wanted = copy.deepcopy(given).eval()(x)
        found, _ = loss(Given(torch.zeros(6, 3)), x, torch.zeros(6, dtype=torch.long))
        p = wanted.softmax(dim=1)
        expected = (p * (p.log() - np.log(1 / 3))).sum(dim=1).mean()
        assert found.item() == pytest.approx(expected.item(), abs=1e-5)

    def test_it_lies_channels_last(self):
        weight = Distillation(nn.Conv2d(4, 6, 3)).teacher.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)

    def test_other_classes_are_refused_even_where_they_would_broadcast(self):
        for classes in (1, 5):
            loss = Distillation(network(classes=classes))
            with pytest.raises(ConfigError, match=rf"\(4, {classes}\), the network's \(4, 3\)"):
                loss(network(), torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": 2}, "weight=2 must be at most 1"),
        ({"weight": -0.1}, "weight=-0.1 must be at least 0"),
        ({"temperature": 0}, "temperature=0 must be above 0"),
        ({"temperature": float("inf")}, "temperature=inf is not a finite number"),
        ({"smoothing": 1}, "smoothing=1 must be below 1"),
    ],
)
def test_bad_numbers_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Distillation(nn.Flatten(), **settings)


def test_a_teacher_that_is_no_network_is_refused():
    with pytest.raises(ConfigError, match=r"teacher='model\.pt' is a str"):
        Distillation("model.pt")


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounding_only(precision):
    x, y = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(3)), torch.arange(8) % 3
    loss, model = Distillation(network(1), weight=0.9), network().eval()
    whole, _ = loss(model, x, y)
    with torch.autocast("cpu", precision):
        half, logits = loss(model, x, y)
    assert logits.dtype is precision and half.dtype is torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.02)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_training_in_half_precision_ends_near(precision):
    ends = []
    for kind in ("float32", precision):
        model = network()
        model[4].p = 0.0
        rows = fit(model, TOY.load(), plan(precision=kind), loss=Distillation(network(1)))
        ends.append(rows[-1]["train_loss"])
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


def test_accumulated_batches_are_one_large_one():
    x = torch.randn(14, 1, 8, 8, generator=torch.Generator().manual_seed(7)).double()
    batches = TensorBatches(x, torch.arange(14) % 3, Normalize((0.0,), (1.0,)))
    nothing = TensorBatches(x[:0], torch.zeros(0, dtype=torch.long), Normalize((0.0,), (1.0,)))
    data, ends = Data(batches, nothing, batches, 3, (1, 8, 8)), []
    for batch, accumulate in ((16, 1), (4, 4)):
        model = network().double()
        model[4].p = 0.0
        schedule = Schedule(1, batch, partial(SGD, lr=0.1), accumulate=accumulate)
        loss = Distillation(network(1).double())
        rows = fit(model, data, schedule, loss=loss, frozen=[model[1]])
        ends.append((rows[0]["train_loss"], model.state_dict()))
    assert ends[0][0] == pytest.approx(ends[1][0])
    for a, b in zip(ends[0][1].values(), ends[1][1].values(), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_zeros_that_are_held_stay_zero():
    model = network()
    weight = model[5].weight
    weight.data[:, ::2] = 0
    solver = KeepZeros()
    solver.bind(L1(0.0), [Rows("fc", (Slice(weight, dim=None),), torch.arange(1, 769))])
    before = weight.detach().clone()
    fit(model, TOY.load(), plan(), solver=solver, loss=Distillation(network(1)))
    assert torch.equal(weight[:, ::2], before[:, ::2])
    assert not torch.equal(weight[:, 1::2], before[:, 1::2])


class Killed(Exception):
    pass


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path):
    def stop(history):
        if len(history) == 1:
            raise Killed

    whole, killed, again = network(), network(), network()
    loss = Distillation(network(1), smoothing=0.1)
    expected = fit(whole, TOY.load(), plan(3), loss=loss)
    kept = Checkpoint(tmp_path / "last.pt", "toy")
    with pytest.raises(Killed):
        fit(killed, TOY.load(), plan(3), loss=loss, checkpoint=kept, on_epoch=stop)
    renewed = Distillation(network(1), smoothing=0.1)
    assert fit(again, TOY.load(), plan(3), loss=renewed, checkpoint=kept) == expected
    assert same(whole, again) and not same(whole, killed)


def test_the_teacher_makes_a_difference():
    ends = []
    for loss in (CrossEntropy(), Distillation(network(1)), Distillation(network(2))):
        model = network()
        fit(model, TOY.load(), plan(1), loss=loss)
        ends.append(model)
    assert not any(same(a, b) for a, b in ((ends[0], ends[1]), (ends[1], ends[2])))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the teacher moves to a GPU there")
def test_the_teacher_follows_the_images_to_the_gpu():
    loss = Distillation(network(1))
    found, _ = loss(network().cuda(), torch.zeros(4, 1, 8, 8).cuda(), torch.arange(4).cuda() % 3)
    assert found.is_cuda and next(loss.teacher.parameters()).is_cuda
