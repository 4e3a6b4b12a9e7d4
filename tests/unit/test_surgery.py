"""Narrowing single layers, and edits that do not fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.errors import ArtifactError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.surgery import KeptChannels, Narrow, edit_from_dict, narrow

IN, OUT = [0, 2, 3], [1, 3]
SINGLE = {  # layer of width 4 -> the shape of an example with 4 channels
    "conv1d": (nn.Conv1d(4, 4, 3), (2, 4, 9)),
    "conv2d": (nn.Conv2d(4, 4, 3, bias=False), (2, 4, 9, 9)),
    "conv3d": (nn.Conv3d(4, 4, 3), (2, 4, 5, 5, 5)),
    "conv_transpose1d": (nn.ConvTranspose1d(4, 4, 3, bias=False), (2, 4, 9)),
    "conv_transpose2d": (nn.ConvTranspose2d(4, 4, 3), (2, 4, 9, 9)),
    "conv_transpose3d": (nn.ConvTranspose3d(4, 4, 3), (2, 4, 5, 5, 5)),
    "linear": (nn.Linear(4, 4), (2, 4)),
    "linear, no bias": (nn.Linear(4, 4, bias=False), (2, 4)),
}
PER_CHANNEL = {
    "batch_norm1d": (nn.BatchNorm1d(4), (2, 4)),
    "batch_norm2d": (nn.BatchNorm2d(4), (2, 4, 3, 3)),
    "batch_norm3d": (nn.BatchNorm3d(4, affine=False), (2, 4, 3, 3, 3)),
    "batch norm without statistics": (nn.BatchNorm2d(4, track_running_stats=False), (2, 4, 3, 3)),
    "instance_norm": (nn.InstanceNorm2d(4, affine=True, track_running_stats=True), (2, 4, 3, 3)),
    "prelu": (nn.PReLU(4), (2, 4, 3)),
}


def numbers(layer):
    with torch.no_grad():
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return layer.eval()


@pytest.mark.parametrize("name", SINGLE)
def test_a_narrow_layer_computes_a_part_of_what_it_computed(name):
    layer, shape = SINGLE[name]
    x = torch.rand(shape)
    silenced = torch.zeros_like(x)
    silenced[:, IN] = x[:, IN]
    expected = numbers(layer)(silenced)[:, OUT]
    narrow(layer, torch.tensor(IN), OUT)
    torch.testing.assert_close(layer(x[:, IN]), expected)
    widths = [getattr(layer, side, None) for side in ("in_channels", "out_channels")]
    assert widths in ([3, 2], [None, None])
    assert f"{3}, " in repr(layer) or "in_features=3, out_features=2" in repr(layer)


@pytest.mark.parametrize("name", PER_CHANNEL)
def test_a_narrow_norm_treats_the_rest_as_before(name):
    layer, shape = PER_CHANNEL[name]
    x = torch.rand(shape)
    expected = numbers(layer)(x)[:, IN]
    narrow(layer, IN, IN)
    torch.testing.assert_close(layer(x[:, IN]), expected)
    assert getattr(layer, "num_features", getattr(layer, "num_parameters", 0)) == 3


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize(
    ("shape", "keep_in", "keep_out", "groups"),
    [
        ((4, 8, 4), [1, 2], [2, 3, 4, 5], 2),  # depthwise, two outputs for each channel
        ((8, 4, 2), [0, 3, 4, 6], [1, 3], 2),
    ],
)
def test_grouped_layers(kind, shape, keep_in, keep_out, groups):
    inputs, outputs, before = shape
    layer = kind(inputs, outputs, 3, groups=before)
    x = torch.rand(1, inputs, 6, 6)
    silenced = torch.zeros_like(x)
    silenced[:, keep_in] = x[:, keep_in]
    expected = layer(silenced)[:, keep_out]
    narrow(layer, keep_in, keep_out)
    assert layer.groups == groups
    torch.testing.assert_close(layer(x[:, keep_in]), expected)


def test_parameters_stay_what_they_were():
    layer = nn.Conv2d(4, 4, 1, dtype=torch.float64)
    layer.weight.requires_grad_(False)
    narrow(layer, keep_out=[0])
    assert isinstance(layer.weight, nn.Parameter) and not layer.weight.requires_grad
    assert layer.bias.requires_grad and layer.bias.dtype == torch.float64


@pytest.mark.parametrize(
    ("layer", "keep_in", "keep_out", "message"),
    [
        (nn.Conv2d(4, 4, 1), None, [], "none of 4 channels would be left; keep at least one"),
        (nn.Conv2d(4, 4, 1), [4], None, "channel 4 does not exist, there are 4"),
        (nn.Linear(4, 4), [-1], None, "channel -1 does not exist, there are 4"),
        (nn.Conv2d(4, 4, 1, groups=2), [0, 1], None, r"would keep \[2, 0\] channels; keep the sam"),
        (nn.Conv2d(4, 4, 1, groups=4), [0, 1], [1, 2], r"would keep \[0, 1, 1, 0\] channels"),
        (nn.GroupNorm(2, 4), [0], [0], r"would keep \[1, 0\] channels; keep all channels of"),
        (nn.LSTM(4, 4), [0], [0], "LSTM cannot be narrowed; register a function for it"),
    ],
)
def test_what_a_layer_cannot_do(layer, keep_in, keep_out, message):
    with pytest.raises(SurgeryError, match=message):
        narrow(layer, keep_in, keep_out)


def test_layers_of_your_own_join_by_registering():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.arange(4.0))

    @narrow.register(Scale)
    def _scale(module, keep_in=None, keep_out=None):
        module.scale = nn.Parameter(module.scale.detach()[list(keep_out)])

    layer = nn.Sequential(Scale())
    Narrow({"0": KeptChannels(IN, IN, (4, 4))}).apply(layer)
    assert layer[0].scale.tolist() == [0, 2, 3]


def chain():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)
    )


def graph_and_drop(chosen=(1,)):
    graph = ChannelGraph.trace(chain(), torch.rand(1, 3, 4, 4))
    mask = torch.zeros(4, dtype=torch.bool)
    mask[list(chosen)] = True
    return graph, graph.drop({"0": mask})


def test_the_edit_says_what_every_layer_keeps():
    edit = Narrow.of(*graph_and_drop())
    assert edit.layers == {
        "0": KeptChannels(None, (0, 2, 3), (3, 4)),
        "1": KeptChannels((0, 2, 3), (0, 2, 3), (4, 4)),
        "4": KeptChannels((0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15), None, (16, 2)),
    }
    assert edit.to_dict()["layers"]["0"] == {"out": [0, 2, 3], "widths": [3, 4]}
    model = chain()
    edit.apply(model)
    assert model(torch.rand(1, 3, 4, 4)).shape == (1, 2)


def test_dropping_nothing_is_no_edit():
    assert Narrow.of(*graph_and_drop([])).layers == {}


def test_an_edit_that_does_not_fit_changes_nothing():
    edit = Narrow.of(*graph_and_drop())
    model = chain()
    edit.apply(model)
    with pytest.raises(SurgeryError, match=r"0 has 3 input and 3 output .* made for 3 and 4"):
        edit.apply(model)
    other = nn.Sequential(nn.Conv2d(3, 4, 3))
    with pytest.raises(SurgeryError, match=r"Sequential has no layer '1'; .* another network"):
        edit.apply(other)
    assert other[0].out_channels == 4


def test_masks_that_make_no_network():
    graph, drop = graph_and_drop(range(4))
    with pytest.raises(
        SurgeryError, match=r"0 would be left without .*; keep more units of group 0"
    ):
        Narrow.of(graph, drop)
    with pytest.raises(SurgeryError, match=r"it must be torch.bool of shape \(5,\)"):
        Narrow.of(graph, drop[1:])
    drop[:] = False
    drop[0] = True
    with pytest.raises(SurgeryError, match="unit 0 is what cannot be removed"):
        Narrow.of(graph, drop)


def test_an_error_inside_a_layer_names_the_layer():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2))
    with pytest.raises(SurgeryError, match=r"^0: its 2 convolution groups would keep"):
        Narrow({"0": KeptChannels(None, (0, 1), (4, 4))}).apply(model)


def test_damaged_and_unknown_edits():
    with pytest.raises(ArtifactError, match="edit 'narow' is unknown; did you mean narrow"):
        edit_from_dict({"edit": "narow"})
    with pytest.raises(ArtifactError, match="an edit of kind 'narrow' is damaged"):
        edit_from_dict({"edit": "narrow", "layers": {"0": {"in": [1]}}})
