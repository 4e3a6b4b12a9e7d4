"""Tests of the removal of residual blocks whose branch is empty."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torchvision
from patterns import randomise
from patterns.selected import PreActivated, dense, selected
from torch import nn
from torch.nn import functional as F
from torchvision.models.mobilenetv2 import InvertedResidual

import prunekit
from prunekit import models
from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, fvcore_macs
from prunekit.methods.slimming import InsertChannelSelectors
from prunekit.surgery import (
    ChannelBias,
    Narrow,
    SkipBlock,
    edit_from_dict,
    load_model,
    narrow_optimizer,
    save_model,
)
from prunekit.surgery.constants import emitting_constants
from prunekit.surgery.cut import cut
from prunekit.surgery.equivalence import Gap

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()


def lively(make):
    torch.manual_seed(0)
    net = make()
    randomise(net)
    return net.double().eval()


def keeping(graph, *emptied, share=0.0, seed=0):
    """Return masks that keep the first unit of every group and random others, or none at all."""
    source = torch.Generator().manual_seed(seed)
    names = {group.name: len(group.units) for group in graph.groups}
    assert not set(emptied) - set(names), names
    keep = {name: torch.rand(width, generator=source) >= share for name, width in names.items()}
    for name, mask in keep.items():
        mask[0] = True
        if name in emptied:
            mask[:] = False
    return keep


def done(net, *emptied, share=0.0, **options):
    graph = ChannelGraph.trace(net, X)
    return cut(net, graph, keeping(graph, *emptied, share=share), X, **options)


class Basic(nn.Module):
    """A post-activation block: the branch ends in a norm."""

    def __init__(self, width=6):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class SharedStart(nn.Module):
    """Branch and shortcut both read the activated input."""

    def __init__(self, width=6):
        super().__init__()
        self.bn1, self.relu = nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        self.conv1, self.bn2 = nn.Conv2d(width, 5, 1), nn.BatchNorm2d(5)
        self.conv2, self.short = nn.Conv2d(5, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, x):
        x = F.relu(self.bn1(x))
        return self.short(x) + self.conv2(self.relu(self.bn2(self.conv1(x))))


class Dropped(Basic):
    """A block with functions between the branch and the sum, and an in-place sum."""

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = torchvision.ops.stochastic_depth(F.dropout(y, 0.1, self.training), 0.1, "row", False)
        y += x
        return y


class Outer(nn.Module):
    """A residual block whose branch holds another one."""

    def __init__(self):
        super().__init__()
        self.inner, self.conv = Basic(), nn.Conv2d(6, 6, 1)

    def forward(self, x):
        return x + self.conv(self.inner(x))


class Inlined(nn.Module):
    """A network that computes the sum in its own forward."""

    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.b(F.relu(self.a(x))))


class TwoBranches(nn.Module):
    """A block with two branches, each of which may be empty."""

    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)) for _ in range(2))

    def forward(self, x):
        return x + self.a(x) + self.b(x)


class TwoInputs(nn.Module):
    """A block with a second input."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1))

    def forward(self, x, y):
        return x + self.a(x) * y


class Feeds(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 6, 1), TwoInputs(), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        y = self.stem(x)
        return self.head(self.block(y, y.sigmoid()))


def around(*blocks):
    """Put blocks between a stem of 6 channels and a head."""
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
        *blocks,
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
    )


def resnet():
    return models.resnet.ResNet(2, widths=(4, 6, 8))


def torchvision_resnet():
    block = torchvision.models.resnet.BasicBlock
    net = torchvision.models.ResNet(block, [1, 2, 1, 1], num_classes=3)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return net


def preresnet():
    net = models.preresnet.PreResNet(2, widths=(4, 5, 6), stem=6)
    InsertChannelSelectors.of(net, X.float()).apply(net)
    return net


CASES = {
    "post-activation": (lambda: around(Basic()), ["3.conv1"], {"3": ["shift", "relu"]}),
    "two in a row": (
        lambda: around(Basic(), Basic()),
        ["3.conv1", "4.conv1"],
        {"3": None, "4": None},
    ),
    "shared start": (
        lambda: around(SharedStart()),
        ["3.conv1"],
        {"3": ["bn1", "relu", "short", "shift"]},
    ),
    "functions at the end": (lambda: around(Dropped()), ["3.conv1"], {"3": ["shift"]}),
    "inner block": (lambda: around(Outer()), ["3.inner.conv1"], {"3.inner": ["shift", "relu"]}),
    "mobilenet": (
        lambda: around(InvertedResidual(6, 6, 1, 2)),
        ["3.conv.0.0"],
        {"3": ["shift"]},
    ),
    "padded shortcut": (
        resnet,
        ["layer1.1.conv1", "layer2.0.conv1"],
        {"layer1.1": ["shift", "relu2"], "layer2.0": ["shortcut", "shift", "relu2"]},
    ),
    "torchvision": (
        torchvision_resnet,
        ["layer2.0.conv1", "layer2.1.conv1"],
        {"layer2.0": ["downsample", "shift", "relu"], "layer2.1": ["shift", "relu"]},
    ),
    "pre-activation": (
        preresnet,
        ["layer1.1.bn1.select", "layer2.0.conv1", "layer3.1.conv2"],
        {"layer1.1": ["shift"], "layer2.0": ["shortcut", "shift"], "layer3.1": ["shift"]},
    ),
}


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("name", CASES)
def test_what_is_left_equals_the_silenced_network(name, share):
    """Remove channels of the stream too; the branch of a removed block puts out zeros."""
    make, emptied, left = CASES[name]
    net = lively(make)
    found = done(net, *emptied, share=share, absorb=False)
    assert found.skipped == tuple(left) and found.agreement.worst < 1e-11
    assert found.agreement.train is not None and "with zeros from" in str(found.agreement)
    for block, parts in left.items():
        rest = found.model.get_submodule(block)
        wanted = [part for part in parts or ["relu"] if part != "shift"]
        assert [*rest._modules] == wanted
        assert isinstance(rest, nn.Sequential if wanted else nn.Identity)
    assert [note.split()[1] for note in found.notes] == [*left]


@pytest.mark.parametrize("name", CASES)
def test_with_maps_nothing_is_lost_that_the_branch_still_emitted(name):
    make, emptied, left = CASES[name]
    net = lively(make)
    graph = ChannelGraph.trace(net, X)
    keep = keeping(graph, *emptied, share=0.4)
    with (
        torch.no_grad(),
        emitting_constants(net, graph, graph.drop({n: ~m for n, m in keep.items()})),
    ):
        reference = net(X)
    found = cut(net, graph, keep, X, per_position=True)
    assert found.absorbed.exact
    with torch.no_grad():
        assert Gap.between(found.model.eval()(X), reference).relative < 1e-9
    if name != "two in a row":
        assert {b: [*found.model.get_submodule(b)._modules] for b in left} == left


@pytest.mark.parametrize("name", CASES)
def test_without_borders_a_shift_is_exact_and_trained(name):
    make, emptied, left = CASES[name]
    net = lively(make)
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.padding != (0, 0):
            module.padding_mode = "circular"
    found = done(net, *emptied, share=0.4)
    rows = {row.layer: row for row in found.absorbed.layers if row.into == "shift"}
    assert rows.keys() == left.keys() and all(row.exact for row in rows.values())
    assert found.absorbed.change.after < 1e-9
    assert all(isinstance(found.model.get_submodule(block).shift, ChannelBias) for block in left)
    found.model.train()(X).square().sum().backward()
    assert all(p.grad is not None for p in found.model.parameters() if p.requires_grad)


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_a_second_cut_a_training_step_and_a_file_work(name, absorb, tmp_path):
    make, emptied, _ = CASES[name]
    net = lively(make)
    first = done(net, *emptied, share=0.3, absorb=absorb)
    graph = ChannelGraph.trace(first.model, X)
    second = cut(first.model, graph, keeping(graph, share=0.3, seed=1), X, absorb=absorb)
    assert second.agreement.worst < 1e-11 and not second.skipped
    second.model.train()(X).square().sum().backward()
    edits = [*first.edits, *second.edits]
    assert [edit_from_dict(edit.to_dict()) for edit in edits] == edits
    save_model(tmp_path / "model.pt", second.model, edits=edits)
    loaded = load_model(tmp_path / "model.pt", module=make()).model
    assert torch.equal(loaded.eval()(X), second.model.eval()(X))


def test_it_is_the_published_mask_where_the_last_norm_of_a_branch_is_empty():
    """Multiply scales and shifts by zero, as the released code does; outputs must be equal."""
    net = lively(preresnet)
    found = done(net, "layer1.1.conv2", "layer3.1.conv2", absorb=False)
    masked = copy.deepcopy(net)
    for block in (masked.layer1[1], masked.layer3[1]):
        block.bn3.weight.data.zero_()
        block.bn3.bias.data.zero_()
    assert torch.equal(found.model.eval()(X), masked(X))


def test_removed_layers_are_gone_from_the_masks_and_the_counts():
    net = lively(preresnet)
    graph = ChannelGraph.trace(net, X)
    keep = keeping(graph, "layer1.1.conv1")
    found = cut(net, graph, keep, X)
    lost = {name for name in keep if not bool(found.keep[name].any())}
    assert lost == {"layer1.1.bn1.select", "layer1.1.conv1", "layer1.1.conv2"}
    assert bool(keep["layer1.1.conv2"].all())
    after = CostModel(found.model, ChannelGraph.trace(found.model, X))
    assert after.macs() == fvcore_macs(found.model, (X[:1],))
    assert after.params() == sum(p.numel() for p in found.model.parameters())


def test_without_empty_layers_nothing_is_traced_again_or_removed(monkeypatch):
    net = lively(resnet)
    graph = ChannelGraph.trace(net, X)
    monkeypatch.setattr(
        "prunekit.graph.recording.passes.record", lambda *args: pytest.fail("traced for nothing")
    )
    found = cut(net, graph, keeping(graph, share=0.5), X)
    assert found.skipped == found.notes == () and "with zeros" not in str(found.agreement)
    assert all(bool((found.keep[name] == mask).all()) for name, mask in found.keep.items())


def test_an_optimizer_follows():
    net = lively(resnet).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(X).square().sum().backward()
    optimizer.step()
    found = done(net, "layer2.0.conv1", share=0.3)
    narrow_optimizer(optimizer, net, found.model, found.edits)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for n, p in found.model.named_parameters() if "shift" not in n} <= held
    found.model(X).square().sum().backward()
    optimizer.step()


def test_a_block_whose_stream_has_in_place_activations_can_be_trained():
    """Check that of two successive in-place activations, none overwrites a tensor for autograd."""
    net = lively(torchvision_resnet)
    found = done(net, "layer1.0.conv1", "layer2.1.conv1", absorb=False)
    assert not found.model.layer1[0].relu.inplace
    found.model.train()(X).square().sum().backward()


@pytest.mark.parametrize(
    ("make", "emptied", "named"),
    [
        (lambda: around(nn.Conv2d(6, 5, 1), nn.Conv2d(5, 6, 1)), ["3"], "3 would"),
        (Inlined, ["a"], "a would"),
        (lambda: around(Basic()), ["0"], "0 would"),
        (lambda: selected(dense), ["1.bn.select"], "1.bn.select would"),
        (lambda: around(TwoBranches()), ["3.a.0"], "3.a.0 would"),
        (Feeds, ["block.a.0"], "block.a.0 would"),
    ],
)
def test_a_layer_outside_of_residual_branches_is_refused(make, emptied, named):
    with pytest.raises(SurgeryError, match="in no residual branch") as caught:
        done(lively(make), *emptied)
    told = str(caught.value)
    assert told.startswith(named) and "\n" not in told
    assert emptied[0] in told and "selection.on_empty=keep_best" in told


def test_a_layer_that_others_call_too_does_not_go_with_a_block():
    class Lends(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 6, 1), Basic(), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head(self.block.bn2(self.block(self.stem(x))))

    with pytest.raises(SurgeryError, match="no residual branch"):
        done(lively(Lends), "block.conv1")


def test_a_block_that_is_called_twice_stays():
    class Again(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.block, self.head = nn.Conv2d(3, 6, 1), Basic(), nn.Conv2d(6, 2, 1)

        def forward(self, x):
            return self.head(self.block(self.block(self.stem(x))))

    with pytest.raises(SurgeryError, match="no residual branch"):
        done(lively(Again), "block.conv1")


def test_a_whole_network_of_pre_activation_blocks_can_lose_any_of_them():
    """Compare every subset of the branches with the silenced network in double precision."""
    net = lively(
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), *(PreActivated(6, 4, 6) for _ in "abc"), nn.Conv2d(6, 2, 1)
        )
    )
    InsertChannelSelectors.of(net, X).apply(net)
    names = ["1.conv1", "2.bn1.select", "3.conv1"]
    for chosen in itertools.chain.from_iterable(
        itertools.combinations(names, n) for n in (1, 2, 3)
    ):
        found = done(net, *chosen, share=0.4, absorb=len(chosen) == 2)
        assert found.skipped == tuple(name[0] for name in chosen)
        assert found.agreement.worst < 1e-12


@pytest.mark.parametrize(
    "plain",
    [
        {"edit": "skip_block"},
        {"edit": "skip_block", "block": "a", "steps": 3},
        {"edit": "skip_block", "block": "a", "steps": [], "shift": ["x"]},
    ],
)
def test_a_damaged_edit_is_refused(plain):
    with pytest.raises(ArtifactError, match="edit of kind 'skip_block' is damaged"):
        edit_from_dict(plain)


@pytest.mark.parametrize(
    "edit", [SkipBlock("4", ()), SkipBlock("3", ("short",)), SkipBlock("3", ("relu()", "conv3"))]
)
def test_an_edit_for_another_network_is_refused_and_changes_nothing(edit):
    net = around(Basic())[:4]
    names = [*dict(net.named_modules())]
    with pytest.raises(SurgeryError, match="made for another network"):
        edit.apply(net)
    assert [*dict(net.named_modules())] == names


def test_narrow_itself_still_refuses_an_empty_layer():
    net = lively(resnet)
    graph = ChannelGraph.trace(net, X)
    keep = keeping(graph, "layer1.1.conv1")
    with pytest.raises(SurgeryError, match="would be left without channels"):
        Narrow.of(graph, graph.drop({name: ~mask for name, mask in keep.items()}))


@pytest.mark.parametrize("absorb", [False, True])
def test_prune_by_scales_removes_a_block_and_reports_what_is_left(absorb):
    net = lively(preresnet)
    net.layer2[1].bn2.weight.data.mul_(1e-3)
    graph = ChannelGraph.trace(net, X)
    share = 6 / sum(len(group.units) for group in graph.groups)
    rule = prunekit.methods.slimming.Slimming(share, on_empty="skip_block")
    found = prunekit.prune(net, X, selection=rule, criterion="bn_scale", absorb=absorb)
    assert any("block layer2.1 was removed whole" in note for note in found.notes)
    assert found.after.macs == fvcore_macs(found.model, (X[:1],))
    assert found.after.params == sum(p.numel() for p in found.model.parameters())
    assert found.widths["layer2.1.conv3"] == (20, 0) and found.widths["layer2.0.conv3"] == (20, 20)
    assert not any(len(found.kept[f"layer2.1.{name}"]) for name in ("bn1.select", "conv1", "conv2"))
    assert found.agreement.worst < 1e-12 and "layer2.1.conv3" in str(found)
    again = found.narrow_copy(net)
    assert torch.equal(again.eval()(X), found.model.eval()(X))


class Feedforward(nn.Module):
    """A residual branch of linear layers, over the last dimension."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x):
        return x + self.b(F.gelu(self.a(x)))


@pytest.mark.parametrize("shape", [(4, 3), (4, 7, 3)])
def test_linear_layers_get_a_shift_along_the_last_dimension(shape):
    net = lively(lambda: nn.Sequential(nn.Linear(3, 6), Feedforward(), nn.Linear(6, 2)))
    x = torch.rand(shape, dtype=torch.double)
    graph = ChannelGraph.trace(net, x)
    keep = keeping(graph, "1.a", share=0.5)
    with (
        torch.no_grad(),
        emitting_constants(net, graph, graph.drop({n: ~m for n, m in keep.items()})),
    ):
        reference = net(x)
    found = cut(net, graph, keep, x)
    assert found.skipped == ("1",) and found.absorbed.exact
    assert found.model[1].shift.bias.numel() == int(keep["0"].sum())
    assert torch.allclose(found.model(x), reference, rtol=0, atol=1e-12)
