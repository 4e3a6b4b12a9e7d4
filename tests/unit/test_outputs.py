"""Networks that return more than logits: which output counts, and what auxiliary heads add."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD
from torch.utils._pytree import tree_leaves
from toys import made, toy_data

from prunekit.criteria import HessianDiagonal, Taylor
from prunekit.data import Data, FixedBatches
from prunekit.errors import ConfigError, DataError, TrainingError
from prunekit.outputs import auxiliary_logits, logits_of
from prunekit.stages.export import _leading_output, _OneOutput
from prunekit.training import CrossEntropy, Distillation, Schedule, evaluate, fit

ONE, TWO = torch.randn(3, 5), torch.randn(3, 5)


class Several(NamedTuple):
    aux_logits: Tensor
    logits: Tensor


@dataclass
class Fields:
    loss: Tensor | None
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    [
        ONE,
        (ONE, TWO),
        [None, ONE],
        {"aux": TWO, "out": ONE},
        {"features": TWO, "logits": ONE},
        {"scores": ONE, "note": "text"},
        Several(TWO, ONE),
        Fields(None, ONE),
    ],
    ids=lambda output: type(output).__name__,
)
def test_the_output_that_counts(output):
    assert logits_of(output) is ONE


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({"boxes": TWO, "scores": ONE}, "a dict of boxes, scores, and prunekit cannot tell"),
        ({"note": "text"}, "a dict of note"),
        ((), "a tuple"),
        (None, "a NoneType"),
    ],
)
def test_outputs_of_which_none_is_the_logits(output, told):
    with pytest.raises(ConfigError, match=told):
        logits_of(output)


def test_auxiliary_heads_have_a_name_and_the_shape_of_the_logits():
    assert auxiliary_logits(Several(TWO, ONE)) == {"aux_logits": TWO}
    assert auxiliary_logits({"out": ONE, "aux": torch.ones(3, 2), "aux2": None}) == {}
    assert auxiliary_logits((ONE, TWO)) == auxiliary_logits(ONE) == {}


class Trunk(nn.Module):
    """A network with two heads, which returns what `wrap` makes of their outputs."""

    def __init__(self, wrap=lambda logits, other, training: logits):
        super().__init__()
        self.wrap = wrap
        self.maps, self.head, self.side = nn.Conv2d(1, 4, 3), nn.Linear(4, 5), nn.Linear(4, 5)

    def forward(self, images):
        seen = self.maps(images).relu().mean((2, 3))
        return self.wrap(self.head(seen), self.side(seen), self.training)


def schedule(epochs, batch=8):
    return Schedule(epochs, batch, partial(SGD, lr=0.1))


def inception(logits, other, training):
    return Several(other, logits) if training else logits


def like(network, wrap):
    twin = Trunk(wrap)
    twin.load_state_dict(network.state_dict())
    return twin


WRAPS = {
    "tuple": lambda logits, other, training: (logits, other),
    "dict": lambda logits, other, training: {"features": other, "logits": logits},
}


@pytest.mark.parametrize("kind", WRAPS)
def test_every_pass_uses_the_same_output(kind):
    """Compare with the same network that returns its logits alone."""
    torch.manual_seed(0)
    plain, graph = made(Trunk())
    other, data = like(plain, WRAPS[kind]), toy_data()
    assert evaluate(other, data.test, "cpu") == evaluate(plain, data.test, "cpu")
    for criterion in (Taylor(samples=16), HessianDiagonal(samples=16)):
        scores = (criterion.scores(net, graph, data) for net in (other.eval(), plain))
        torch.testing.assert_close(*scores)
    teacher = made(Trunk(), seed=1)[0]
    pair = (like(teacher, WRAPS[kind]), teacher)
    x, y = next(data.train.epoch(8, None))
    losses = [
        Distillation(one)(net, x, y)[0] for one, net in zip(pair, (other, plain), strict=True)
    ]
    torch.testing.assert_close(*losses)
    histories = [fit(net, data, schedule(1)) for net in (other, plain)]
    assert histories[0] == histories[1]


class AsList(nn.Module):
    """Returns the outputs of a network as an ONNX file does: in a list, without names."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return tree_leaves(self.network(images))


@pytest.mark.parametrize("kind", WRAPS)
def test_an_exported_file_is_measured_at_the_same_output(kind):
    network, data = made(Trunk(WRAPS[kind]))[0], toy_data()
    exported = _OneOutput(AsList(network), _leading_output(network, data))
    assert evaluate(exported, data.test, "cpu") == evaluate(network, data.test, "cpu")


def test_auxiliary_heads_are_trained_with_less_weight(caplog):
    network, data = made(Trunk(inception))[0].train(), toy_data()
    x, y = next(data.train.epoch(8, None))
    aux, logits = network(x)
    expected = F.cross_entropy(logits, y) + 0.3 * F.cross_entropy(aux, y)
    torch.testing.assert_close(CrossEntropy()(network, x, y)[0], expected)
    before = network.side.weight.clone()
    with caplog.at_level(logging.WARNING, "prunekit"):
        fit(network, data, schedule(2))
    assert not torch.equal(network.side.weight, before)
    assert [record.getMessage() for record in caplog.records] == [
        "0.3 times the loss of each auxiliary head is added to the loss: aux_logits"
    ]
    assert not network._forward_hooks


def test_a_batch_of_one_in_front_of_a_batch_norm_is_one_line():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1), nn.Flatten())
    network.append(nn.Linear(1, 5))
    with pytest.raises(TrainingError, match=r"^train: .*batch of one example.* above 1") as caught:
        fit(network, toy_data(), schedule(1, batch=1))
    assert "\n" not in str(caught.value)


def with_nan(place):
    """Batches of the caller's own, one of whose inputs is not finite."""
    x, y = next(toy_data().train.epoch(24, None))
    x[place, 0, 3, 3] = math.nan
    fixed = FixedBatches([*zip(x.split(8), y.split(8), strict=True)])
    return Data(fixed, fixed, fixed, 5, (1, 8, 8))


def test_inputs_that_are_not_finite_are_named_instead_of_the_learning_rate():
    data = with_nan(18)
    with pytest.raises(DataError, match=r"^training input 18 holds nan or infinite values"):
        fit(Trunk(), data, schedule(1))
    with pytest.raises(DataError, match=r"^evaluated input 18 holds nan"):
        evaluate(Trunk(), data.test, "cpu")


def test_labels_that_the_network_has_no_output_for_are_named():
    with pytest.raises(DataError, match=r"labels reach from 0 to 7, but the network has 5 outputs"):
        CrossEntropy()(Trunk(), torch.ones(2, 1, 8, 8), torch.tensor([0, 7]))
