"""Convolutions that lose whole groups, compared with silenced networks and plain layers."""

from __future__ import annotations

import copy

import laws
import pytest
import torch
from hypothesis import given
from hypothesis import settings as rules
from hypothesis import strategies as st
from patterns import randomise
from torch import nn

import prunekit
from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.graph.whole_groups import WholeGroups, plain_groups, whole_groups
from prunekit.measure import CostModel, fvcore_macs
from prunekit.methods.hinge import Fold, FoldedCost, InsertMatrices, Matrices, Site
from prunekit.models import ResNeXt, resnext20, resnext164
from prunekit.surgery import Narrow, load_model, narrow, narrow_optimizer, save_model
from prunekit.surgery.cut import cut

ARCH = {"_target_": "prunekit.models.ResNeXt", "blocks": 2, "cardinality": 6, "width": 2, "stem": 5}
SHAPE = (4, 3, 12, 12)


def plain(dtype=torch.float64):
    torch.manual_seed(0)
    net = ResNeXt(**{key: value for key, value in ARCH.items() if key != "_target_"})
    randomise(net)
    return net.to(dtype)


def attach(model):
    """Make all grouped convolutions of a ResNeXt lose whole groups."""
    edit = InsertMatrices(
        (), tuple(name for name, _ in model.named_modules() if name.endswith("conv2"))
    )
    edit.apply(model)
    return edit


def whole(dtype=torch.float64):
    net = plain(dtype)
    attach(net)
    return net


def images(dtype=torch.float64):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)).to(dtype)


def pieces(graph):
    """Return the channel groups whose units are convolution groups."""
    return [group for group in graph.groups if group.name.endswith("conv1") and "." in group.name]


def some(graph, seed=0):
    """Return masks that keep some units of every group, at least two."""
    chosen = laws.masks(graph, seed, 0.5, 2)
    return {name: ~mask for name, mask in chosen.items()}


class TestTheLayer:
    def test_it_is_the_same_layer_with_the_same_parameters_and_back(self):
        conv = nn.Conv2d(
            6, 9, (3, 1), 2, (1, 0), groups=3, padding_mode="circular", dtype=torch.float64
        ).eval()
        conv.weight.requires_grad_(False)
        x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
        there = whole_groups(conv)
        back = plain_groups(there)
        assert (type(there), type(back)) == (WholeGroups, nn.Conv2d)
        for layer in (there, back):
            assert layer.weight is conv.weight and layer.bias is conv.bias
            assert not layer.training and torch.equal(layer(x), conv(x))
            assert layer.extra_repr() == conv.extra_repr()

    def test_without_bias_and_in_train_mode(self):
        conv = nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False)
        layer = whole_groups(conv)
        x = torch.randn(1, 4, 5, 5)
        assert layer.bias is None and layer.training and torch.equal(layer(x), conv(x))

    @pytest.mark.parametrize(
        "layer",
        [
            nn.Conv1d(4, 4, 1, groups=2),
            WholeGroups(4, 4, 1, groups=2),
            nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1, groups=2)),
            type("Mine", (nn.Conv2d,), {})(4, 4, 1, groups=2),
        ],
    )
    def test_what_computes_something_else_is_refused(self, layer):
        with pytest.raises(SurgeryError, match=r"is no plain Conv2d; only the groups") as caught:
            whole_groups(layer)
        message = str(caught.value)
        assert f"{type(layer).__name__}(4, 4, kernel_size=(1," in message and "\n" not in message


@st.composite
def cuts(draw):
    """Draw a grouped convolution, plain or whole or transposed, and the groups to keep."""
    groups = draw(st.integers(1, 5))
    ins, outs = (groups * draw(st.integers(1, 3)) for _ in range(2))
    stay = sorted(draw(st.sets(st.integers(0, groups - 1), min_size=1)))
    kind = draw(st.sampled_from((WholeGroups, nn.Conv2d, nn.Conv1d, nn.ConvTranspose2d)))
    return kind, groups, ins, outs, stay


@rules(max_examples=60, deadline=None)
@given(cuts(), st.booleans())
def test_groups_that_stay_compute_what_they_computed(chosen, bias):
    kind, groups, ins, outs, stay = chosen
    layer = kind(ins, outs, 3, groups=groups, bias=bias, dtype=torch.float64)
    x = torch.randn(2, ins, *[6] * (layer.weight.ndim - 2), dtype=torch.float64)
    keep_in, keep_out = (
        [group * width // groups + i for group in stay for i in range(width // groups)]
        for width in (ins, outs)
    )
    expected = layer(x)[:, keep_out]
    narrow(layer, keep_in, keep_out)
    assert (layer.in_channels, layer.out_channels) == (len(keep_in), len(keep_out))
    assert layer.groups == len(stay)
    torch.testing.assert_close(layer(x[:, keep_in]), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("keep_in", "keep_out"),
    [
        ([0, 2], [0, 1, 2]),  # the inputs of two groups, in part
        ([0, 1, 2, 3], [0, 1, 2]),  # fewer groups of outputs
        ([0, 1], [3, 4, 5]),  # the outputs of another group
        ([0, 2, 4], None),  # evenly
        ([1, 0], [0, 1, 2]),  # in another order
        ([0, 1], None),
    ],
)
def test_parts_of_groups_are_refused_and_nothing_changes(keep_in, keep_out):
    layer = WholeGroups(6, 9, 1, groups=3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with pytest.raises(SurgeryError, match=r"its 3 convolution groups would keep .* or none"):
        narrow(layer, keep_in, keep_out)
    assert layer.groups == 3 and all(
        torch.equal(v, before[k]) for k, v in layer.state_dict().items()
    )


def test_plain_groups_still_lose_evenly():
    layer = nn.Conv2d(4, 4, 1, groups=2)
    narrow(layer, [0, 3], [1, 2])
    assert (layer.groups, layer.weight.shape) == (2, (2, 1, 1, 1))
    with pytest.raises(SurgeryError, match="keep the same number in each"):
        narrow(nn.Conv2d(4, 4, 1, groups=2), [0, 1], None)


class TestTheGraph:
    def test_a_group_is_one_unit_of_all_that_reads_and_feeds_it(self):
        graph = ChannelGraph.trace(whole(), images())
        assert len(pieces(graph)) == 6
        for group in pieces(graph):
            block, width = group.name.rpartition(".")[0], 2 * 2 ** (int(group.name[5]) - 1)
            expected = group.units.repeat_interleave(width)
            assert len(group.units) == 6 and group.producers == (group.name, f"{block}.conv2")
            sides = [graph.outs[f"{block}.{name}"] for name in ("conv1", "bn1", "conv2", "bn2")]
            sides += [graph.ins[f"{block}.{name}"] for name in ("bn1", "conv2", "bn2", "conv3")]
            assert all(torch.equal(side, expected) for side in sides)
        assert not graph.notes and set(graph.frozen) == {"linear"}

    def test_plain_groups_are_tied_across_groups(self):
        graph = ChannelGraph.trace(plain(), images())
        units = graph.ins["layer2.0.conv2"].view(6, 4)
        assert torch.equal(units, units[:1].expand(6, 4)) and len(units[0].unique()) == 4

    def test_what_reads_a_unit_is_what_its_gradient_says(self):
        """Gradients show which inputs an output depends on; every pair is in one unit."""
        layer = WholeGroups(8, 12, 1, groups=4).double()
        net = nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(12, 2, 1)).double()
        graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4, dtype=torch.float64))
        x = torch.randn(1, 8, 1, 1, dtype=torch.float64)
        depends = torch.autograd.functional.jacobian(layer, x).view(12, 8) != 0
        same = graph.outs["1"][:, None] == graph.ins["1"][None, :]
        assert torch.equal(depends, same)

    def test_one_group_alone_cannot_go(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 1), WholeGroups(4, 4, 1), nn.Conv2d(4, 2, 1))
        graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
        assert [len(group.units) for group in graph.groups] == [1]
        assert any("one unit" in note for note in graph.notes)

    def test_groups_of_what_stays_stay(self):
        net = nn.Sequential(WholeGroups(3, 6, 1, groups=3), nn.Conv2d(6, 2, 1))
        graph = ChannelGraph.trace(net, torch.zeros(1, 3, 4, 4))
        assert not graph.outs["0"].any() and graph.frozen["0"] == "its input channels stay"


class TestANetwork:
    @pytest.mark.parametrize("seed", range(3))
    def test_removed_units_are_silenced_ones(self, seed):
        cut_out = laws.Cut.random(whole(), (images(),), seed, 0.5, 2)
        laws.check_masked(cut_out, 1e-12)
        laws.check_sizes(cut_out)
        laws.check_costs(cut_out)
        laws.check_kept(cut_out)
        laws.check_trainable(cut_out)

    def test_in_single_precision(self):
        cut_out = laws.Cut.random(whole(torch.float32), (images(torch.float32),), 1, 0.7, 2)
        laws.check_masked(cut_out, 1e-5)

    def test_plain_and_whole_compute_the_same_before_a_cut(self):
        with torch.no_grad():
            assert torch.equal(whole().eval()(images()), plain().eval()(images()))

    def test_cut_proves_itself_and_constants_are_absorbed(self):
        net = whole().eval()
        graph = ChannelGraph.trace(net, images())
        done = cut(net, graph, some(graph), images(), absorb=True, check=True)
        assert max(done.agreement.eval.relative, done.agreement.train.relative) < 1e-9
        readers = {row.layer for row in done.absorbed.layers}
        assert not any(name.endswith("conv2") for name in readers)
        assert any(name.endswith("conv3") for name in readers)
        only = [row for row in done.absorbed.layers if row.layer.endswith("conv3")]
        assert all(row.exact for row in only)

    def test_an_optimizer_follows(self):
        dense = whole().train()
        optimizer = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9)
        dense(images()).square().sum().backward()
        optimizer.step()
        graph = ChannelGraph.trace(dense, images())
        keep = some(graph)
        momentum = optimizer.state[dense.layer2[0].conv2.weight]["momentum_buffer"].clone()
        done = cut(dense, graph, keep, images())
        narrow_optimizer(optimizer, dense, done.model, done.edits)
        result = optimizer.state[done.model.layer2[0].conv2.weight]["momentum_buffer"]
        rows = keep["layer2.0.conv1"].repeat_interleave(4)
        assert torch.equal(result, momentum[rows]) and len(result) < len(momentum)
        done.model(images()).square().sum().backward()
        optimizer.step()

    def test_files_bring_it_back_until_it_is_folded_and_after(self, tmp_path):
        net = plain().eval()
        placed = attach(net)
        graph = ChannelGraph.trace(net, images())
        done = cut(net, graph, some(graph), images())
        edits, folded = [placed, *done.edits], copy.deepcopy(done.model)
        fold = Fold.of(folded)
        fold.apply(folded)
        for model, steps, kind in (
            (done.model, edits, WholeGroups),
            (folded, [*edits, fold], nn.Conv2d),
        ):
            save_model(tmp_path / "model.pt", model, ARCH, steps)
            saved = load_model(tmp_path / "model.pt").model.double().eval()
            conv = saved.layer1[0].conv2
            assert type(conv) is kind and 1 < conv.groups < 6
            with torch.no_grad():
                assert torch.equal(saved(images()), done.model.eval()(images()))

    @pytest.mark.slow
    def test_it_is_exported(self, tmp_path):
        ort = pytest.importorskip("onnxruntime", reason="needs the extra: prunekit[export]")
        pytest.importorskip("onnxscript", reason="needs the extra: prunekit[export]")
        cut_out = laws.Cut.random(whole(torch.float32), (images(torch.float32),), 0, 0.5, 2)
        model, x = cut_out.narrow.eval(), images(torch.float32)
        written = prunekit.export_onnx(model, x, tmp_path / "model.onnx")
        other = prunekit.export_program(model, x, tmp_path / "model.pt2")
        with torch.no_grad():
            expected = model(x)
        session = ort.InferenceSession(str(written.path), providers=["CPUExecutionProvider"])
        result = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        again = torch.export.load(other.path).module()(x)
        for logits in (torch.from_numpy(result), again):
            assert float((logits - expected).detach().abs().max() / expected.abs().max()) < 1e-5

    @pytest.mark.parametrize("criterion", ["l1_norm", "l2_norm", "fpgm", "bn_scale", "lamp"])
    @pytest.mark.parametrize("share", [{"keep": 0.5}, {"macs": 0.5}])
    def test_criteria_score_groups_as_a_whole(self, criterion, share):
        net = whole(torch.float32)
        pruned = prunekit.prune(net, images(torch.float32), criterion=criterion, **share)
        widths = {
            (module.groups, module.in_channels // module.groups)
            for module in pruned.model.modules()
            if isinstance(module, WholeGroups)
        }
        assert all(1 <= groups < 6 for groups, _ in widths)
        assert {size for _, size in widths} == {2, 4, 8}


class TestUnderHinge:
    """The 1 x 1 convolutions of a block get matrices, and convolution groups are removed."""

    def attached(self):
        net = plain().eval()
        blocks = [name.rpartition(".")[0] for name, _ in net.named_modules() if "conv2" in name]
        sites = [
            Site(f"{block}.{layer}", ("groups",), None, block, role)
            for block in blocks
            for layer, role in (("conv1", "first"), ("conv3", "second"))
        ]
        InsertMatrices(tuple(sites), tuple(f"{block}.conv2" for block in blocks)).apply(net)
        return net

    def test_a_row_is_all_that_feeds_and_reads_a_group(self):
        net = self.attached()
        blocks = Matrices().blocks(net, ChannelGraph.trace(net, images()))
        assert len(blocks) == 6
        block = next(one for one in blocks if one.name == "layer2.1.groups")
        feeds, reads = net.layer2[1].conv1.matrix.weight, net.layer2[1].conv3.matrix.weight
        for group, row in enumerate(block.read()):
            own = slice(4 * group, 4 * group + 4)
            parts = (feeds[own], reads[:, own])
            assert row.norm().item() ** 2 == pytest.approx(
                sum(part.square().sum().item() for part in parts), rel=1e-12
            )

    def test_what_is_cut_and_folded_is_the_silenced_network_and_was_counted(self):
        net = self.attached()
        graph = ChannelGraph.trace(net, images())
        target = {block.units[0].item(): block for block in Matrices().blocks(net, graph)}
        chosen = {
            group.name: torch.tensor([True, False, True, True, False, True])
            for group in graph.groups
            if int(group.units[0]) in target
        }
        assert len(chosen) == 6
        drop, cost = graph.drop(chosen), FoldedCost(net, graph)
        left = copy.deepcopy(net)
        Narrow.of(graph, drop).apply(left)
        Fold.of(left).apply(left)
        assert {type(m) for m in left.modules() if getattr(m, "groups", 1) > 1} == {nn.Conv2d}
        with torch.no_grad(), graph.silencer(net, drop):
            assert laws.gap(left(images()), net(images())) < 1e-12
        assert cost.macs(drop) == fvcore_macs(left, images()[:1])
        assert cost.params(drop) == sum(parameter.numel() for parameter in left.parameters())


@pytest.mark.parametrize(
    ("make", "flops", "params"), [(resnext20, 0.300, 0.366), (resnext164, 0.215, 0.216)]
)
def test_a_fifth_of_all_groups_leaves_what_hinge_reports(make, flops, params):
    """Section 2 of its specification keeps 6 of 32 groups, and counts FLOPs of batch norms."""
    net, x = make(), torch.zeros(1, 3, 32, 32)
    attach(net)
    graph = ChannelGraph.trace(net, x)
    drop = graph.drop({group.name: torch.arange(32) >= 6 for group in pieces(graph)})
    cost = CostModel(net, graph)
    before, after = norms(net, graph), norms(net, graph, drop)
    assert cost.params(drop) / cost.params() == pytest.approx(params, abs=6e-4)
    result = (cost.macs(drop) + after) / (cost.macs() + before)
    assert result == pytest.approx(flops, abs=6e-4)
    assert cost.macs() == fvcore_macs(net, x)


def norms(net, graph, drop=None):
    """Return two operations for each output entry of a batch norm."""
    total = 0
    for name, module in net.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            units, (_, _, height, width) = graph.outs[name], graph.shapes[name]
            kept = len(units) if drop is None else int((~drop[units]).sum())
            total += 2 * kept * height * width
    return total
