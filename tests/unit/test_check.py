"""The comparison of a narrow network with the silenced one: what it sees, and what it leaves."""

from __future__ import annotations

import copy
import dataclasses
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow
from prunekit.surgery.equivalence import Agreement, Gap, compare, randomised

Outputs = namedtuple("Outputs", ["logits", "aux"])


class Net(nn.Module):
    """Two convolutions with everything random in between; a head that is seen in training only."""

    def __init__(self, pool=False):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.path = StochasticDepth(0.5, "row")
        self.last = nn.Conv2d(8, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)
        self.aux = nn.Linear(8, 4)
        self.pool = pool

    def forward(self, x):
        x = self.drop(F.relu(self.bn(self.conv(x))))
        x = F.dropout(x, 0.3, training=self.training)
        aux = self.aux(x.mean((2, 3)))
        x = self.last(x.mean((2, 3), keepdim=True) if self.pool else x)
        x = self.head(torch.flatten(self.path(self.norm(x)).mean((2, 3)), 1))
        return Outputs(x, aux) if self.training else x


def cut(model, example, share=0.5):
    graph = ChannelGraph.trace(model, example)
    drop = graph.drop({g.name: torch.rand(len(g.units)) > share for g in graph.groups})
    narrow = copy.deepcopy(model)
    Narrow.of(graph, drop).apply(narrow)
    return model, narrow, graph, drop


@pytest.fixture
def parts():
    torch.manual_seed(1)
    return cut(randomised(Net()), torch.rand(1, 3, 8, 8))


def test_a_cut_agrees_in_both_modes_with_everything_random_off(parts):
    found = compare(*parts, torch.rand(4, 3, 8, 8))
    assert found.worst == max(found.eval.relative, found.train.relative)
    assert found.worst < 1e-5 and found.note == ""
    assert str(found).startswith("narrow = silenced network up to ")
    assert "in eval mode (absolute " in str(found) and "in train mode" in str(found)
    assert "\n" not in str(found)


def test_doubles_agree_to_their_own_precision(parts):
    model, narrow, graph, drop = parts
    found = compare(model.double(), narrow.double(), graph, drop, torch.rand(4, 3, 8, 8).double())
    assert found.precision == "float64" and found.worst < 1e-12


@pytest.mark.parametrize("mode", [True, False])
def test_nothing_is_left_behind(parts, mode):
    model, narrow, *_ = parts
    for net in (model, narrow):
        net.train(mode)
        net.bn.eval()
    narrow.conv.weight.requires_grad_(False)
    before = [copy.deepcopy(net.state_dict()) for net in (model, narrow)]
    buffers = [b for net in (model, narrow) for b in net.buffers()]
    random = torch.random.get_rng_state()
    compare(*parts, torch.rand(4, 3, 8, 8, generator=torch.Generator()))
    assert torch.equal(random, torch.random.get_rng_state())
    for net, state in zip((model, narrow), before, strict=True):
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
        assert net.training is mode and net.drop.training is mode and not net.bn.training
    assert all(a is b for a, b in zip(buffers, [*model.buffers(), *narrow.buffers()], strict=True))
    assert not narrow.conv.weight.requires_grad and model.conv.weight.requires_grad
    assert all(p.grad is None for net in (model, narrow) for p in net.parameters())


def test_a_wrong_cut_is_refused(parts):
    model, narrow, graph, drop = parts
    with torch.no_grad():
        narrow.last.weight.copy_(narrow.last.weight.flip(1))
    with pytest.raises(SurgeryError, match=r"differs .* in eval mode \(at most 0\.0001, float64\)"):
        compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8))
    assert compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8), tolerance=1e3).worst > 1e-4


def test_a_mistake_that_only_training_shows_is_found(parts):
    model, narrow, graph, drop = parts
    with torch.no_grad():
        narrow.aux.weight.copy_(narrow.aux.weight.flip(1))
    with pytest.raises(SurgeryError, match="in train mode"):
        compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8))


def test_one_example_of_zeros_is_enough():
    torch.manual_seed(1)
    model, narrow, graph, drop = cut(randomised(Net(pool=True)), torch.zeros(1, 3, 8, 8))
    found = compare(model, narrow, graph, drop, torch.zeros(1, 3, 8, 8))
    assert found.train is not None and found.worst < 1e-4
    with torch.no_grad():
        narrow.conv.weight.mul_(1.01)  # zeros would hide it
    with pytest.raises(SurgeryError, match="eval mode"):
        compare(model, narrow, graph, drop, torch.zeros(1, 3, 8, 8))


class Coarse(nn.Module):
    """A layer whose floats are off by more than any processor rounds them; its doubles are not."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        y = self.layer(x)
        return y * (1 + 2**-18) if y.dtype == torch.float32 else y


def test_rounding_is_told_from_errors_by_doubles(parts):
    model, narrow, graph, drop = parts
    narrow.head = Coarse(narrow.head)
    rough = compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8))
    assert rough.precision == "float32" and 1e-6 < rough.worst < 1e-5
    found = compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8), tolerance=1e-10)
    assert found.precision == "float64" and found.worst < 1e-10
    assert model.conv.weight.dtype == narrow.conv.weight.dtype == torch.float32


class Untrainable(Net):
    def forward(self, x):
        if self.training:
            raise RuntimeError("give me targets\nand boxes")
        return super().forward(x)


def test_where_training_needs_more_than_a_batch_it_is_said():
    torch.manual_seed(1)
    found = compare(*cut(randomised(Untrainable()), torch.rand(1, 3, 8, 8)), torch.rand(2, 3, 8, 8))
    assert found.train is None
    assert found.note.startswith("train mode not compared: ") and "give me targets" in str(found)
    assert "boxes" not in str(found)


def test_only_the_narrow_network_failing_is_an_error(parts):
    model, narrow, graph, drop = parts
    narrow.aux = nn.Linear(99, 4)
    with pytest.raises(SurgeryError, match="the narrow network fails on the batch"):
        compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8))


def test_numbers_that_are_not_finite_are_named(parts):
    model, narrow, graph, drop = parts
    with torch.no_grad():
        narrow.head.bias[0] = torch.nan
    with pytest.raises(SurgeryError, match="the narrow network puts out nan or inf in 4 of 16"):
        compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8))
    with torch.no_grad():
        model.head.bias[0] = torch.inf
    with pytest.raises(SurgeryError, match="the dense network itself puts out nan or inf"):
        compare(model, narrow, graph, drop, torch.rand(4, 3, 8, 8))


def test_a_network_that_does_not_run_is_no_riddle(parts):
    with pytest.raises(SurgeryError, match="the dense network fails on the batch: "):
        compare(*parts, torch.rand(4, 5, 8, 8))


@dataclasses.dataclass
class Boxes:
    scores: torch.Tensor
    labels: torch.Tensor


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: (x, [x]),
        lambda x: {"out": x, "aux": (x,)},
        lambda x: Outputs(x, None),
        lambda x: Boxes(x, x.argmax(1)),
    ],
)
def test_outputs_of_any_kind(wrap):
    x = torch.tensor([[1.0, -4.0]])
    assert Gap.between(wrap(x), wrap(x)) == Gap(0.0, 0.0)
    assert Gap.between(wrap(x + 1), wrap(x)) == Gap(1.0, 0.25)


def test_outputs_on_their_own_scales_and_zeros():
    zero, one = torch.zeros(2), torch.ones(2)
    assert Gap.between([zero, 100 * one], [zero, 100 * one]) == Gap(0.0, 0.0)
    assert Gap.between([zero + 0.5, 100 * one], [zero, 100 * one]) == Gap(0.5, 0.5)
    assert Gap.between([one, 102 * one], [one, 100 * one]) == Gap(2.0, 0.02)
    with pytest.raises(SurgeryError, match=r"\(2,\) and \(3,\)"):
        Gap.between(torch.ones(2), torch.ones(3))
    with pytest.raises(SurgeryError, match="no floating-point tensor"):
        Gap.between("a", "b")


class Two(nn.Module):
    """Two inputs, a dict as output, attention with dropout of its own."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(3, 8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x, y):
        z = self.a(x) + self.b(y)
        z = self.attention(z, z, z, need_weights=False)[0]
        z = F.scaled_dot_product_attention(z, z, z, dropout_p=0.5 if self.training else 0.0)
        return {"z": self.down(F.gelu(self.up(z))), "rank": 3}


def test_several_inputs_and_attention():
    torch.manual_seed(0)
    batch = torch.rand(2, 5, 4), torch.rand(2, 5, 3)
    found = compare(*cut(randomised(Two()), batch), batch)
    assert found.train.relative < 1e-5


def test_norms_over_channels_cut_on_request_are_told_not_refused():
    torch.manual_seed(0)
    norm = nn.LayerNorm(8)
    net = randomised(nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 8), nn.Linear(8, 2)))
    x = torch.rand(3, 4)
    graph = ChannelGraph.trace(net, x, over_norms=True)
    for group, exact in (("2", True), ("0", False)):
        drop = graph.drop({group: torch.arange(8) < 3})
        Narrow.of(graph, drop).apply(narrow := copy.deepcopy(net))
        found = compare(net, narrow, graph, drop, x)
        assert (found.worst < 1e-5) is exact
        assert ("norms over channels lost some: 1" in found.note) is not exact


def test_outputs_without_entries_are_no_proof():
    nothing = Gap.between({"boxes": torch.zeros(0, 4)}, {"boxes": torch.zeros(0, 4)})
    assert nothing.empty and "nothing was compared" in str(Agreement(nothing, None))
    assert not Gap.between(torch.ones(1), torch.ones(1)).empty


def test_agreement_prints_without_training():
    assert str(Agreement(Gap(2e-7, 1e-7), None, "float32", "train mode not compared: x")) == (
        "narrow = silenced network up to 1.0e-07 in eval mode (absolute 2.0e-07), float32; "
        "train mode not compared: x"
    )


def test_randomised_wakes_what_is_idle_and_leaves_the_model():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    nn.init.zeros_(net[3].weight)
    net.scale = nn.Parameter(torch.full((4, 1, 1), 1e-6))
    before = copy.deepcopy(net.state_dict())
    awake = randomised(net, seed=3)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(awake[0].weight, net[0].weight)
    for tensor in (awake[1].weight, awake[1].bias, awake[3].weight, awake.scale):
        assert len(tensor.unique()) > 1
    for tensor in (awake[1].running_mean, awake[1].running_var):
        assert len(tensor.unique()) > 1
    assert awake.scale.min() > 0.4 and awake[1].running_var.min() > 0.4
    again = randomised(net, seed=3).state_dict()
    assert all(torch.equal(v, again[k]) for k, v in awake.state_dict().items())
