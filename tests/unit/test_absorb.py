"""Constants of removed channels: an oracle with emitting channels, pattern by pattern."""

from __future__ import annotations

import copy

import networks
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.surgery import Narrow, edit_from_dict, load_model, save_model
from prunekit.surgery.bias_compensation import absorb
from prunekit.surgery.biases import BiasMap, BiasMaps, NewBiases
from prunekit.surgery.constants import emitting
from prunekit.surgery.equivalence import Gap, compare, randomised

X = torch.rand(3, 4, 9, 9, generator=torch.Generator().manual_seed(0)).double()


def conv(inputs, outputs, size=1, pad=0, **more):
    return nn.Conv2d(inputs, outputs, size, padding=pad, **more)


class Chain(nn.Sequential):
    """VGG: convolution, norm, activation, and again."""

    def __init__(self, size=3, pad=0, act=nn.Sigmoid, bias=True):
        first, second = conv(4, 8, size, pad, bias=bias), conv(8, 6, size, pad, bias=bias)
        head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
        norms = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        super().__init__(first, norms[0], act(), second, norms[1], act(), *head)


class Residual(nn.Module):
    """Both producers of the sum emit; a convolution without bias that no norm follows."""

    def __init__(self, pad=0):
        super().__init__()
        self.a, self.b = conv(4, 8), conv(4, 8, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.out = conv(8, 5, 3, pad, bias=False)
        self.head = nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(self.out(self.a(x) + self.norm(self.b(x)))).mean((2, 3)))


class Inverted(nn.Module):
    """MobileNet: expansion, depthwise convolution, projection."""

    def __init__(self):
        super().__init__()
        self.expand, self.first = conv(4, 8, bias=False), nn.BatchNorm2d(8)
        self.depth, self.second = conv(8, 8, 3, 1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.project, self.third = conv(8, 6, bias=False), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = F.silu(self.second(self.depth(F.silu(self.first(self.expand(x))))))
        return self.head(self.third(self.project(x)).mean((2, 3)))


class Dense(nn.Module):
    """DenseNet: every layer has a norm of its own for the channels before it."""

    def __init__(self, size=1):
        super().__init__()
        self.first = conv(4, 6, bias=False)
        self.norm, self.conv = nn.BatchNorm2d(6), conv(6, 5, size, size // 2, bias=False)
        self.last, self.out = nn.BatchNorm2d(11), conv(11, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = self.first(x)
        x = torch.cat([x, self.conv(F.relu(self.norm(x)))], 1)
        return self.head(F.elu(self.out(F.gelu(self.last(x)))).mean((2, 3)))


class Flattened(nn.Module):
    """Nine positions of every channel are features of a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(4, 6, 3), nn.BatchNorm2d(6)
        self.hidden, self.head = nn.Linear(6 * 9, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = F.adaptive_avg_pool2d(F.softplus(self.norm(self.conv(x))), 3)
        return self.head(F.selu(self.hidden(torch.flatten(x, 1))))


class Shared(nn.Module):
    """One layer called twice, with constants that are the same or not."""

    def __init__(self, same):
        super().__init__()
        self.first, self.twice, self.head = conv(4, 8), conv(8, 8), nn.Linear(8, 3)
        self.same = same

    def forward(self, x):
        x = self.first(x)
        y = torch.tanh(self.twice(x)) + self.twice(x.flip(3) if self.same else torch.sigmoid(x))
        return self.head(y.mean((2, 3)))


class Grouped(nn.Module):
    """Two groups, each of which loses inputs."""

    def __init__(self, pad=0):
        super().__init__()
        self.first, self.norm = conv(4, 8), nn.BatchNorm2d(8)
        self.conv, self.head = conv(8, 6, 3, pad, groups=2, bias=False), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.silu(self.conv(F.silu(self.norm(self.first(x))))).mean((2, 3)))


class Up(nn.Module):
    """A transposed convolution, whose taps depend on the position."""

    def __init__(self, size, stride, pad=0):
        super().__init__()
        self.first, self.norm = conv(4, 8), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, size, stride, pad)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        return self.head(F.silu(self.up(F.silu(self.norm(self.first(x))))).mean((2, 3)))


class Gated(nn.Module):
    """A gate that depends on image and position scales the constants."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(4, 8), nn.BatchNorm2d(8)
        self.gate, self.out = conv(8, 1), conv(8, 5)

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.conv(x)))
        return self.out(x * torch.sigmoid(self.gate(x))).square().mean((2, 3))


class Excited(nn.Module):
    """Squeeze and excite: the gates of removed channels are constants too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(4, 8), nn.BatchNorm2d(8)
        self.gate, self.out = conv(8, 8), conv(8, 5)

    def forward(self, x):
        x = torch.sigmoid(self.norm(self.conv(x)))
        return self.out(x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))).mean((2, 3))


class Tokens(nn.Module):
    """Linear layers over the last of three dimensions."""

    def __init__(self):
        super().__init__()
        self.embed, self.up, self.down = conv(4, 6, 3, 0), nn.Linear(6, 16), nn.Linear(16, 6)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return x + self.down(F.gelu(self.up(x)))


class ByFunction(nn.Module):
    """Convolutions whose weights are parameters of the network."""

    def __init__(self, bias=True, norm=False):
        super().__init__()
        self.first = conv(4, 8)
        self.weight = nn.Parameter(torch.rand(8, 8, 1, 1))
        self.bias = nn.Parameter(torch.rand(8)) if bias else None
        self.norm = nn.BatchNorm2d(8) if norm else nn.Identity()
        self.last = conv(8, 3)

    def forward(self, x):
        x = F.conv2d(torch.sigmoid(self.first(x)), self.weight, self.bias)
        return self.last(torch.sigmoid(self.norm(x))).mean((2, 3))


def cut(model, seed=0):
    """The dense network in doubles, the narrow one, and what connects them."""
    torch.manual_seed(seed)
    model = randomised(model).double().eval()
    graph = ChannelGraph.trace(model, X)
    chosen = {}
    for group in graph.groups:
        half = len(group.units) // 2  # every second: as many in each group of a convolution
        chosen[group.name] = torch.arange(len(group.units)) % 2 == 1 if half else None
    drop = graph.drop({name: mask for name, mask in chosen.items() if mask is not None})
    narrow = copy.deepcopy(model)
    Narrow.of(graph, drop).apply(narrow)
    return model, narrow, graph, drop


def distance(model, narrow, graph, drop):
    with torch.no_grad(), emitting(model, graph, drop):
        reference = model(X)
    with torch.no_grad():
        return Gap.between(narrow(X), reference).relative


EXACT = {
    "chain": Chain(),
    "chain without biases": Chain(bias=False),
    "residual": Residual(),
    "depthwise": Inverted(),
    "dense": Dense(),
    "flatten, linear": Flattened(),
    "shared": Shared(True),
    "grouped": Grouped(),
    "transposed": Up(1, 1),
    "transposed, one tap each": Up(3, 3, 0),
    "tokens": Tokens(),
    "squeeze and excite": Excited(),
}
PADDED = {
    "dense": Dense(3),
    "chain": Chain(3, 1),
    "chain without biases": Chain(3, 1, bias=False),
    "residual": Residual(1),
    "grouped": Grouped(1),
    "transposed": Up(3, 2, 1),
    "transposed, overlapping": Up(3, 1),
}


@pytest.mark.parametrize("name", EXACT)
def test_without_padding_absorption_is_exact(name):
    parts = cut(EXACT[name])
    before = distance(*parts)
    found = absorb(*parts, X, maps=name == "transposed, one tap each")
    assert found.exact and found.rows and not found.notes, str(found.rows)
    assert distance(*parts) < 1e-9 < 1e-4 < before
    assert found.change.before == pytest.approx(before) and found.change.after < 1e-9
    assert found.change.moved > 1e-4


@pytest.mark.parametrize("name", PADDED)
def test_maps_make_padding_exact(name):
    model, narrow, graph, drop = cut(PADDED[name])
    other = copy.deepcopy(narrow)
    rough = absorb(model, other, graph, drop, X)
    assert not rough.exact and "of positions (borders)" in rough.notes[0]
    assert rough.change.after < rough.change.before
    found = absorb(model, narrow, graph, drop, X, maps=True)
    assert found.exact and isinstance(found.edits[-1], BiasMaps)
    assert found.change.after < 1e-9 and distance(model, narrow, graph, drop) < 1e-9


def test_dead_constants_change_nothing():
    net = Chain(3, 1, act=nn.ReLU)
    for norm in (net[1], net[4]):
        nn.init.constant_(norm.bias, -0.5)
    net[1].weight.data.uniform_(0.5, 1.5)
    model, narrow, graph, drop = cut(net)
    with torch.no_grad():
        for name, bias in ((n, m.bias) for n, m in model.named_modules() if n in "14" and n):
            bias.copy_(-bias.abs() - 0.1)
            getattr(narrow, name).bias.copy_(bias[~drop[graph.outs[name]]])
    before = copy.deepcopy(narrow.state_dict())
    found = absorb(model, narrow, graph, drop, X)
    assert str(found) == "nothing to absorb: removed channels emit nothing"
    assert found.rows == found.edits == () and found.exact
    assert all(torch.equal(v, before[k]) for k, v in narrow.state_dict().items())
    assert found.change.moved == 0 and found.change.after < 1e-12


@pytest.mark.parametrize(
    ("name", "layer", "into"),
    [
        ("chain", "3", "bias"),
        ("chain without biases", "3", "running mean of 4"),
        ("residual", "out", "new bias"),
        ("tokens", "down", "bias"),
        ("depthwise", "project", "running mean of third"),
        ("dense", "conv", "new bias"),
    ],
)
def test_where_constants_go(name, layer, into):
    parts = cut(EXACT[name])
    rows = {row.layer: row for row in absorb(*parts, X).rows}
    assert rows[layer].into == into
    assert str(rows[layer]).startswith(f"{layer} -> {into}: ")


@pytest.mark.parametrize(
    ("bias", "norm", "into"),
    [
        (True, False, "bias"),
        (True, True, "bias"),
        (False, True, "running mean of norm"),
        (False, False, "nothing"),
    ],
)
def test_functions_that_are_given_weights(bias, norm, into):
    parts = cut(ByFunction(bias, norm))
    assert "weight" in parts[2].functional
    found = absorb(*parts, X)
    assert {row.layer: row.into for row in found.rows} == {"weight": into, "last": "bias"}
    assert found.exact is (into != "nothing") is (distance(*parts) < 1e-9)
    assert abs(distance(*parts) - found.change.after) < 1e-12


def test_a_bias_that_two_functions_use_stays():
    class Twice(ByFunction):
        def forward(self, x):
            x = F.conv2d(torch.sigmoid(self.first(x)), self.weight, self.bias)
            return self.last(torch.sigmoid(x + self.bias[:, None, None])).mean((2, 3))

    parts = cut(Twice())
    rows = {row.layer: row.into for row in absorb(*parts, X).rows}
    assert rows["weight"] == "nothing"


def test_a_norm_that_is_not_alone_keeps_its_mean():
    class Peeked(Chain):
        def forward(self, x):
            y = self[3](self[2](self[1](self[0](x))))
            return self[4](y).mean((2, 3)) + y.mean((2, 3))

    parts = cut(Peeked(bias=False))
    found = absorb(*parts, X)
    assert {row.layer: row.into for row in found.rows}["3"] == "new bias"
    assert found.exact and distance(*parts) < 1e-9


def test_a_norm_with_two_sources_keeps_its_mean():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = conv(4, 8), nn.BatchNorm2d(6)
            self.a, self.b = conv(8, 6, bias=False), conv(8, 6, bias=False)

        def forward(self, x):
            x = torch.sigmoid(self.first(x))
            return (self.norm(self.a(x)) * self.norm(self.b(x))).mean((2, 3))

    parts = cut(Both())
    found = absorb(*parts, X)
    assert {row.into for row in found.rows} == {"new bias"} and distance(*parts) < 1e-9


@pytest.mark.parametrize(
    ("net", "why"), [(Gated(), "varies between examples by"), (Shared(False), "between 2 calls")]
)
def test_what_is_not_constant_is_absorbed_on_average_and_said(net, why):
    found = absorb(*cut(net), X)
    assert not found.exact and why in " ".join(found.notes)
    assert 0 < found.change.after < found.change.before / 2
    assert found.change.after > 1e-9


def test_a_shared_bias_is_left_alone():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = conv(4, 8), conv(8, 6), conv(4, 6)

        def forward(self, x):
            return (self.a(torch.sigmoid(self.first(x))) * self.b(x)).mean((2, 3))

    model, narrow, graph, drop = cut(Product())
    narrow.b.bias = narrow.a.bias
    bias = narrow.a.bias.detach().clone()
    found = absorb(model, narrow, graph, drop, X)
    assert "its bias is computed, or used elsewhere" in found.notes[0] and torch.equal(
        narrow.b.bias, bias
    )
    assert narrow.a.bias is narrow.b.bias


class Helped(Chain):
    """An auxiliary head that only training sees."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Linear(8, 3)

    def forward(self, x):
        middle = self[2](self[1](self[0](x)))
        main = self[8](self[7](self[6](self[5](self[4](self[3](middle))))))
        return (main, self.aux(middle.mean((2, 3)))) if self.training else main


def test_heads_of_training_get_their_constants():
    model, narrow, graph, drop = cut(Helped())
    if "aux" not in graph.ins:
        pytest.skip("the graph follows eval mode only")
    before = copy.deepcopy(model.state_dict())
    found = absorb(model, narrow, graph, drop, X)
    assert found.exact and {row.layer for row in found.rows} >= {"aux", "3"}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    features = torch.sigmoid(model[1].bias)
    gone = drop[graph.outs["0"]]
    expected = model.aux.bias + model.aux.weight[:, gone] @ features[gone]
    torch.testing.assert_close(narrow.aux.bias, expected)


@pytest.mark.parametrize("maps", [False, True])
def test_absorbed_networks_train_and_keep_their_flags(maps):
    model, narrow, graph, drop = cut(Residual(1))
    narrow.train()
    narrow.norm.eval()
    flags = {name: module.training for name, module in narrow.named_modules()}
    dense = copy.deepcopy(model.state_dict())
    absorb(model, narrow, graph, drop, X, maps=maps)
    assert all(torch.equal(v, dense[k]) for k, v in model.state_dict().items())
    assert not [
        hook for m in model.modules() for hook in (*m._forward_hooks, *m._forward_pre_hooks)
    ]
    assert {n: m.training for n, m in narrow.named_modules() if n in flags} == flags
    narrow(X).square().sum().backward()
    assert maps or narrow.out.bias.grad.abs().sum() > 0
    assert all(p.grad is not None and p.dtype == torch.float64 for p in narrow.parameters())


def test_a_frozen_layer_gets_a_frozen_bias():
    model, narrow, graph, drop = cut(Residual())
    narrow.out.requires_grad_(False)
    absorb(model, narrow, graph, drop, X)
    assert narrow.out.bias is not None and not narrow.out.bias.requires_grad


@pytest.mark.parametrize("maps", [False, True])
def test_files_repeat_it(tmp_path, maps):
    arch = {"_target_": "networks.Network", "blocks": [["Residual", 8], ["Bare", 8]]}
    net = networks.Network(arch["blocks"])
    graph = ChannelGraph.trace(net, net.example)
    masks = {g.name: torch.arange(len(g.units)) % 2 == 1 for g in graph.groups}
    drop, narrow = graph.drop(masks), copy.deepcopy(net)
    edits = [Narrow.of(graph, drop)]
    edits[0].apply(narrow)
    edits.extend(absorb(net, narrow, graph, drop, net.example, maps=maps).edits)
    assert [type(edit) for edit in edits[1:]] == [NewBiases, BiasMaps][: 1 + maps] or maps
    save_model(tmp_path / "model.pt", narrow, arch, edits)
    saved = load_model(tmp_path / "model.pt", trust=["networks"])
    assert saved.edits == tuple(edits)
    assert torch.equal(saved.model.eval()(net.example), narrow.eval()(net.example))


def test_a_network_with_maps_can_be_traced_cut_and_checked_again():
    model, narrow, graph, drop = cut(Chain(3, 1))
    absorb(model, narrow, graph, drop, X, maps=True)
    again = ChannelGraph.trace(narrow, X)
    chosen = {g.name: torch.arange(len(g.units)) == 0 for g in again.groups}
    more = copy.deepcopy(narrow)
    Narrow.of(again, again.drop(chosen)).apply(more)
    assert compare(narrow, more, again, again.drop(chosen), X).worst < 1e-9


def test_edits_that_do_not_fit():
    with pytest.raises(SurgeryError, match="without a bias"):
        NewBiases(("3",)).apply(Chain())
    with pytest.raises(SurgeryError, match="no layer '12'"):
        NewBiases(("12",)).apply(Chain())
    with pytest.raises(SurgeryError, match="takes no bias map"):
        BiasMaps({"1": (8, 9, 9)}).apply(Chain())
    for plain in ({"edit": "new_biases"}, {"edit": "bias_maps", "layers": ["a"]}):
        with pytest.raises(ArtifactError, match="is damaged"):
            edit_from_dict(plain)


def test_a_layer_in_two_places_gets_one_map():
    net = nn.ModuleDict({"a": conv(2, 2), "b": nn.Sequential()})
    net["b"].append(net["a"])
    BiasMaps({"a": (2, 3, 3)}).apply(net)
    assert net["a"] is net["b"][0] and isinstance(net["a"][1], BiasMap)
    assert isinstance(net["a"][0], nn.Conv2d) and repr(net["a"][1]) == "BiasMap(2x3x3)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "vgg16_bn", "densenet121", "mobilenet_v2", "googlenet"]
)
def test_real_networks_stay_near_the_emitting_ones(name):
    torch.manual_seed(0)
    known = {"init_weights": True} if name == "googlenet" else {}
    model = randomised(getattr(torchvision.models, name)(weights=None, **known)).eval()
    x = torch.randn(2, 3, 64, 64)
    graph = ChannelGraph.trace(model, x)
    masks = {g.name: torch.randperm(len(g.units)) < len(g.units) // 2 for g in graph.groups}
    drop, narrow = graph.drop(masks), copy.deepcopy(model)
    Narrow.of(graph, drop).apply(narrow)
    assert compare(model, narrow, graph, drop, x).worst < 1e-4
    rough = absorb(model, copy.deepcopy(narrow), graph, drop, x)
    assert rough.change.before > 0.1 and rough.change.after < rough.change.before / 4
    assert absorb(model, narrow, graph, drop, x, maps=True).change.after < 1e-5
