"""Grouped convolutions that can lose whole groups only."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from prunekit.errors import SurgeryError

_Convolution = TypeVar("_Convolution", bound=nn.Conv2d)


class WholeGroups(nn.Conv2d):
    """A grouped convolution that loses whole groups, with all inputs and outputs of each.

    Each group is one unit of the channel graph, together with its inputs, its outputs, and all
    other layers with these channels. A plain grouped convolution loses as many channels from every
    group.
    """


def whole_groups(conv: nn.Module) -> WholeGroups:
    """Return the layer, with the same parameters, as one that loses whole groups.

    Hooks are not copied. Raises SurgeryError for modules that are no plain nn.Conv2d.
    """
    return _as(WholeGroups, conv, nn.Conv2d)


def plain_groups(conv: WholeGroups) -> nn.Conv2d:
    """Return the inverse of `whole_groups`."""
    return _as(nn.Conv2d, conv, WholeGroups)


def removes_whole_groups(module: nn.Module) -> bool:
    """Return whether a layer loses whole groups, as depthwise convolutions do."""
    depthwise = 1 < getattr(module, "groups", 1) == getattr(module, "in_channels", 0)
    return depthwise or isinstance(module, WholeGroups)


def _as(kind: type[_Convolution], conv: nn.Module, old: type[nn.Conv2d]) -> _Convolution:
    if not isinstance(conv, nn.Conv2d) or type(conv) is not old or "weight" not in conv._parameters:
        raise SurgeryError(
            f"{type(conv).__name__}({conv.extra_repr()}) is no plain {old.__name__}; "
            "only the groups of such a layer can be set to live and die whole"
        )
    names = ("stride", "padding", "dilation", "groups", "padding_mode")
    settings: dict[str, Any] = {name: getattr(conv, name) for name in names}
    settings["kernel_size"] = conv.kernel_size
    size = (conv.in_channels, conv.out_channels)
    converted = kind(*size, bias=False, device="meta", **settings)
    converted.weight, converted.bias = conv.weight, conv.bias
    return converted.train(conv.training)
