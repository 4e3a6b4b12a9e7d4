"""Networks have the published parameter and multiply-add counts, and load published weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import prunekit
from prunekit import models
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, counted_macs
from prunekit.methods.slimming import slimming_flops, slimming_params

SHARED = Path(__file__).parents[3] / "shared"
ORACLE = SHARED / "methods" / "checks" / "arch_counts.py"

# widths, parameters, multiply-adds, multiply-adds + one add per biased output (SSR, table I)
LENET_ROWS = [
    ((20, 50, 500), 431080, 2293000, 2308230),
    ((3, 15, 175), 45153, 158950, 161823),
    ((2, 11, 134), 25681, 88924, 90924),
    ((2, 12, 127), 26455, 92854, 94911),
    ((2, 7, 99), 12596, 63278, 64987),
    ((3, 11, 109), 21307, 116274, 118825),
    ((3, 8, 82), 12094, 92916, 95248),
    ((3, 11, 108), 21120, 116088, 118638),
    ((2, 8, 77), 11173, 65026, 66777),
    ((2, 11, 146), 27925, 91156, 93168),
    ((2, 8, 79), 11451, 65302, 67055),
]

CIFAR_ROWS = [
    (models.vgg16, 10, 14724042, 313201664),
    (models.vgg16_two_linear, 10, 14986698, 313463808),
    (models.vgg16_three_linear, 10, 15253578, 313725952),
    (models.vgg19, 10, 20035018, 398136320),
    (models.vgg19, 100, 20081188, 398182400),
    (models.densenet40, 10, 1059298, 282917328),
    (models.densenet40, 100, 1100428, 282958368),
    (models.googlenet, 10, 6166250, 1521756160),
    (models.preresnet164, 10, 1703258, 247646720),
    (models.preresnet164, 100, 1726388, 247669760),
    (models.resnet20, 10, 269722, 40551040),
    (models.resnet32, 10, 464154, 68862592),
    (models.resnet56, 10, 853018, 125485696),
    (models.resnet110, 10, 1727962, 252887680),
    (models.resnet164, 10, 1704154, 247646720),
    (models.resnet164, 100, 1727284, 247669760),
    (models.resnext20, 10, 211850, 35523072),
    (models.resnext20, 100, 234980, 35546112),
    (models.resnext164, 10, 1713546, 251005440),
    (models.resnext164, 100, 1736676, 251028480),
    (models.wrn16_10, 100, 17179940, 3120019968),
]

# what Hinge's code counts, in millions: multiply-adds, two for each entry that a batch norm
# puts out, one for each of a ReLU that is a module; its ResNeXts and wide ResNets call ReLU as a
# function. Then thousands of parameters
HINGE_ROWS = [
    (models.resnet20, 10, 41.116288, 269.7, True),
    (models.resnet56, 10, 127.083136, 853.0, True),
    (models.resnet164, 10, 257.3, 1704.2, True),
    (models.resnet164, 100, None, 1727.3, True),
    (models.resnext20, 10, 36.8, 211.8, False),
    (models.resnext20, 100, None, 235.0, False),
    (models.resnext164, 10, 259.6, 1713.5, False),
    (models.resnext164, 100, None, 1736.7, False),
    (models.vgg16_three_linear, 10, 314.6, 15253.6, True),
    (models.densenet40, 10, 290.1, 1059.3, True),
    (models.wrn16_10, 100, 3123.1, 17179.9, False),
]

# the bases that the structured-lasso tables print, in millions: FLOPs are multiply-adds, `times`
# for each entry that a batch norm puts out, and one for each that average pooling reads
STRUCTURED_ROWS = [
    (models.vgg16_two_linear, 4, 0, 314.57, 14.98),  # the paper cuts 14.987 off
    (models.resnet56, 4, 64 * 65, 127.62, 0.853),
    (models.resnet110, 3, 64 * 65, 256.04, 1.73),
    (models.googlenet, 4, 0, 1531.98, 6.17),
]

# scales of batch norms, their number, parameters with masks and FLOPs as the released code counts
SLIMMING_ROWS = [
    (models.vgg19, 10, 5504, 16, 20035018, 7.973e8),
    (models.vgg19, 100, 5504, 16, 20081188, 7.974e8),
    (models.densenet40, 10, 9360, 39, 1068658, 5.731e8),
    (models.densenet40, 100, 9360, 39, 1109788, 5.731e8),
    (models.preresnet164, 10, 12112, 163, 1711338, 5.048e8),
    (models.preresnet164, 100, 12112, 163, 1734468, 5.048e8),
]
IMAGE = torch.zeros(1, 3, 32, 32)


def counts(model, shape):
    """Parameters and multiply-adds of convolutions and linear layers, by PyTorch's own counter."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return sum(param.numel() for param in model.parameters()), counter.get_total_flops() // 2


def biased_outputs(model, shape):
    """How many output elements of one example get a bias added."""
    total = []
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.register_forward_hook(lambda _, __, output: total.append(output[0].numel()))
    model(torch.zeros(1, *shape))
    return sum(total)


@pytest.mark.parametrize(("widths", "params", "macs", "macs_bias"), LENET_ROWS)
def test_lenet_counts_are_those_of_table_one(widths, params, macs, macs_bias):
    model = models.LeNet5(widths)
    assert counts(model, (1, 28, 28)) == (params, macs)
    assert macs + biased_outputs(model, (1, 28, 28)) == macs_bias


@pytest.mark.parametrize(("make", "classes", "params", "macs"), CIFAR_ROWS)
def test_cifar_networks_have_their_published_size(make, classes, params, macs):
    assert counts(make(classes), (3, 32, 32)) == (params, macs)


@pytest.mark.parametrize(("make", "classes", "scales", "norms", "params", "flops"), SLIMMING_ROWS)
def test_slimming_networks_in_every_convention(make, classes, scales, norms, params, flops):
    model = make(classes)
    widths = [module.num_features for module in model.modules() if is_norm(module)]
    assert (sum(widths), len(widths)) == (scales, norms)
    cost = CostModel(model, ChannelGraph.trace(model, IMAGE))
    assert cost.macs() == counted_macs(model, IMAGE) == counts(model, (3, 32, 32))[1]
    assert cost.params() == sum(param.numel() for param in model.parameters())
    assert slimming_params(model, IMAGE) == params
    assert float(f"{slimming_flops(model, IMAGE):.4g}") == flops


@pytest.mark.parametrize(("make", "classes", "flops", "thousands", "relus"), HINGE_ROWS)
def test_networks_of_hinge_are_counted_as_its_code_counts(make, classes, flops, thousands, relus):
    model = make(classes)
    norms, activations = outputs(model, nn.BatchNorm2d), outputs(model, nn.ReLU)
    params, macs = counts(model, (3, 32, 32))
    assert params / 1000 == pytest.approx(thousands, abs=0.0501)
    found = macs + 2 * sum(norms) + (sum(activations) if relus else 0)
    assert flops is None or found / 1e6 == pytest.approx(flops, abs=0.0501)


@pytest.mark.parametrize(("make", "times", "pooling", "flops", "params"), STRUCTURED_ROWS)
def test_networks_of_the_structured_lasso_have_its_bases(make, times, pooling, flops, params):
    model = make()
    norms = outputs(model, nn.BatchNorm2d)
    found, macs = counts(model, (3, 32, 32))
    assert (macs + times * sum(norms) + pooling) / 1e6 == pytest.approx(flops, abs=0.00501)
    assert found / 1e6 == pytest.approx(params, abs=0.00701)


def outputs(model, kind):
    """Entries that layers of a kind put out for one example, filled in by the next call."""
    found = []
    for module in model.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _, __, output: found.append(output[0].numel()))
    return found


@pytest.mark.parametrize("make", [models.resnext20, models.BottleneckResNet, models.WideResNet])
def test_the_cost_model_counts_networks_of_hinge(make):
    model = make(2) if make is not models.resnext20 else make()
    cost = CostModel(model, ChannelGraph.trace(model, IMAGE))
    assert cost.macs() == counted_macs(model, IMAGE) == counts(model, (3, 32, 32))[1]
    assert cost.params() == sum(param.numel() for param in model.parameters())


class TestNetworksOfHinge:
    """Facts of the architectures that counts cannot tell apart."""

    @pytest.mark.parametrize("name", ["resnet", "resnext", "wide"])
    def test_each_stage_but_the_first_halves_images(self, name):
        model = HINGE[name]().eval()
        hidden = torch.zeros(1, model.layer1[0].conv1.in_channels, 12, 12)
        sizes = []
        for stage in stages(model):
            hidden = stage(hidden)
            sizes.append(hidden.shape[2])
        assert sizes == [12, 6, 3]

    @pytest.mark.parametrize("name", ["resnet", "resnext", "wide"])
    def test_the_stride_sits_on_the_second_convolution(self, name):
        for stage in stages(HINGE[name]())[1:]:
            strides = [stage[0].conv1.stride[0], stage[0].conv2.stride[0]]
            assert strides == [1, 2] and stage[1].conv2.stride == (1, 1)

    @pytest.mark.parametrize("name", ["resnet", "resnext"])
    def test_shortcuts_have_a_norm_where_the_shape_changes(self, name):
        for stage in stages(HINGE[name]()):
            kinds = [type(module) for module in stage[0].shortcut]
            assert kinds == [nn.Conv2d, nn.BatchNorm2d]
            assert isinstance(stage[1].shortcut, nn.Identity)

    @pytest.mark.parametrize("name", ["resnet", "resnext"])
    def test_the_activation_is_behind_the_addition(self, name):
        torch.manual_seed(0)
        block = HINGE[name]().layer1[1].eval()
        nn.init.zeros_(block.bn3.weight)
        x = torch.randn(2, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(x), x.relu())

    def test_wide_blocks_add_what_no_norm_has_touched(self):
        torch.manual_seed(0)
        block = HINGE["wide"]().layer2[0].eval()
        for value in block.conv2.parameters():
            nn.init.zeros_(value)
        x = torch.randn(2, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(x), block.shortcut(x)) and block.shortcut.stride == (2, 2)

    def test_wide_networks_have_biases_and_a_quick_last_norm(self):
        model = models.wrn16_10()
        convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
        assert len(convs) == 16 and all(bool((conv.bias == 0).all()) for conv in convs)
        assert model.bn.momentum == 0.9 and model.layer1[0].bn1.momentum == 0.1

    def test_groups_of_resnext_double_with_every_stage(self):
        widths = [
            (stage[0].conv2.groups, stage[0].conv2.weight.shape[1], stage[0].conv3.out_channels)
            for stage in stages(models.resnext20())
        ]
        assert widths == [(32, 1, 64), (32, 2, 128), (32, 4, 256)]


HINGE = {
    "resnet": lambda: models.BottleneckResNet(2, widths=(3, 4, 5), stem=4),
    "resnext": lambda: models.ResNeXt(2, cardinality=4, stem=6),
    "wide": lambda: models.WideResNet(2, 2, stem=3),
}


@pytest.mark.skipif(
    not ORACLE.is_file(), reason="no arithmetic of the architectures beside the tree"
)
@pytest.mark.parametrize(
    ("make", "name", "more"),
    [  # the release calls VGG's last pooling as a function, which its count does not see
        (models.vgg19, "vgg19", 2 * 2 * 512),
        (models.densenet40, "densenet", 0),
        (models.preresnet164, "resnet164", 0),
    ],
)
@pytest.mark.parametrize("classes", [10, 100])
def test_slimming_networks_agree_with_arithmetic_without_torch(make, name, more, classes):
    layers, norms, relus, pools, masks = oracle()[name](classes)
    total = {key: sum(layer[key] for layer in layers) for key in ("w", "b", "mac", "badd")}
    scales = sum(width for width, _ in norms)
    entries = sum(width * side**2 for width, side in norms)
    model = make(classes)
    params, macs = counts(model, (3, 32, 32))
    assert (params, macs) == (total["w"] + total["b"] + 2 * scales, total["mac"])
    assert slimming_params(model, IMAGE) == params + masks
    flops = 2 * macs + total["badd"] + 2 * entries + relus + pools
    assert slimming_flops(model, IMAGE) == flops + more


def oracle():
    """The functions of the arithmetic, without its tables."""
    found = {}
    exec(ORACLE.read_text().split('print("=== (A)')[0], found)
    return found


def test_a_stem_of_sixteen_is_the_densenet_of_the_slimming_paper():
    sizes = [counts(models.densenet40(c, stem=16), (3, 32, 32))[0] for c in (10, 100)]
    assert sizes == [1019722, 1060132]


@pytest.mark.parametrize("make", [models.vgg19, models.densenet40, models.preresnet164])
def test_slimming_networks_start_as_published(make):
    torch.manual_seed(0)
    model = make(scale=0.25)
    norms = [module for module in model.modules() if is_norm(module)]
    assert all((n.weight == 0.25).all() and (n.bias == 0).all() and n.eps == 1e-5 for n in norms)
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) > 15 and all(conv.bias is None for conv in convs)
    for conv in convs:
        if conv.weight.numel() > 1000:
            area = conv.kernel_size[0] * conv.kernel_size[1] * conv.out_channels
            assert conv.weight.std().item() == pytest.approx((2 / area) ** 0.5, rel=0.1)
            assert abs(conv.weight.mean().item()) < 0.1 * (2 / area) ** 0.5


@pytest.mark.parametrize("make", [models.vgg19, models.densenet40, models.preresnet164])
def test_half_is_where_scales_start_unless_told_otherwise(make):
    assert all((module.weight == 0.5).all() for module in make().modules() if is_norm(module))


def is_norm(module):
    return isinstance(module, nn.BatchNorm2d)


def test_shortcuts_of_preresnet_read_what_no_norm_has_touched():
    """First blocks of a stage have a convolution there, without a norm; the others nothing."""
    torch.manual_seed(0)
    model = models.PreResNet(2, widths=(2, 3, 4), stem=3).eval()
    kinds = [type(block.shortcut) for stage in stages(model) for block in stage]
    assert kinds == [nn.Conv2d, nn.Identity] * 3
    first = model.layer2[0]
    nn.init.zeros_(first.conv3.weight)
    x = torch.randn(2, 8, 8, 8)
    assert first.shortcut.kernel_size == (1, 1) and first.shortcut.stride == (2, 2)
    assert torch.equal(first(x), first.shortcut(x)) and first(x).shape == (2, 12, 4, 4)
    nn.init.zeros_(model.layer2[1].conv3.weight)
    assert torch.equal(model.layer2[1](first(x)), first(x))


def stages(model):
    return model.layer1, model.layer2, model.layer3


def test_dense_layers_hand_on_all_they_read():
    torch.manual_seed(0)
    model = models.DenseNet(layers=2, growth=3, stem=5).eval()
    x = torch.randn(2, 5, 8, 8)
    wide = model.block1(x)
    assert wide.shape == (2, 11, 8, 8) and torch.equal(wide[:, :5], x)
    assert model.transition1(wide).shape == (2, 11, 4, 4)
    assert [layer.bn.num_features for layer in model.block2] == [11, 14]


@pytest.mark.parametrize("size", [8, 32, 40])
@pytest.mark.parametrize("make", [models.DenseNet, models.PreResNet])
def test_slimming_networks_take_other_images(make, size):
    small = make(1, 7, in_channels=1)
    assert small(torch.zeros(2, 1, size, size)).shape == (2, 7)


def test_channels_that_are_added_or_concatenated_live_and_die_together():
    """A residual stream is one group; a feature map is one group, however many layers read it."""
    dense = ChannelGraph.trace(models.DenseNet(layers=2, growth=3, stem=5), IMAGE)
    convs = ["conv1", *(f"block{b}.{i}.conv" for b in (1, 2, 3) for i in (0, 1))]
    convs += ["transition1.conv", "transition2.conv"]
    assert {group.producers for group in dense.groups} == {(name,) for name in convs}
    first, conv1 = dense.ins["block1.1.conv"], dense.outs["conv1"]
    assert torch.equal(first, torch.cat([conv1, dense.outs["block1.0.conv"]]))

    residual = ChannelGraph.trace(models.PreResNet(2, widths=(2, 3, 4), stem=3), IMAGE)
    found = {frozenset(group.producers) for group in residual.groups}
    inner = {
        frozenset({f"layer{s}.{b}.conv{c}"}) for s in (1, 2, 3) for b in (0, 1) for c in (1, 2)
    }
    streams = {
        frozenset({f"layer{s}.0.conv3", f"layer{s}.0.shortcut", f"layer{s}.1.conv3"})
        for s in (1, 2, 3)
    }
    assert found == {frozenset({"conv1"})} | inner | streams
    for graph in (dense, residual):
        assert graph.frozen == {"linear": "they leave the network"} and not graph.notes


class TestGoogLeNet:
    def test_a_module_is_counted_by_hand(self):
        """Seven convolutions of four branches on 4 x 4 pixels, each with a bias and a norm."""
        shapes = [(5, 2, 1), (5, 3, 1), (3, 4, 9), (5, 6, 1), (6, 7, 9), (7, 7, 9), (5, 8, 1)]
        module = models.Inception(5, 2, 3, 4, 6, 7, 8)
        params, macs = counts(module, (5, 4, 4))
        assert macs == 16 * sum(inputs * outs * area for inputs, outs, area in shapes)
        assert params == sum(outs * (inputs * area + 3) for inputs, outs, area in shapes)
        assert module(torch.zeros(1, 5, 4, 4)).shape == (1, 2 + 4 + 7 + 8, 4, 4)

    def test_stages_but_the_first_halve_images(self):
        model, sizes = small_googlenet().eval(), {}
        for name, module in model.inception.named_children():
            module.register_forward_hook(
                lambda _, __, out, name=name: sizes.update({name: out.shape[2]})
            )
        model(torch.zeros(1, 3, 20, 20))
        assert sizes == {"a3": 20, "b3": 20, "pool4": 10, "a4": 10}

    def test_branches_are_cut_each_on_its_own(self):
        graph = ChannelGraph.trace(small_googlenet(), IMAGE)
        ends = ("1.conv", "3.reduce", "3.conv", "5.reduce", "5.conv1", "5.conv2", "_pool.conv")
        convs = [f"inception.{m}.branch{end}" for m in ("a3", "b3", "a4") for end in ends]
        assert [group.producers for group in graph.groups] == [(c,) for c in ("stem.conv", *convs)]
        branches = [
            graph.outs[f"inception.a3.branch{end}"] for end in (ends[0], ends[2], *ends[5:])
        ]
        for reader in (ends[0], ends[1], ends[3], ends[6]):
            assert torch.equal(graph.ins[f"inception.b3.branch{reader}"], torch.cat(branches))
        assert graph.frozen == {"linear": "they leave the network"} and not graph.notes

    def test_all_branches_can_be_halved(self):
        torch.manual_seed(0)
        pruned = prunekit.prune(models.googlenet(), IMAGE, keep=0.5, criterion="l1_norm")
        cut = {group.name: pruned.widths[group.name] for group in pruned.graph.groups}
        assert cut["inception.b5.branch3.conv"] == (384, 192)
        assert len(cut) == 1 + 9 * 7 and all(of == 2 * kept for of, kept in cut.values())
        assert pruned.agreement.worst < 1e-4


def small_googlenet():
    stages = (((2, 3, 4, 2, 3, 2), (3, 2, 4, 2, 2, 3)), ((4, 3, 5, 2, 3, 3),))
    return models.GoogLeNet(stem=6, stages=stages)


SMALL = {
    "googlenet": small_googlenet,
    "vgg": lambda: models.VGG(((6,), (8, 8), (8,), (8,), (8,)), average=True, scale=0.5),
    "densenet": lambda: models.DenseNet(layers=2, growth=4, stem=6, scale=0.5),
    "preresnet": lambda: models.PreResNet(2, widths=(4, 4, 6), stem=6, scale=0.5),
}


@pytest.mark.parametrize("make", [*SMALL.values(), *HINGE.values()], ids=[*SMALL, *HINGE])
@pytest.mark.parametrize("share", [{"keep": 0.6}, {"macs": 0.5}])
def test_published_networks_are_pruned(make, share):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 32, 32)
    model = make()
    pruned = prunekit.prune(model, images, criterion="l1_norm", **share)
    narrow = sum(param.numel() for param in pruned.model.parameters())
    assert narrow < sum(param.numel() for param in model.parameters())
    assert pruned.model.eval()(images).shape == model.eval()(images).shape


def test_caffe_form_of_lenet_has_one_relu():
    relus = [
        name
        for name, module in models.LeNet5(relu_convs=False).named_modules()
        if isinstance(module, nn.ReLU)
    ]
    assert relus == ["relu3"]


def test_small_vgg_takes_small_images():
    small = models.VGG(((4,), (8, 8)), classes=3, hidden=(5,), in_channels=1)
    assert small(torch.zeros(2, 1, 4, 4)).shape == (2, 3)
    assert [name for name, _ in small.features.named_children()][3] == "pool1"


@pytest.mark.parametrize(
    "make",
    [
        *(models.LeNet5, models.vgg16, models.resnet20, models.densenet40, models.preresnet164),
        *(models.resnet164, models.resnext164, models.wrn16_10, models.googlenet),
    ],
)
def test_networks_trace(make):
    torch.fx.symbolic_trace(make())


def test_option_a_shortcut_pads_channels_on_both_sides():
    images = torch.arange(16.0).reshape(1, 1, 4, 4) + 1
    padded = models.resnet.PadShortcut(2, 2)(images)
    assert padded[0, 0].eq(0).all()
    assert padded[0, 2].eq(0).all()
    assert padded[0, 1].tolist() == [[1, 3], [9, 11]]


@pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason="no pretrained weights beside the tree"
)
def test_published_resnet20_weights_reach_their_accuracy():
    from prunekit.data import CIFAR10
    from prunekit.training import evaluate

    model = pretrained(models.resnet20(), "resnet20-12fca82f.th")
    imagenet = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    data = CIFAR10(root=str(SHARED / "data"), only_exact=True, **imagenet).load("cpu", 0)
    assert data.test.size == 1017
    assert evaluate(model, data.test, "cpu")["top1"] == pytest.approx(91.64, abs=0.005)


@pytest.mark.skipif(
    not (SHARED / "weights").is_dir(), reason="no pretrained weights beside the tree"
)
def test_published_resnet56_weights_load():
    pretrained(models.resnet56(), "resnet56-4bfd9763.th")


def pretrained(model, name):
    state = torch.load(SHARED / "weights" / name, weights_only=True, map_location="cpu")
    model.load_state_dict({k.removeprefix("module."): v for k, v in state["state_dict"].items()})
    return model
