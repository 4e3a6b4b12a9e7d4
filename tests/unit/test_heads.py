"""Tests of new classifiers, and of networks that cannot have one."""

from __future__ import annotations

import copy

import pytest
import torch
import torchvision
from patterns import randomise
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import VGG, make_layers

from prunekit import ChannelGraph
from prunekit.errors import ArtifactError, ConfigError, SurgeryError, TraceError
from prunekit.graph.classifier import ending
from prunekit.measure import CostModel
from prunekit.models import LeNet5, vgg16_three_linear
from prunekit.surgery import (
    GlobalPooling,
    LastLayer,
    NewHead,
    edit_from_dict,
    load_model,
    save_model,
)
from prunekit.surgery.cut import cut

X = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)).double()
HALVED = (32, 32, "M", 64, 64, "M", 128, 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M")


def narrow_vgg() -> VGG:
    """Build a narrow VGG of torchvision, whose last 2 x 2 maps are pooled to 7 x 7."""
    torch.manual_seed(0)
    net = VGG(make_layers([4, "M", 6, "M", 8, "M", 8, "M", 512, "M"]), num_classes=5)
    randomise(net)
    return net.double().eval()


class Net(nn.Module):
    """A convolution and a linear layer that share one pooling and one activation module."""

    def __init__(self, pooled=True):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.pool, self.relu, self.drop = nn.MaxPool2d(2), nn.ReLU(), nn.Dropout(0.1)
        self.last_pool = nn.MaxPool2d(2) if pooled else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(5 * (36 if pooled else 144), 7), nn.Linear(7, 2)

    def forward(self, x):
        x = self.pool(self.relu(self.conv1(x)))
        x = self.relu(self.conv2(x))
        x = self.last_pool(F.adaptive_max_pool2d(x, 12)).flatten(1)
        return self.fc2(self.drop(self.relu(self.fc1(x))))


class TestGlobalPooling:
    def test_the_new_layer_reads_the_means_of_the_last_maps(self):
        net = narrow_vgg()
        last_maps = net.features[:-1](X)  # behind the last ReLU, in front of the last pooling
        edit = GlobalPooling().edit(net, X, classes=9)
        assert edit == NewHead(
            "classifier.6",
            512,
            9,
            "features.14",
            ("avgpool", *(f"classifier.{i}" for i in range(6))),
        )
        edit.apply(net)
        means = last_maps.mean((2, 3)).double()
        torch.testing.assert_close(net(X), net.classifier[6](means))
        assert net(X).shape == (3, 9)
        left = sum(p.numel() for p in net.parameters())
        assert left == sum(p.numel() for p in net.features.parameters()) + 512 * 9 + 9

    def test_published_counts_of_the_halved_vgg16(self):
        """Halve ten convolutions, then pool globally: 8.32M parameters, 4.67G multiply-adds."""
        with torch.device("meta"):
            net = VGG(make_layers(list(HALVED)), init_weights=False)
        image = torch.zeros(1, 3, 224, 224)
        GlobalPooling().edit(net, image, 1000).apply(net)
        graph = ChannelGraph.trace(net, image)
        assert round(CostModel(net, graph).params() / 1e6, 2) == 8.32
        assert round(CostModel(net, graph).macs() / 1e9, 2) == 4.67

    def test_batch_norms_between_linear_layers_go_too(self):
        net = LeNet5()
        net.relu3 = nn.Sequential(nn.BatchNorm1d(500), nn.ReLU())
        edit = GlobalPooling().edit(net, torch.zeros(1, 1, 28, 28), 10)
        assert edit == NewHead("fc2", 50, 10, "pool2", ("fc1", "relu3.0", "relu3.1"))
        edit.apply(net)
        assert net(torch.zeros(2, 1, 28, 28)).shape == (2, 10)

    def test_what_is_called_elsewhere_too_stays(self):
        net = Net().double().eval()
        maps = F.adaptive_max_pool2d(net.relu(net.conv2(net.pool(net.relu(net.conv1(X))))), 12)
        edit = GlobalPooling().edit(net, X, 3)
        assert edit == NewHead("fc2", 5, 3, "last_pool", ("fc1", "drop"))
        edit.apply(net)
        assert isinstance(net.relu, nn.ReLU) and isinstance(net.pool, nn.MaxPool2d)
        torch.testing.assert_close(net(X), net.fc2(maps.mean((2, 3)).relu()))

    @pytest.mark.parametrize("classes", [4, 10])
    def test_a_network_that_pools_already_gets_a_new_last_layer(self, classes):
        net = vgg16_three_linear()  # its last maps are single pixels
        image = torch.zeros(1, 3, 32, 32)
        assert ending(net, image).features == 512
        GlobalPooling().edit(net, image, classes).apply(net)
        assert net.eval()(image).shape == (1, classes)

    def test_the_pooled_network_can_be_cut(self):
        net = narrow_vgg()
        GlobalPooling().edit(net, X, 5).apply(net)
        graph = ChannelGraph.trace(net, X)
        keep = {group.name: torch.arange(len(group.units)) % 2 == 0 for group in graph.groups}
        edited = cut(net, graph, keep, X)
        assert edited.agreement.worst < 1e-12
        assert edited.model.classifier[6].in_features == 256

    def test_maps_without_a_pooling_of_their_own_are_refused(self):
        message = r"Net flattens 5 maps to 720 features with no pooling layer of their own"
        with pytest.raises(SurgeryError, match=message):
            GlobalPooling().edit(Net(pooled=False), X.float(), 3)

    def test_what_flattens_no_maps_is_refused(self):
        with pytest.raises(SurgeryError, match=r"0 of Sequential does not read flattened maps"):
            GlobalPooling().edit(nn.Sequential(nn.Linear(4, 2)), torch.zeros(1, 4), 2)
        squeeze = torchvision.models.squeezenet1_1()
        with pytest.raises(SurgeryError, match=r"classifier.1 of SqueezeNet does not read flatten"):
            GlobalPooling().edit(squeeze, X.float(), 2)


class TestLastLayer:
    def test_all_else_stays_as_it_is(self):
        net = narrow_vgg()
        before = copy.deepcopy(net)
        LastLayer().edit(net, X, 11).apply(net)
        assert net(X).shape == (3, 11)
        net.classifier[6] = before.classifier[6]
        assert torch.equal(net(X), before(X))

    def test_published_count_of_vgg16_for_200_classes(self):
        """The unpruned network on CUB-200 has 135.1M parameters."""
        with torch.device("meta"):
            net = torchvision.models.vgg16(init_weights=False)
        LastLayer().edit(net, torch.zeros(1, 3, 224, 224), 200).apply(net)
        assert sum(p.numel() for p in net.parameters()) == 135_079_944

    @pytest.mark.parametrize(
        ("arch", "name"),
        [
            ("resnet18", "fc"),
            ("squeezenet1_1", "classifier.1"),  # a convolution, pooled behind
            ("shufflenet_v2_x0_5", "fc"),
            ("swin_t", "head"),
        ],
    )
    def test_torchvision(self, arch, name):
        net = torchvision.models.get_model(arch, weights=None).eval()
        images = torch.rand(2, 3, 224, 224)
        edit = LastLayer().edit(net, images, 6)
        assert edit.last == name and not edit.removed
        edit.apply(net)
        assert net(images).shape == (2, 6)

    def test_bias_type_and_mode_are_those_of_the_old_layer(self):
        net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2, bias=False)).double().eval()
        LastLayer().edit(net, torch.zeros(1, 4), 3).apply(net)
        assert net[1].weight.dtype is torch.float64 and net[1].bias is None
        assert not net[1].training and net[0].weight.dtype is torch.float64

    def test_an_output_of_several_layers_is_refused(self):
        class Two(nn.Module):
            def __init__(self):
                super().__init__()
                self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

            def forward(self, x):
                return self.a(x) + self.b(x)

        with pytest.raises(SurgeryError, match=r"output of Two is not made by one .* but by add"):
            LastLayer().edit(Two(), torch.zeros(1, 4), 3)

    def test_a_layer_with_a_computed_weight_is_refused(self):
        net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 2)))
        with pytest.raises(SurgeryError, match="only a plain linear layer or convolution can star"):
            LastLayer().edit(net, torch.zeros(1, 4), 3).apply(net)


@pytest.mark.parametrize("head", [LastLayer, GlobalPooling])
def test_files_repeat_it_and_leave_random_numbers_alone(tmp_path, head):
    net, image = LeNet5(), torch.rand(2, 1, 28, 28)
    edit = head().edit(net, image, 6)
    edit.apply(net)
    arch = {"_target_": "prunekit.models.LeNet5"}
    save_model(tmp_path / "a.pt", net, arch, [edit])
    state = torch.random.get_rng_state()
    result = load_model(tmp_path / "a.pt")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert result.edits == (edit,) and edit_from_dict(edit.to_dict()) == edit
    assert torch.equal(result.model(image), net(image))


def test_an_example_that_does_not_fit_is_named():
    with pytest.raises(
        TraceError, match=r"^LeNet5 fails on an example of shape \(1, 3, 64, 64\) at .+$"
    ):
        LastLayer().edit(LeNet5(), X.float(), 3)


def test_bad_values_are_named():
    for head in (LastLayer, GlobalPooling):
        with pytest.raises(ConfigError, match=r"^rate=0 must be above 0"):
            head(rate=0)
    with pytest.raises(ArtifactError, match="'head' is damaged"):
        edit_from_dict({"edit": "head", "last": "fc"})
    with pytest.raises(SurgeryError, match="no layer 'head'; the edit was made for another"):
        NewHead("head", 4, 2).apply(LeNet5())
    with pytest.raises(SurgeryError, match="no layer 'nowhere'"):
        NewHead("fc2", 4, 2, None, ("nowhere",)).apply(LeNet5())
