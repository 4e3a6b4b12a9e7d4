"""Patterns of single layers: convolutions, norms, and what else torch.nn has."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torchvision.ops import FrozenBatchNorm2d

from patterns.base import Body, Pattern, body, chain
from prunekit.graph.whole_groups import whole_groups


def _flat(**layers: nn.Module) -> nn.Sequential:
    return chain(**layers, flat=nn.Flatten(), head=nn.Linear(6, 4))


def _whole(*sizes: int, **settings: int) -> nn.Module:
    return whole_groups(nn.Conv2d(*sizes, **settings))


def _permuted(net: Body, x: Tensor) -> Tensor:
    return net.layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


CONVOLUTIONS = {
    "chain": body(lambda net, x: x),
    "conv1d": Pattern(
        lambda: _flat(
            first=nn.Conv1d(3, 8, 3),
            bn=nn.BatchNorm1d(8),
            act=nn.ReLU(),
            last=nn.Conv1d(8, 6, 3),
            pool=nn.AdaptiveAvgPool1d(1),
        ),
        ((2, 3, 16),),
    ),
    "conv3d": Pattern(
        lambda: _flat(
            first=nn.Conv3d(3, 8, 3),
            bn=nn.BatchNorm3d(8),
            act=nn.ReLU(),
            last=nn.Conv3d(8, 6, 1),
            pool=nn.AdaptiveAvgPool3d(1),
        ),
        ((2, 3, 4, 5, 6),),
    ),
    "perceptron": Pattern(
        lambda: chain(
            first=nn.Linear(5, 8),
            bn=nn.BatchNorm1d(8),
            act=nn.ReLU(),
            last=nn.Linear(8, 6),
            drop=nn.Dropout(),
            head=nn.Linear(6, 4),
        ),
        ((4, 5),),
    ),
    "linear on the last dimension": Pattern(
        lambda: chain(
            first=nn.Linear(5, 8), act=nn.GELU(), last=nn.Linear(8, 6), head=nn.Linear(6, 4)
        ),
        ((2, 7, 5),),
    ),
    "no bias": body(layer=lambda: nn.Conv2d(8, 8, 1, bias=False), cut="first layer last"),
    "dilated and strided": body(
        layer=lambda: nn.Conv2d(8, 8, 3, 2, 2, 2, padding_mode="circular"), cut="first layer last"
    ),
    "transposed": body(layer=lambda: nn.ConvTranspose2d(8, 12, 2, 2), between=12),
    "grouped transposed": body(
        layer=lambda: nn.ConvTranspose2d(8, 12, 2, 2, groups=2),
        between=12,
        cut="first layer last",
    ),
    "depthwise transposed": body(
        layer=lambda: nn.ConvTranspose2d(8, 16, 2, 2, groups=8), between=16
    ),
    "transposed 1d": Pattern(
        lambda: _flat(
            first=nn.Conv1d(3, 8, 3),
            layer=nn.ConvTranspose1d(8, 8, 2, groups=2),
            last=nn.Conv1d(8, 6, 3),
            pool=nn.AdaptiveMaxPool1d(1),
        ),
        ((2, 3, 16),),
        cut="first layer last",
    ),
    "transposed 3d": Pattern(
        lambda: _flat(
            first=nn.Conv3d(3, 8, 3),
            layer=nn.ConvTranspose3d(8, 5, 2),
            last=nn.Conv3d(5, 6, 2),
            pool=nn.AdaptiveMaxPool3d(1),
        ),
        ((2, 3, 4, 5, 6),),
        cut="first layer last",
    ),
    "depthwise": body(layer=lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8)),
    "depthwise, multiplied": body(layer=lambda: nn.Conv2d(8, 16, 3, groups=8), between=16),
    "depthwise, tripled": body(
        lambda net, x: net.bn2(net.layer(x)),
        24,
        layer=lambda: nn.Conv2d(8, 24, 3, groups=8, bias=False),
        bn2=lambda: nn.BatchNorm2d(24),
    ),
    "depthwise on the image": Pattern(
        lambda: _flat(
            first=nn.Conv2d(3, 9, 3, groups=3),
            last=nn.Conv2d(9, 6, 3),
            pool=nn.AdaptiveAvgPool2d(1),
        ),
        cut="last",
    ),
    "narrow groups": body(
        layer=lambda: nn.Conv2d(8, 12, 1, groups=4), between=12, cut="first layer last"
    ),
    "wide groups": body(layer=lambda: nn.Conv2d(8, 8, 1, groups=2), cut="first layer last"),
    "groups after groups": body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=lambda: nn.Conv2d(8, 8, 1, groups=4),
        b=lambda: nn.Conv2d(8, 8, 1, groups=2),
        cut="first a b last",
    ),
    "residual groups": body(
        lambda net, x: x + F.relu(net.b(net.a(x))),
        a=lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2),
        b=lambda: nn.Conv2d(8, 8, 1),
        cut="first a last",
    ),
    "whole groups": body(layer=lambda: _whole(8, 12, 3, groups=4), between=12),
    "whole groups, depthwise": body(layer=lambda: _whole(8, 16, 3, groups=8), between=16),
    "whole groups in a residual": body(
        lambda net, x: F.relu(x + net.c(F.relu(net.bn2(net.b(net.a(x)))))),
        a=lambda: nn.Conv2d(8, 12, 1, bias=False),
        b=lambda: _whole(12, 12, 3, padding=1, groups=4, bias=False),
        bn2=lambda: nn.BatchNorm2d(12),
        c=lambda: nn.Conv2d(12, 8, 1),
        cut="first a b last",
    ),
    "whole groups after even ones": body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=lambda: nn.Conv2d(8, 12, 1, groups=2),
        b=lambda: _whole(12, 8, 1, groups=4),
    ),
    "whole groups after whole groups": body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=lambda: _whole(8, 24, 1, groups=4),
        b=lambda: _whole(24, 8, 1, groups=8),
    ),
    "whole groups, sizes of the forward": body(
        lambda net, x: net.layer(x).view(x.size(0), -1, 2, 8, 8).flatten(1, 2),
        layer=lambda: _whole(8, 8, 1, groups=4),
    ),
    "whole groups of the image": Pattern(
        lambda: _flat(
            first=_whole(3, 9, 3, groups=3),
            last=nn.Conv2d(9, 6, 3),
            pool=nn.AdaptiveAvgPool2d(1),
        ),
        cut="last",
    ),
    "groups of one channel": body(layer=lambda: nn.Conv2d(8, 4, 1, groups=4), between=4),
    "groups of a concat": body(
        lambda net, x: net.layer(torch.cat([x, F.relu(-x)], 1)),
        layer=lambda: nn.Conv2d(16, 8, 1, groups=4),
    ),
    "squeeze to groups": body(
        lambda net, x: net.b(net.a(x)),
        a=lambda: nn.Conv2d(8, 12, 1),
        b=lambda: nn.Conv2d(12, 8, 3, padding=1, groups=2),
        cut="first a b last",
    ),
}

NORMS = {
    "norm without scales": body(layer=lambda: nn.BatchNorm2d(8, affine=False)),
    "norm without statistics": body(layer=lambda: nn.BatchNorm2d(8, track_running_stats=False)),
    "norm of doubles": body(
        lambda net, x: net.b(F.relu(net.a(x))),
        a=lambda: nn.BatchNorm2d(8),
        b=lambda: nn.BatchNorm2d(8),
    ),
    "frozen norm": body(layer=lambda: FrozenBatchNorm2d(8)),
    "instance norm": body(layer=lambda: nn.InstanceNorm2d(8)),
    "instance norm with scales": body(layer=lambda: nn.InstanceNorm2d(8, affine=True)),
    "instance norm with statistics": body(
        layer=lambda: nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
    ),
    "group norm": body(layer=lambda: nn.GroupNorm(2, 8)),
    "group norm of one": body(layer=lambda: nn.GroupNorm(1, 8), cut="last", note="one unit"),
    "group norm per channel": body(layer=lambda: nn.GroupNorm(8, 8)),
    "group norm without scales": body(layer=lambda: nn.GroupNorm(4, 8, affine=False)),
    "group norm inside a bottleneck": body(
        lambda net, x: x + net.c(F.relu(net.norm(net.b(net.a(x))))),
        a=lambda: nn.Conv2d(8, 4, 1),
        b=lambda: nn.Conv2d(4, 12, 3, padding=1),
        norm=lambda: nn.GroupNorm(3, 12),
        c=lambda: nn.Conv2d(12, 8, 1),
        cut="first a b last",
    ),
    "layer norm over all": body(layer=lambda: nn.LayerNorm([8, 8, 8]), cut="last", note="Norm"),
    "layer norm over channels": body(
        _permuted, layer=lambda: nn.LayerNorm(8), cut="last", note="Norm"
    ),
    "layer norm over pixels": body(layer=lambda: nn.LayerNorm([8, 8])),
    "layer norm without scales": body(
        _permuted,
        layer=lambda: nn.LayerNorm(8, elementwise_affine=False),
        cut="last",
        note="Norm",
    ),
    "rms norm": body(_permuted, layer=lambda: nn.RMSNorm(8), cut="last", note="Norm"),
    "local response norm": body(layer=lambda: nn.LocalResponseNorm(3), cut="last"),
    "inverted bottleneck": body(
        lambda net, x: (
            x
            + net.b(F.gelu(net.a(net.norm(net.spread(x).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)
        ),
        spread=lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8),
        norm=lambda: nn.LayerNorm(8),
        a=lambda: nn.Linear(8, 16),
        b=lambda: nn.Linear(16, 8),
        cut="a last",
        note="Norm",
    ),
}


class Standardised(nn.Conv2d):
    """A convolution whose filters are normalised when it is called."""

    def forward(self, x: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, self.weight - mean, self.bias)


class Same(nn.Conv2d):
    """A convolution that pads as its input needs it."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (0, x.shape[-1] % 2 + 1, 0, x.shape[-2] % 2 + 1)))


class Activated(nn.BatchNorm2d):
    """A norm with its activation, as timm has it: the parameters of a layer, used by hand."""

    def forward(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        statistics = (self.running_mean, self.running_var)
        x = F.batch_norm(x, *statistics, self.weight, self.bias, self.training, 0.1, self.eps)
        return F.relu(x)


OTHERS = {
    "norm with activation": body(layer=lambda: Activated(8)),
    "prelu": body(layer=lambda: nn.PReLU(8)),
    "prelu, shared": body(layer=lambda: nn.PReLU()),
    "dropouts": body(
        layer=lambda: nn.Sequential(
            nn.Dropout(0.2), nn.Dropout2d(0.2), nn.AlphaDropout(0.2), nn.FeatureAlphaDropout(0.2)
        )
    ),
    "upsample": body(layer=lambda: nn.Upsample(scale_factor=2, mode="bilinear")),
    "pools": body(
        lambda net, x: net.a(x) + net.b(x),
        a=lambda: nn.MaxPool2d(3, 1, 1),
        b=lambda: nn.AvgPool2d(3, 1, 1),
    ),
    "pools with indices": body(
        lambda net, x: net.b(*net.a(x)),
        a=lambda: nn.MaxPool2d(2, return_indices=True),
        b=lambda: nn.MaxUnpool2d(2),
        cut="last",
        counters="torch",
    ),
    "paddings": body(
        layer=lambda: nn.Sequential(
            nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1), nn.ConstantPad2d(1, 3.0)
        )
    ),
    "pixel shuffle": body(layer=lambda: nn.PixelShuffle(2), between=2),
    "pixel unshuffle": body(layer=lambda: nn.PixelUnshuffle(2), between=32),
    "channel shuffle": body(layer=lambda: nn.ChannelShuffle(4)),
    "softmax layer": body(layer=lambda: nn.Softmax2d(), cut="last", note="Softmax2d"),
    "gated linear unit": body(layer=lambda: nn.GLU(1), between=4, cut="last"),
    "unfold": body(
        lambda net, x: net.layer(net.patches(x)).unflatten(2, (6, 6)),
        patches=lambda: nn.Unfold(3),
        layer=lambda: nn.Conv1d(72, 8, 1),
        cut="layer last",
    ),
    "recurrent": body(
        lambda net, x: net.layer(x.flatten(2))[0].unflatten(2, (8, 8)),
        layer=lambda: nn.LSTM(64, 64),
        counters="torch",
        cut="last",
    ),
    "recurrent over channels": body(
        lambda net, x: net.layer(x.flatten(2).mT)[0].mT.unflatten(2, (8, 8)),
        layer=lambda: nn.GRU(8, 8, batch_first=True),
        counters="torch",
        cut="last",
        note="GRU",
    ),
    "bilinear": body(
        lambda net, x: x * net.layer(x.mean((2, 3)), x.amax((2, 3)))[:, :, None, None],
        layer=lambda: nn.Bilinear(8, 8, 8),
        counters="",
        cut="last",
        note="Bilinear",
    ),
    "embedding": body(
        lambda net, x: x + net.layer(net.positions).mT.unflatten(1, (8, 8)),
        layer=lambda: nn.Embedding(64, 8),
        positions=lambda: torch.arange(64),
        cut="last",
    ),
    "weight norm": body(layer=lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
    "weight norm, older": body(
        layer=lambda: _quietly(nn.utils.weight_norm, nn.Conv2d(8, 8, 1)), cut="last"
    ),
    "spectral norm": body(
        layer=lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1)), cut="last"
    ),
    "orthogonal": body(
        layer=lambda: parametrizations.orthogonal(nn.Linear(8, 8)), cut="last", counters=""
    ),
    "pruning mask": body(layer=lambda: prune.identity(nn.Conv2d(8, 8, 1), "weight"), cut="last"),
    "standardised weights": body(layer=lambda: Standardised(8, 8, 1), cut="last"),
    "padding of its own": body(layer=lambda: Same(8, 8, 3), cut="first last"),
    "frozen parameters": body(
        layer=lambda: nn.Conv2d(8, 8, 1).requires_grad_(False), cut="first layer last"
    ),
    "nested containers": body(
        lambda net, x: net.layer["b"][0](x) + net.layer["a"](x),
        layer=lambda: nn.ModuleDict(
            {
                "a": nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 1)), nn.ReLU()),
                "b": nn.ModuleList([nn.Conv2d(8, 8, 1), nn.Identity()]),
            }
        ),
    ),
    "unused layer": body(lambda net, x: x, layer=lambda: nn.Linear(8, 8)),
}


def _quietly(norm: object, layer: nn.Module) -> nn.Module:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return norm(layer)


LAYERS: dict[str, Pattern] = {**CONVOLUTIONS, **NORMS, **OTHERS}
