"""Grouped convolutions whose groups live and die whole."""

from __future__ import annotations

from torch import nn

from prunekit.errors import SurgeryError


class WholeGroups(nn.Conv2d):
    """A grouped convolution that loses whole groups, with all inputs and outputs of each.

    Each group is one unit of the channel graph, which its inputs, its outputs, and what else has
    these channels share. A plain grouped convolution loses as many channels from every group.
    """


def whole_groups(conv: nn.Module) -> WholeGroups:
    """The same layer, with the same parameters, that loses whole groups.

    Hooks stay behind. SurgeryError for what is no plain nn.Conv2d.
    """
    return _as(WholeGroups, conv, nn.Conv2d)


def plain_groups(conv: WholeGroups) -> nn.Conv2d:
    """The inverse of `whole_groups`."""
    return _as(nn.Conv2d, conv, WholeGroups)


def removes_whole_groups(module: nn.Module) -> bool:
    """Whether a group of this layer goes with all its inputs and outputs; so it is if depthwise."""
    depthwise = 1 < getattr(module, "groups", 1) == getattr(module, "in_channels", 0)
    return depthwise or isinstance(module, WholeGroups)


def _as(kind: type[nn.Conv2d], conv: nn.Module, old: type[nn.Conv2d]) -> nn.Conv2d:
    if type(conv) is not old or "weight" not in conv._parameters:
        raise SurgeryError(
            f"{type(conv).__name__}({conv.extra_repr()}) is no plain {old.__name__}; "
            "only the groups of such a layer can be set to live and die whole"
        )
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    given = {name: getattr(conv, name) for name in names}
    size = (conv.in_channels, conv.out_channels, conv.kernel_size)
    made = kind(*size, bias=False, device="meta", **given)
    made.weight, made.bias = conv.weight, conv.bias
    return made.train(conv.training)
