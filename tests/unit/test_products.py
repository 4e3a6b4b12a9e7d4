"""Multiply-adds of products that are no layers, against torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import prunekit
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.selection import Budgets, MacsTarget


class Net(nn.Module):
    """Two convolutions around an operation on maps of six channels."""

    def __init__(self, operation, **parts):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.LazyConv2d(4, 1)
        self.operation = operation
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        seen = self.operation(self, self.first(x).flatten(2))
        while seen.ndim < 4:
            seen = seen.unsqueeze(-1)
        return self.last(seen)


def attention(net, x):
    q, k, v = (y.unflatten(1, (2, 3)).transpose(2, 3) for y in (x, x.sigmoid(), x.tanh()))
    return F.scaled_dot_product_attention(q, k, v)


def other_lengths(net, x):
    tokens = x.mT
    return F.scaled_dot_product_attention(tokens[:, :5], tokens[:, :7], tokens[:, :7, :2])


def multihead(net, x):
    tokens = x.mT
    return net.heads(tokens[:, :5], tokens[:, :7], tokens[:, :7], need_weights=True)[0].mT


def recurrent(net, x):
    return net.layers(x.mT)[0].mT


def parameter(shape):
    return nn.Parameter(torch.randn(shape))


OPERATIONS = {
    "none": Net(lambda net, x: x),
    "@": Net(lambda net, x: x @ (x.mT @ x)),
    "reflected @": Net(lambda net, x: x.__rmatmul__(x.mT)),
    "matmul": Net(lambda net, x: torch.matmul(x.unflatten(1, (2, 3)), x.unflatten(1, (2, 3)).mT)),
    "method": Net(lambda net, x: x.matmul(x.mT)),
    "bmm": Net(lambda net, x: torch.bmm(x, x.mT)),
    "baddbmm": Net(lambda net, x: torch.baddbmm(x[:, :, :6], x, x.mT)),
    "mm": Net(lambda net, x: torch.mm(x[0], x[0].T)[None]),
    "addmm": Net(lambda net, x: torch.addmm(x[0, :, :6], x[0], x[0].T)[None]),
    "einsum": Net(lambda net, x: torch.einsum("bct,bdt->bcd", x, x)),
    "einsum of three": Net(lambda net, x: torch.einsum("bct,bdt,bds->bcs", x, x, x)),
    "tensordot": Net(lambda net, x: torch.tensordot(x, x, ([2], [2]))[:, :, 0]),
    "inner": Net(lambda net, x: torch.inner(x, x)[:, :, 0]),
    "a chain": Net(lambda net, x: torch.linalg.multi_dot([x[0], x[0].T, x[0]])[None]),
    "a power": Net(lambda net, x: torch.linalg.matrix_power(x @ x.mT, 3)),
    "a parameter": Net(lambda net, x: net.weight @ x, weight=parameter((5, 6))),
    "a batch of parameters": Net(lambda net, x: net.weight @ x, weight=parameter((1, 5, 6))),
    "computed weights": Net(
        lambda net, x: F.linear(x.mT, net.one @ net.two).mT,
        one=parameter((4, 2)),
        two=parameter((2, 6)),
    ),
    "attention": Net(attention),
    "attention, other lengths": Net(other_lengths),
    "multi-head attention": Net(multihead, heads=nn.MultiheadAttention(6, 2, batch_first=True)),
    "multi-head attention, biased": Net(
        multihead,
        heads=nn.MultiheadAttention(6, 3, batch_first=True, add_bias_kv=True, add_zero_attn=True),
    ),
    "transformer": Net(
        lambda net, x: net.layer(x.mT).mT,
        layer=nn.TransformerEncoderLayer(6, 2, 9, batch_first=True),
    ),
    "rnn": Net(recurrent, layers=nn.RNN(6, 5, batch_first=True)),
    "gru": Net(recurrent, layers=nn.GRU(6, 5, 2, batch_first=True, bidirectional=True)),
}
X = torch.randn(1, 3, 7, 7)


def counted(model, *inputs):
    """Half of what torch's counter counts in eval mode; other kernels hide their products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model.eval()(*(x.clone().requires_grad_() for x in inputs))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_cost_model_agrees_with_torch(name):
    model = OPERATIONS[name].eval()
    model(X)
    graph = ChannelGraph.trace(model, X)
    cost = CostModel(model, graph)
    assert cost.macs() == counted(model, X)
    share = (cost.product_macs + graph.fixed_macs) / cost.macs()
    assert (name == "none") is (share == 0) and share < 1
    pruned = prunekit.prune(model, X, keep=0.5) if graph.groups else None
    if pruned is not None:
        assert pruned.after.macs == counted(pruned.model, X)


def test_lstms_are_counted_by_their_matrices():
    model = Net(recurrent, layers=nn.LSTM(6, 5, batch_first=True)).eval()
    model(X)
    products = 25 * 4 * 5 * (6 + 5)  # positions, gates, outputs, inputs
    without = 25 * 6 * 3 * 9 + 25 * 5 * 4
    assert CostModel(model, ChannelGraph.trace(model, X)).macs() == products + without


@pytest.mark.parametrize("layer", [True, False])
def test_bilinear_maps_are_counted_by_their_weights(layer):
    weight = parameter((5, 6, 6))
    part = {"part": nn.Bilinear(6, 6, 5)} if layer else {"weight": weight}

    def operation(net, x):
        tokens = x.mT
        seen = net.part(tokens, tokens) if layer else F.bilinear(tokens, tokens, net.weight)
        return seen.mT

    model = Net(operation, **part).eval()
    model(X)
    expected = counted(model, X) + 25 * 5 * 6 * 6
    assert CostModel(model, ChannelGraph.trace(model, X)).macs() == expected


class Looking(nn.Module):
    """Positions look at each other: most multiply-adds are in products."""

    def __init__(self):
        super().__init__()
        self.stem, self.mix = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.key, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        key = self.key(self.mix(self.stem(x).relu()).relu()).flatten(2)
        return self.head((key @ (key.mT @ key)).mean(2))


def test_a_budget_says_which_share_it_cannot_touch():
    torch.manual_seed(0)
    model = Looking().eval()
    pruned = prunekit.prune(model, X, macs=0.6)
    before, after = counted(model, X), counted(pruned.model, X)
    assert (pruned.before.macs, pruned.after.macs) == (before, after)
    products = 2 * 25 * 25 * 6
    assert pruned.budgets[0].achieved == (after - products) / (before - products) <= 0.6
    note = f"{products / before:.1%} of the MACs are in products of activations"
    (line,) = [line for line in pruned.notes if note in line]
    assert line.endswith(f"; 0.6 is a share of the others, and {after / before:.1%} of all stay")
    for more in ({"keep": 0.5}, {"params": 0.6}):
        assert not any("in products of" in line for line in prunekit.prune(model, X, **more).notes)
    both = Budgets(macs=0.6, params=0.9)
    assert any(note in line for line in prunekit.prune(model, X, selection=both).notes)
    amount = MacsTarget(int(0.9 * before))
    cut = prunekit.prune(model, X, selection=amount)
    assert counted(cut.model, X) <= 0.9 * before and any(note in line for line in cut.notes)
    with pytest.raises(ConfigError, match=rf"keep=1000 cannot be reached.*; {note}"):
        prunekit.prune(model, X, selection=MacsTarget(1000))
