"""Grouped convolutions whose groups live and die whole."""

from __future__ import annotations

from torch import nn


class WholeGroups(nn.Conv2d):
    """A grouped convolution that loses whole groups, with all inputs and outputs of each.

    A plain one loses the same number of channels from every group.
    """


def whole_groups(conv: nn.Conv2d) -> WholeGroups:
    """The same layer, with the same parameters, that loses whole groups."""
    return _as(WholeGroups, conv)


def plain_groups(conv: WholeGroups) -> nn.Conv2d:
    """The inverse of `whole_groups`."""
    return _as(nn.Conv2d, conv)


def _as(kind: type[nn.Conv2d], conv: nn.Conv2d) -> nn.Conv2d:
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    given = {name: getattr(conv, name) for name in names}
    size = (conv.in_channels, conv.out_channels, conv.kernel_size)
    made = kind(*size, bias=False, device="meta", **given)
    made.weight, made.bias = conv.weight, conv.bias
    return made.train(conv.training)
