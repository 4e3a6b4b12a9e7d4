"""Networks have the published parameter and multiply-add counts, and load published weights."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from prunekit import models

SHARED = Path(__file__).parents[3] / "shared"

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
    (models.resnet20, 10, 269722, 40551040),
    (models.resnet32, 10, 464154, 68862592),
    (models.resnet56, 10, 853018, 125485696),
    (models.resnet110, 10, 1727962, 252887680),
]


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


def test_slimming_starts_batch_norms_at_a_half():
    assert (models.vgg19().features.bn1_1.weight == 0.5).all()


@pytest.mark.parametrize("make", [models.LeNet5, models.vgg16, models.resnet20])
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
