"""Channel selections: where they belong, what they leave as it was, and what they make possible."""

from __future__ import annotations

import copy

import laws
import pytest
import torch
import torchvision
from patterns import PATTERNS, randomise
from patterns.selected import dense, preactivated
from torch import nn
from torch.nn import functional as F

from prunekit import criteria, models, targets
from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.methods.slimming import ChannelSelector, InsertChannelSelectors, shared_norms
from prunekit.surgery import (
    Narrow,
    edit_from_dict,
    load_model,
    narrow,
    narrow_optimizer,
    save_model,
)
from prunekit.surgery.cut import cut

X = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
IMAGE = torch.zeros(1, 3, 32, 32)


def lively(make):
    torch.manual_seed(0)
    net = make()
    randomise(net)
    return net.double().eval()


def inserted(make):
    net = lively(make)
    edit = InsertChannelSelectors.of(net, X)
    edit.apply(net)
    return net, edit


def halved(graph, seed=0, share=0.5):
    return {name: ~mask for name, mask in laws.masks(graph, seed, share).items()}


class Normed(nn.BatchNorm2d):
    """A norm with its activation, by function, as timm has them."""

    def forward(self, x):
        training = self.training
        x = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training, self.momentum
        )
        return F.relu(x)


class Lent(nn.Module):
    """The forward uses the norm's numbers itself, so nothing can stand in front of the norm."""

    def __init__(self):
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.out = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x, bn = self.first(x), self.bn
        y = F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, self.training)
        return x + self.out(y)


class Sized(nn.Module):
    """What is read past the norm is a size only."""

    def __init__(self):
        super().__init__()
        self.first, self.bn, self.out = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        y = F.relu(self.bn(x)).mean((2, 3))
        return self.out(y.view(x.size(0), x.shape[1]))


class Excited(nn.Module):
    """The gate reads the channels past the norm."""

    def __init__(self):
        super().__init__()
        self.first, self.gate = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.bn, self.out = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.out(F.relu(self.bn(x * self.gate(x).sigmoid())))


def functional():
    block = type(preactivated()[1])(6, 5, 6)
    block.bn1 = Normed(6)
    return nn.Sequential(nn.Conv2d(3, 6, 1), block, block.__class__(6, 4, 6))


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (preactivated, ["1.bn1", "2.bn1", "3.bn1", "4"]),
        (dense, ["1.bn", "2.bn", "3", "7.bn", "8.bn", "9"]),
        (functional, ["1.bn1", "2.bn1"]),
        (Excited, ["bn"]),
        (Sized, []),
        (Lent, []),
        (lambda: models.resnet.ResNet(2, widths=(4, 8, 8)), []),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)), []),
    ],
)
def test_norms_whose_channels_are_read_past_them_are_found(make, found):
    assert list(shared_norms(make(), X.float())) == found


@pytest.mark.parametrize("arch", ["vgg11_bn", "resnet18", "mobilenet_v2", "mobilenet_v3_small"])
def test_norms_behind_their_convolution_are_not(arch):
    with torch.device("meta"):
        net = torchvision.models.get_model(arch, weights=None)
    assert shared_norms(net, IMAGE) == ()


def test_a_densenet_of_torchvision_has_them_before_all_but_bottlenecks_and_stem():
    with torch.device("meta"):
        net = torchvision.models.DenseNet(4, (2, 2), 8, num_classes=5)
    norms = [name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    wanted = [n for n in norms if not n.endswith("norm2") and n != "features.norm0"]
    assert [*shared_norms(net, IMAGE)] == wanted == [*dict.fromkeys(wanted)]


@pytest.mark.parametrize("make", [preactivated, dense, functional])
def test_outputs_and_gradients_stay_as_they_are(make):
    before = lively(make)
    after = copy.deepcopy(before)
    InsertChannelSelectors.of(after, X).apply(after)
    for training in (False, True):
        outputs = [net.train(training)(X) for net in (before, after)]
        assert torch.equal(*outputs)
        for output in outputs:
            output.square().sum().backward()
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    assert all(torch.equal(one.grad, two.grad) for one, two in pairs)
    assert all(torch.equal(a, b) for a, b in zip(before.buffers(), norms(after), strict=True))


def norms(model):
    return [b for name, b in model.named_buffers() if not name.endswith("kept")]


def test_a_second_insertion_finds_nothing_left():
    net, edit = inserted(preactivated)
    assert edit.norms and InsertChannelSelectors.of(net, X).norms == ()


def test_an_identity_returns_its_input_itself():
    assert ChannelSelector(3)(X) is X
    assert repr(ChannelSelector(3)) == "ChannelSelector(3 of 3)"


def test_a_selection_picks_by_index_and_twice():
    layer = ChannelSelector(5)
    narrow(layer, keep_out=[0, 2, 4])
    narrow(layer, keep_out=[1, 2])
    x = torch.rand(2, 5, 3)
    assert torch.equal(layer(x), x[:, [2, 4]])
    assert layer.kept.dtype == torch.long and (layer.width, repr(layer)[-7:-1]) == (5, "2 of 5")


def test_what_a_selection_reads_stays():
    with pytest.raises(SurgeryError, match="selects from 5 channels, all of which stay"):
        narrow(ChannelSelector(5), keep_in=[0, 1])


def test_the_graph_has_units_for_every_selection_and_says_why_the_rest_stays():
    net, edit = inserted(preactivated)
    graph = ChannelGraph.trace(net, X)
    groups = {group.name: group for group in graph.groups}
    for name in edit.norms:
        group = groups[f"{name}.select"]
        assert group.producers == ()
        assert not graph.ins[f"{name}.select"].any()
        for side in (graph.ins, graph.outs):
            assert torch.equal(side[f"{name}.norm"], group.units)
    assert set(graph.uses) == {n for n, m in net.named_modules() if isinstance(m, laws.LAYERS)}
    assert any("read through a channel selection" in note for note in graph.notes)
    assert len(graph.notes) < 4


@pytest.mark.parametrize("make", [preactivated, dense, functional])
@pytest.mark.parametrize("share", [0.4, 0.6, 0.7])
def test_masked_and_rebuilt_agree_and_again_after_a_second_cut(make, share):
    net, _ = inserted(make)
    for seed in (0, 1):
        graph = ChannelGraph.trace(net, X)
        done = cut(net, graph, halved(graph, seed, share), X)
        assert done.agreement.worst < 1e-12 and done.agreement.train is not None
        drop = graph.drop({name: ~mask for name, mask in halved(graph, seed, share).items()})
        size = sum(p.numel() for p in done.edits[0] and twin(net, done.edits[:1]).parameters())
        assert CostModel(net, graph).params(drop) == size
        net = done.model


def twin(model, edits):
    found = copy.deepcopy(model)
    for edit in edits:
        edit.apply(found)
    return found


class OneBlock(nn.Module):
    """A pre-activation block whose convolution reads what the norm lets through."""

    def __init__(self, size=1, pad=0):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.conv, self.head = nn.Conv2d(6, 6, size, padding=pad, bias=False), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.conv(F.relu(self.bn(x))))


def test_a_removed_channel_emits_relu_of_its_shift():
    """As if its scale were zero: the published rule, checked with scales set to zero by hand."""
    net = lively(OneBlock)
    gone = torch.tensor([True, False, True, False, False, True])
    with torch.no_grad():
        net.bn.bias[:3] = torch.tensor([0.5, 1.0, 2.0])
    reference = copy.deepcopy(net)
    with torch.no_grad():
        reference.bn.weight[gone] = 0
    InsertChannelSelectors.of(net, X).apply(net)
    graph = ChannelGraph.trace(net, X)
    keep = {g.name: ~gone for g in graph.groups}
    assert [*keep] == ["bn.select"]
    done = cut(net, graph, keep, X)
    assert done.absorbed.exact and [str(row) for row in done.absorbed.rows] == [
        "conv -> new bias: exact"
    ]
    assert torch.allclose(done.model.eval()(X), reference(X), rtol=0, atol=1e-12)
    dropped = cut(net, graph, keep, X, absorb=False).model.eval()
    with torch.no_grad():
        reference.bn.bias[gone] = 0
    assert torch.allclose(dropped(X), reference(X), rtol=0, atol=1e-12)


def test_at_padded_borders_maps_make_it_exact():
    net = lively(lambda: OneBlock(3, 1))
    InsertChannelSelectors.of(net, X).apply(net)
    graph = ChannelGraph.trace(net, X)
    reference = copy.deepcopy(net)
    with torch.no_grad():
        reference.bn.norm.weight[:3] = 0
    done = cut(net, graph, {"bn.select": torch.arange(6) > 2}, X, maps=True)
    assert torch.allclose(done.model.eval()(X), reference(X), rtol=0, atol=1e-12)


def test_a_selection_is_a_reader_so_no_running_mean_behind_it_takes_a_constant():
    """conv -> select -> norm: the norm may be narrower than what the convolution puts out."""
    net = lively(
        lambda: nn.Sequential(
            *(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1, bias=False)),
            *(nn.BatchNorm2d(5), nn.Conv2d(5, 2, 1)),
        )
    )
    InsertChannelSelectors(("3",)).apply(net)
    graph = ChannelGraph.trace(net, X)
    keep = {"0": torch.arange(6) > 2, "3.select": torch.arange(5) > 1}
    done = cut(net, graph, keep, X)
    assert [row.into for row in done.absorbed.rows] == ["new bias", "bias"]
    assert done.absorbed.exact and done.absorbed.change.after < 1e-12


@pytest.mark.parametrize("make", [preactivated, dense])
def test_scores_and_rows_reach_every_scale(make):
    net, edit = inserted(make)
    graph = ChannelGraph.trace(net, X)
    scores = criteria.BatchNormScale().scores(net, graph, None)
    for name in edit.norms:
        scale = dict(net.named_modules())[f"{name}.norm"].weight.detach().abs()
        assert torch.equal(scores[f"{name}.select"], scale)
    rows = targets.Scales().rows(net, graph)
    wide = {n: m for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert [row.name for row in rows] == [*wide]
    assert all((row.units > 0).all() for row in rows)


@pytest.mark.parametrize("name", ["l1_norm", "l2_norm", "fpgm", "lamp"])
def test_filters_say_nothing_about_selections(name):
    from prunekit.criteria import CRITERIA, Criterion

    net, edit = inserted(preactivated)
    scores = CRITERIA.named(name, Criterion).scores(net, ChannelGraph.trace(net, X), None)
    assert scores and not any(f"{norm}.select" in scores for norm in edit.norms)


def test_a_model_file_repeats_insertion_and_cut(tmp_path):
    net, edit = inserted(preactivated)
    graph = ChannelGraph.trace(net, X)
    done = cut(net, graph, halved(graph), X)
    assert edit_from_dict(edit.to_dict()) == edit
    save_model(tmp_path / "model.pt", done.model, edits=[edit, *done.edits])
    saved = load_model(tmp_path / "model.pt", module=preactivated())
    assert saved.edits[0] == edit
    assert torch.equal(saved.model.eval()(X), done.model.eval()(X))


@pytest.mark.parametrize("plain", [{"edit": "select"}, {"edit": "select", "norms": 3}])
def test_a_damaged_edit_is_refused(plain):
    with pytest.raises(ArtifactError, match="edit of kind 'select' is damaged"):
        edit_from_dict(plain)


@pytest.mark.parametrize("name", ["0", "none", ""])
def test_what_is_no_norm_is_refused_and_nothing_changed(name):
    net = preactivated()
    names = [*dict(net.named_modules())]
    with pytest.raises(SurgeryError, match="made for another network"):
        InsertChannelSelectors(("1.bn1", name)).apply(net)
    assert [*dict(net.named_modules())] == names


def test_an_optimizer_follows_insertion_and_cut():
    dense_net = lively(preactivated).train()
    optimizer = torch.optim.SGD(dense_net.parameters(), lr=0.1, momentum=0.9)
    dense_net(X).square().sum().backward()
    optimizer.step()
    momentum = optimizer.state[dense_net[1].bn1.weight]["momentum_buffer"].clone()
    net = copy.deepcopy(dense_net)
    edit = InsertChannelSelectors.of(net, X)
    edit.apply(net)
    graph = ChannelGraph.trace(net, X)
    keep = halved(graph)
    done = cut(net, graph, keep, X)
    narrow_optimizer(optimizer, dense_net, done.model, [edit, *done.edits])
    weight = done.model[1].bn1.norm.weight
    found = optimizer.state[weight]["momentum_buffer"]
    assert torch.equal(found, momentum[keep["1.bn1.select"]])
    done.model(X).square().sum().backward()
    optimizer.step()


def test_a_shared_norm_module_gets_one_selection_everywhere():
    net = preactivated()
    net[3].bn1 = net[4] = nn.BatchNorm2d(10)
    InsertChannelSelectors.of(net, X.float()).apply(net)
    assert net[3].bn1 is net[4] and isinstance(net[4].select, ChannelSelector)
    net = net.double()
    graph = ChannelGraph.trace(net, X)
    drop = graph.drop(laws.masks(graph, 0, 0.5))
    narrowed = twin(net, [Narrow.of(graph, drop)])
    assert narrowed[3].bn1 is narrowed[4]


@pytest.mark.slow
def test_onnx_gives_the_eager_outputs(tmp_path):
    pytest.importorskip("onnxruntime", reason="pip install prunekit[export]")
    pytest.importorskip("onnxscript", reason="pip install prunekit[export]")
    import onnxruntime

    net, _ = inserted(preactivated)
    graph = ChannelGraph.trace(net, X)
    done = cut(net, graph, halved(graph), X).model.float().eval()
    path = tmp_path / "model.onnx"
    torch.onnx.export(done, (X.float(),), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: X.float().numpy()})
    assert torch.allclose(torch.from_numpy(found), done(X.float()), atol=1e-4)


def test_a_pre_activation_network_of_timm():
    timm = pytest.importorskip("timm", reason="pip install timm")
    torch.manual_seed(0)
    net = timm.create_model(
        "resnetv2_50", num_classes=3, stem_chs=8, layers=(1, 2), channels=(8, 16)
    )
    net = net.double().eval()
    randomise(net)
    x = torch.rand(2, 3, 32, 32, dtype=torch.double)
    before = net(x)
    edit = InsertChannelSelectors.of(net, x)
    assert edit.norms == ("stages.1.blocks.1.norm1", "norm")  # others feed the shortcut too
    edit.apply(net)
    assert torch.equal(net(x), before)
    graph = ChannelGraph.trace(net, x)
    assert cut(net, graph, halved(graph), x).agreement.worst < 1e-10


@pytest.mark.slow
def test_every_pattern_keeps_its_outputs_when_selections_are_inserted():
    found = 0
    for pattern in PATTERNS.values():
        if not pattern.refused and any(
            isinstance(m, nn.BatchNorm2d) for m in pattern.network().modules()
        ):
            net = pattern.network().eval()
            before = laws.leaves(net(*pattern.example))
            edit = InsertChannelSelectors.of(net, pattern.example)
            edit.apply(net)
            after = laws.leaves(net(*pattern.example))
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            found += bool(edit.norms)
    assert found


NETWORKS = {
    "vgg19": (lambda: models.vgg19(), 5504),
    "densenet40": (lambda: models.densenet40(), 9360),
    "preresnet164": (lambda: models.preresnet164(), 12112),
}
SMALL = {
    "densenet": lambda: models.densenet.DenseNet(2, growth=4, stem=6),
    "preresnet": lambda: models.preresnet.PreResNet(2, widths=(4, 5, 6), stem=6),
}


def agreement(net, x, share):
    """Prune this share of all scales by one threshold, a channel per layer is left."""
    InsertChannelSelectors.of(net, x).apply(net)
    graph = ChannelGraph.trace(net, x)
    scores = criteria.BatchNormScale().scores(net, graph, None)
    limit = torch.cat([*scores.values()]).quantile(share)
    keep = {n: (s > limit) | (torch.arange(len(s)) == s.argmax()) for n, s in scores.items()}
    return cut(net, graph, keep, x, absorb=False).agreement, sum(map(len, scores.values()))


@pytest.mark.parametrize("share", [0.4, 0.6, 0.7])
@pytest.mark.parametrize("name", SMALL)
def test_small_networks_of_the_published_kinds_agree(name, share):
    found, _ = agreement(lively(SMALL[name]), X, share)
    assert found.worst < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.4, 0.6, 0.7])
@pytest.mark.parametrize("name", NETWORKS)
def test_published_networks_agree_at_published_shares(name, share):
    make, scales = NETWORKS[name]
    torch.manual_seed(0)
    net = make()
    randomise(net)
    found, count = agreement(net, torch.randn(2, 3, 32, 32), share)
    assert count == scales and found.worst < 1e-5, found
