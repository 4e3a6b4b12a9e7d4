"""Every pattern that ties channels together is pruned exactly, or frozen with a note."""

from __future__ import annotations

import networks
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from prunekit.errors import SurgeryError, TraceError
from prunekit.graph import ChannelGraph
from prunekit.graph.labels import Partition
from prunekit.measure import CostModel, fvcore_macs
from prunekit.surgery import Narrow


class Body(nn.Module):
    """Two convolutions with `middle` in between, then pooling and a linear layer."""

    def __init__(self, middle, between=8, layer=None, outputs=6, **layers):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.layer = layer
        for name, one in layers.items():
            setattr(self, name, one)
        self.last = nn.Conv2d(between, outputs, 3, padding=1)
        self.head = nn.Linear(outputs, 4)
        self.middle = middle
        networks.randomise(self)

    def forward(self, x):
        x = F.relu(self.bn(self.first(x)))
        x = self.middle(self, x)
        return self.head(self.last(x).mean((2, 3)))


EXAMPLE = torch.rand(1, 3, 8, 8)
LAST = {"last": 6}
EXACT = {  # pattern -> groups that must be found
    "chain": (lambda net, x: x, {"first": 8}),
    "channel flip": (lambda net, x: x.flip(1), {"first": 8}),
    "spatial flip": (lambda net, x: torch.flip(x, dims=(2, 3)), {"first": 8}),
    "spatial roll": (lambda net, x: x.roll(1, 2), {"first": 8}),
    "shuffle by view": (
        lambda net, x: (
            x.view(x.size(0), 4, x.size(1) // 4, x.size(2), -1).transpose(1, 2).reshape(x.shape)
        ),
        {"first": 2},
    ),
    "shuffle by function": (lambda net, x: F.channel_shuffle(x, 2), {"first": 4}),
    "cat with itself": (lambda net, x: torch.cat((x, x), 1)[:, : x.size(1)], {"first": 8}),
    "chunk": (lambda net, x: torch.cat(x.chunk(2, 1)[::-1], 1), {"first": 4}),
    "computed split": (lambda net, x: torch.cat(x.split(x.shape[1] // 2, 1), 1), {"first": 4}),
    "half by slices": (
        lambda net, x: torch.cat([x[:, x.size(1) // 2 :], x[:, : x.size(1) // 2]], 1),
        {"first": 4},
    ),
    "channels last": (
        lambda net, x: F.relu(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        {"first": 8},
    ),
    "gate of one channel": (lambda net, x: x * x.detach().sigmoid(), {"first": 8}),
    "one map for all": (lambda net, x: x + torch.ones(1, 1, 8, 8), {"first": 8}),
    "softmax over pixels": (lambda net, x: x * x.flatten(2).softmax(-1).view_as(x), {"first": 8}),
    "softmax over the last dimension": (lambda net, x: x * x.softmax(-1), {"first": 8}),
    "stack and sum": (lambda net, x: torch.stack([x, x.tanh()]).sum(0), {"first": 8}),
    "in place": (lambda net, x: x.mul_(2).add_(1).relu_(), {"first": 8}),
    "interpolate": (lambda net, x: F.interpolate(x, scale_factor=2.0), {"first": 8}),
    "padding with a number": (lambda net, x: F.pad(x, (1, 1, 1, 1), value=2.0), {"first": 8}),
    "reflection": (lambda net, x: F.pad(x, (1, 1, 1, 1), mode="reflect"), {"first": 8}),
    "where": (lambda net, x: torch.where(x > 0.5, x, -x), {"first": 8}),
    "norm over pixels": (lambda net, x: x / (1 + x.norm(2, (2, 3), keepdim=True)), {"first": 8}),
    "pool with max": (lambda net, x: x - x.amax((2, 3), keepdim=True), {"first": 8}),
    "expand as": (lambda net, x: x * x.mean((2, 3), keepdim=True).expand_as(x), {"first": 8}),
    "squeeze": (lambda net, x: x * x.mean((2, 3))[:, :, None, None], {"first": 8}),
    "cat along pixels": (lambda net, x: torch.cat([x, x.tanh()], dim=3), {"first": 8}),
    "unflatten": (lambda net, x: x.unflatten(1, (2, -1)).flatten(1, 2), {"first": 4}),
    "channel roll": (lambda net, x: x.roll(3, 1), {"first": 5}),
    "channel roll, back": (lambda net, x: x.roll(-2, 1), {"first": 6}),
    "slices by numbers": (lambda net, x: torch.cat([x[:, 3:], x[:, :3]], 1), {"first": 5}),
    "slices from the back": (lambda net, x: torch.cat([x[:, -2:], x[:, :-2]], 1), {"first": 6}),
    "narrow": (lambda net, x: torch.cat([x[:, 4:], x.narrow(1, 0, 4)], 1), {"first": 4}),
    "every other": (lambda net, x: torch.cat([x[:, ::2], x[:, 1::2]], 1), {"first": 4}),
    "unequal split": (
        lambda net, x: torch.cat(
            x.split([x.shape[1] // 4, x.shape[1] - x.shape[1] // 4], 1)[::-1], 1
        ),
        {"first": 2},
    ),
    "maxout by a view": (
        lambda net, x: x.view(x.shape[0], x.shape[1] // 2, 2, 8, 8).amax(2).repeat(1, 2, 1, 1),
        {"first": 4},
    ),
    "items written": (lambda net, x: _written(x), {"first": 8}),
    "pixels written": (lambda net, x: _blackened(x), {"first": 8}),
    "zeros in sizes of the forward": (
        lambda net, x: torch.cat([x, x.new_zeros(x.shape[0], x.shape[1], 8, 8)], 1)[
            :, : x.shape[1]
        ],
        {"first": 8},
    ),
    "drop path": (lambda net, x: x * x.new_empty(x.shape[0], 1, 1, 1).fill_(0.5), {"first": 8}),
    "noise": (lambda net, x: x * torch.ones_like(x) + torch.full_like(x, 0.5), {"first": 8}),
    "dtype of a weight": (lambda net, x: x.to(net.last.weight.dtype), {"first": 8}),
    "size of a weight": (
        lambda net, x: x * float(net.first.weight.shape[2]),
        {"first": 8},
    ),
    "group norm, and sizes that are read": (
        lambda net, x: F.group_norm(x.reshape(x.shape), x.shape[1] // 4).view(x.shape),
        {"first": 2},
    ),
    "group norm by function": (
        lambda net, x: F.group_norm(x, x.shape[1] // 2),
        {"first": 4},
    ),
    "transpose of pixels": (lambda net, x: x.mT, {"first": 8}),
}
FROZEN = {  # pattern -> what the note names
    "constant split": (lambda net, x: torch.cat(x.split([3, 5], 1), 1), "split"),
    "one by one": (lambda net, x: torch.stack(x.unbind(1), 1), "unbind"),
    "selection": (lambda net, x: x.index_select(1, torch.arange(7, -1, -1)), "index_select"),
    "tensor index": (lambda net, x: x[:, torch.tensor([1, 0, 2, 3, 4, 5, 6, 7])], "getitem"),
    "constant view": (lambda net, x: x.view(1, 8, 64).view(1, 8, 8, 8), "view"),
    "constant buffer": (lambda net, x: x * torch.arange(8.0).view(1, 8, 1, 1), "mul"),
    "channel number": (lambda net, x: x / x.shape[1], "div"),
    "softmax over channels": (lambda net, x: x.softmax(1), "softmax"),
    "sum over channels": (lambda net, x: x + x.sum(1, keepdim=True), "sum"),
    "cumulative": (lambda net, x: x.cumsum(dim=1), "cumsum"),
    "attention": (lambda net, x: x @ x.mT @ x, None),
    "max over pairs": (
        lambda net, x: x.reshape(1, 4, 2, 8, 8).amax(2).repeat(1, 2, 1, 1),
        "reshape",
    ),
    "max over parts": (lambda net, x: x.view(1, 4, -1, 8, 8).amax(2).repeat(1, 2, 1, 1), "amax"),
    "bare linear": (lambda net, x: F.linear(x, torch.ones(8, 8)), None),
    "bare weight": (lambda net, x: F.conv2d(x, torch.ones(8, 8, 1, 1)), "conv2d"),
    "foreign use": (lambda net, x: x * net.bn.weight.view(1, -1, 1, 1), "mul"),
    "residual on the input": (lambda net, x: x, None),
}


def compare(net, example=EXAMPLE, seed=0):
    """Prune half at random; compare the narrow network and its counts with the silenced one."""
    net.eval()
    graph = ChannelGraph.trace(net, example)
    generator = torch.Generator().manual_seed(seed)
    chosen = {}
    for group in graph.groups:
        chosen[group.name] = torch.rand(len(group.units), generator=generator) < 0.5
        chosen[group.name][0] = False
        chosen[group.name][-1] = len(group.units) > 1
    drop = graph.drop(chosen)
    cost = CostModel(net, graph)
    promised = cost.macs(drop), cost.params(drop)
    with torch.no_grad():
        with graph.silencer(net, drop):
            expected = net(example)
        Narrow.of(graph, drop).apply(net)
        torch.testing.assert_close(net(example), expected, rtol=1e-4, atol=1e-4)
    assert promised[1] == sum(parameter.numel() for parameter in net.parameters())
    return graph, promised[0]


def sizes(graph):
    return {group.name: len(group.units) for group in graph.groups}


@pytest.mark.parametrize("name", EXACT)
def test_pattern_is_pruned_exactly(name):
    middle, groups = EXACT[name]
    graph, macs = compare(net := Body(middle))
    assert sizes(graph) == {**groups, **LAST}
    assert macs == fvcore_macs(net, EXAMPLE)


@pytest.mark.parametrize("name", FROZEN)
def test_pattern_is_frozen_with_a_note(name):
    middle, culprit = FROZEN[name]
    net = Body(middle)
    if name == "residual on the input":
        net = Residual()
    graph, macs = compare(net)
    assert "first" not in sizes(graph)
    assert "last" in sizes(graph)
    assert macs == fvcore_macs(net, EXAMPLE)
    assert any(note.startswith("first") and (culprit or "") in note for note in graph.notes)
    assert all("\n" not in note for note in graph.notes)


def _written(x):
    out = torch.zeros(x.shape[0], 2 * x.shape[1], 8, 8)
    out[:, : x.shape[1]] = x
    out[:, x.shape[1] :] = -x
    return out[:, : x.shape[1]]


def _blackened(x):
    x = x.clone()
    x[:, :, 0, 0] = 0
    return x


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 3, padding=1)
        self.last = nn.Conv2d(3, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.last(x + self.first(x)).mean((2, 3)))


LAYERS = {  # layer between two convolutions -> (its input width is 8), width behind it, groups
    "plain": (nn.Conv2d(8, 4, 1), 4, {"first": 8, "layer": 4}),
    "grouped": (nn.Conv2d(8, 12, 1, groups=4), 12, {"first": 2, "layer": 3}),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), 8, {"first": 8}),
    "depthwise, doubled": (nn.Conv2d(8, 16, 3, groups=8), 16, {"first": 8}),
    "transposed": (nn.ConvTranspose2d(8, 4, 2, 2), 4, {"first": 8, "layer": 4}),
    "grouped transposed": (nn.ConvTranspose2d(8, 12, 2, 2, groups=2), 12, {"first": 4, "layer": 6}),
    "depthwise transposed": (nn.ConvTranspose2d(8, 16, 2, 2, groups=8), 16, {"first": 8}),
    "instance norm": (nn.InstanceNorm2d(8, affine=True), 8, {"first": 8}),
    "prelu": (nn.PReLU(8), 8, {"first": 8}),
    "prelu, shared": (nn.PReLU(), 8, {"first": 8}),
    "pixel shuffle": (nn.PixelShuffle(2), 2, {"first": 2}),
    "pixel unshuffle": (nn.PixelUnshuffle(2), 32, {"first": 8}),
    "channel shuffle": (nn.ChannelShuffle(4), 8, {"first": 2}),
    "upsample": (nn.Upsample(scale_factor=2), 8, {"first": 8}),
    "constant padding": (nn.ConstantPad2d(1, 3.0), 8, {"first": 8}),
    "layer norm over pixels": (nn.LayerNorm([8, 8]), 8, {"first": 8}),
    "group norm": (nn.GroupNorm(2, 8), 8, {"first": 2}),
    "layer norm": (nn.LayerNorm([8, 8, 8]), 8, {}),
    "local response norm": (nn.LocalResponseNorm(3), 8, {}),
    "weight norm": (
        nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
        8,
        {"first": 8, "layer": 8},
    ),
    "pruning mask": (prune.identity(nn.Conv2d(8, 8, 1), "weight"), 8, {}),
    "recurrent": (nn.Sequential(nn.Flatten(2), nn.LSTM(64, 64)), 8, {}),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer_is_pruned_exactly_or_frozen_with_a_note(name):
    layer, width, groups = LAYERS[name]
    middle = lambda net, x: net.layer(x)  # noqa: E731
    if name == "recurrent":
        middle = lambda net, x: net.layer(x)[0].unflatten(2, (8, 8))  # noqa: E731
    graph, macs = compare(net := Body(middle, width, layer))
    assert sizes(graph) == {**groups, **LAST}
    assert bool(graph.notes) == (not groups)
    recurrent = graph.product_macs if name == "recurrent" else 0  # fvcore counts none of them
    assert macs == fvcore_macs(net, EXAMPLE) + recurrent


def test_groups_that_are_normalised_keep_their_size_in_rehearsals():
    moves = nn.Unflatten(1, (-1, 3)), nn.Flatten(1, 2)
    net = nn.Sequential(nn.Conv2d(3, 30, 3), nn.GroupNorm(10, 30), *moves, nn.Conv2d(30, 4, 1))
    graph, _ = compare(net)
    assert sizes(graph) == {"0": 10} and not graph.notes


def test_layers_called_twice_and_tied_layers_share_their_units():
    first = nn.Conv2d(8, 8, 1, bias=False)
    second = nn.Conv2d(8, 8, 1, bias=False)
    second.weight = first.weight
    net = Body(lambda net, x: net.b(F.relu(net.a(net.a(x)))), a=first, b=second)
    graph, macs = compare(net)
    assert sizes(graph) == {"first": 8, **LAST}
    assert net.a.weight is net.b.weight
    assert macs == fvcore_macs(net, EXAMPLE)


def test_a_weight_that_is_also_used_by_hand_is_frozen():
    net = Body(lambda net, x: F.conv2d(net.a(x), net.a.weight), a=nn.Conv2d(8, 8, 1))
    graph, _ = compare(net)
    assert "a" not in sizes(graph)
    assert any("used elsewhere" in note for note in graph.notes)


def test_frozen_parameters_and_training_mode_are_no_obstacle():
    net = Body(lambda net, x: x).requires_grad_(False).train()
    assert sizes(ChannelGraph.trace(net, EXAMPLE)) == {"first": 8, **LAST}
    assert net.training


def test_a_padded_shortcut_ties_channels_at_an_offset():
    net = nn.Sequential(networks.Plain(3, 4), networks.PaddedResidual(4, 8))
    graph = ChannelGraph.trace(nn.Sequential(net, nn.Flatten(), nn.Linear(128, 2)), EXAMPLE)
    first, second = graph.outs["0.0.conv"], graph.outs["0.1.conv"]
    assert first.tolist() == [1, 2, 3, 4]
    assert second.tolist() == [0, 0, 1, 2, 3, 4, 0, 0]


def test_what_a_graph_says_about_a_small_network():
    net = Body(lambda net, x: F.max_pool2d(net.layer(x), 2), layer=nn.Conv2d(8, 16, 1, groups=8))
    net.last = nn.Conv2d(16, 6, 3, padding=1)
    graph = ChannelGraph.trace(net, torch.rand(5, 3, 8, 8))
    assert [group.name for group in graph.groups] == ["first", "last"]
    assert graph.groups[0].producers == ("first", "layer")
    assert graph.outs["layer"].tolist() == [unit for unit in range(1, 9) for _ in range(2)]
    assert graph.outs["bn"].tolist() == graph.ins["bn"].tolist() == list(range(1, 9))
    assert graph.shapes["first"] == (1, 8, 8, 8) and graph.shapes["last"] == (1, 6, 4, 4)
    assert graph.uses == {"first": 64, "layer": 64, "last": 16, "head": 1}
    assert graph.count == 15


@pytest.mark.parametrize(
    "name", ["resnet18", "vgg11_bn", "densenet121", "googlenet", "squeezenet1_1", "mobilenet_v2"]
)
def test_networks_of_torchvision_have_no_frozen_channels(name):
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    net = getattr(torchvision.models, name)(num_classes=10, **extra)
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 64, 64))
    assert graph.notes == ()
    frozen = {layer for layer in graph.uses if not graph.outs[layer].all()}
    assert len(frozen) == 1  # the classifier


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "resnext50_32x4d"])
def test_networks_of_torchvision_are_pruned_exactly(name):
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(num_classes=10)
    networks.randomise(net)
    example = torch.rand(1, 3, 64, 64)
    graph, macs = compare(net, example)
    assert macs == fvcore_macs(net, example)
    assert [*graph.frozen.values()] == ["they leave the network"]


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x, y, scale=None):
        x = self.a(x) + self.b(y)
        if scale is not None:
            x = x * scale
        return {"logits": self.head(x.mean((2, 3)))}


def test_several_inputs_and_defaults():
    net = TwoInputs()
    graph = ChannelGraph.trace(net, (EXAMPLE, torch.rand(1, 1, 8, 8)))
    assert sizes(graph) == {"a": 4}
    assert graph.groups[0].producers == ("a", "b")
    with pytest.raises(TraceError, match=r"takes \(x, y, scale\), the example holds 1 tensor"):
        ChannelGraph.trace(net, EXAMPLE)


@pytest.mark.parametrize(
    ("net", "example", "message"),
    [
        (Body(lambda net, x: 1 / 0), EXAMPLE, r"fails on .* at test_graph.py:\d+ \(.*1 / 0"),
        (
            Body(lambda net, x: x),
            torch.rand(1, 4, 8, 8),
            r"fails on an example of shape .* at first, ",
        ),
        (Body(lambda net, x: x.view(3, 5)), EXAMPLE, r"at view at test_graph.py:\d+: "),
        (nn.Sequential(nn.LazyConv2d(3, 1)), EXAMPLE, "lazy layers; run one batch"),
        (Body(lambda net, x: x), "image", "must be a tensor or a tuple"),
        (Body(lambda net, x: x, layer=nn.Identity(), lock=open), EXAMPLE, None),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(net, example, message):
    if message is None:
        ChannelGraph.trace(net, example)
        return
    with pytest.raises(TraceError, match=message) as caught:
        ChannelGraph.trace(net, example)
    assert "\n" not in str(caught.value)


def test_attributes_that_cannot_be_copied():
    net = Body(lambda net, x: x)
    net.stream = (number for number in range(3))
    with pytest.raises(TraceError, match=r"Body cannot be copied: .*generator"):
        ChannelGraph.trace(net, EXAMPLE)


def test_a_head_that_only_training_calls_is_noted():
    net = Body(lambda net, x: x, aux=nn.Linear(8, 2))
    assert ChannelGraph.trace(net, EXAMPLE).notes == (
        "aux: not called in eval or train mode, keeps its size",
    )


def test_a_parameter_that_was_used_before_it_met_channels_stays():
    def middle(net, x):
        return x * net.place.mean() + net.place

    graph, _ = compare(Body(middle, place=nn.Parameter(torch.rand(8, 8, 8))))
    assert sizes(graph) == LAST and graph.notes
    graph, _ = compare(Body(lambda net, x: x + net.place, place=nn.Parameter(torch.rand(8, 8, 8))))
    assert sizes(graph) == {"first": 8, **LAST}


def test_what_fails_in_train_mode_only_stays():
    torch.manual_seed(0)
    net = torchvision.models.inception_v3(num_classes=10, init_weights=False)
    networks.randomise(net)
    example = torch.rand(1, 3, 107, 107)  # too small for the auxiliary head
    graph, _ = compare(net, example)
    assert graph.frozen["AuxLogits.conv0.conv"].startswith("train mode, which fails on an example")
    assert not graph.outs["AuxLogits.conv0.conv"].any()


def test_masks_are_checked():
    graph = ChannelGraph.trace(Body(lambda net, x: x), EXAMPLE)
    with pytest.raises(SurgeryError, match="no group is called 'frist'; did you mean first"):
        graph.drop({"frist": torch.zeros(8, dtype=torch.bool)})
    with pytest.raises(SurgeryError, match=r"must be torch.bool of shape \(8,\)"):
        graph.drop({"first": torch.zeros(7, dtype=torch.bool)})
    with pytest.raises(SurgeryError, match="has no layer 'first'; trace the graph on this"):
        drop = graph.drop({"first": torch.ones(8, dtype=torch.bool)})
        with graph.silencer(nn.Linear(2, 2), drop):
            pass


def test_silencing_ends_with_the_block():
    net = Body(lambda net, x: x).eval()
    graph = ChannelGraph.trace(net, EXAMPLE)
    before = net(EXAMPLE)
    drop = graph.drop({"first": torch.arange(8) < 4})
    with graph.silencer(net, drop):
        assert not torch.equal(net(EXAMPLE), before)
    assert torch.equal(net(EXAMPLE), before)


def test_layers_that_would_be_emptied_are_named():
    graph = ChannelGraph.trace(Body(lambda net, x: x), EXAMPLE)
    drop = graph.drop({"first": torch.ones(8, dtype=torch.bool)})
    assert graph.emptied(drop) == ("first", "bn", "last")
    assert graph.emptied(torch.zeros(graph.count, dtype=torch.bool)) == ()


def test_zero_absorbs_and_the_smallest_id_stands_for_its_class():
    parts = Partition()
    ids = parts.new_ids(5)
    parts.unite(ids[3:], ids[1:2])
    assert parts.roots().tolist() == [0, 1, 2, 3, 2, 2]
    assert parts.freeze(ids[4:])
    assert not parts.freeze(ids[4:])
    assert parts.roots().tolist() == [0, 1, 0, 3, 0, 0]
    parts.unite(torch.tensor([0]), torch.tensor([3]))
    assert parts.roots().tolist() == [0, 1, 0, 0, 0, 0]
