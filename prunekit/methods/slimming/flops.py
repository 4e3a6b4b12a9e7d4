"""Operations and parameters as the code released with network slimming counts them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.arguments import Arguments, Example, input_of
from prunekit.methods.slimming.selector import ChannelSelector
from prunekit.methods.slimming.shared_norms import shared_norms
from prunekit.modes import consulting


def slimming_flops(model: nn.Module, example: Example) -> int:
    """Operations of one forward pass as the code released with network slimming counts them.

    Two for each multiply-add of convolutions and linear layers, one for each of their biased
    outputs, two for each entry that a batch norm puts out, one for each of a ReLU, and for each
    output of a pooling the entries it looks at. Only modules are seen, not functions. Batch norms
    behind a channel selection count at full width: in that code the selection comes after them.
    """
    found: list[int] = []
    hooks = [
        module.register_forward_hook(partial(_note_operations, found), with_kwargs=True)
        for module in model.modules()
    ]
    try:
        with consulting(model), torch.no_grad():
            Arguments.of(example).call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found)


def slimming_params(model: nn.Module, example: Example) -> int:
    """Parameters as the code released with network slimming counts them.

    There a channel selection is a mask of full width among the parameters, and the batch norm
    before it stays wide. Norms that have none yet, but share their channels, count with a mask.
    """
    sizes = dict(model.named_modules())
    masks = sum(sizes[name].num_features for name in shared_norms(model, example))
    for module in sizes.values():
        if isinstance(module, ChannelSelector):
            masks += module.width + 2 * (module.width - len(module.kept))
    return sum(parameter.numel() for parameter in model.parameters()) + masks


def _note_operations(
    found: list[int], module: nn.Module, args: tuple[Any, ...], kwargs: Any, output: Tensor
) -> None:
    for kinds, operations in _SLIMMING.items():
        if isinstance(module, kinds):
            found.append(operations(module, input_of(args, kwargs), output))


def _weighted(module: nn.Module, _: Tensor, output: Tensor) -> int:
    """Two for each weight that an output meets, one for its bias."""
    return output.numel() * (2 * module.weight[0].numel() + (module.bias is not None))


def _pooled(module: nn.Module, _: Tensor, output: Tensor) -> int:
    side = module.kernel_size
    return output.numel() * (side**2 if isinstance(side, int) else prod(side))


# kinds of modules, and the operations of one call: of the module, its input and its output
_SLIMMING: dict[tuple[type[nn.Module], ...], Callable[[Any, Tensor, Tensor], int]] = {
    (nn.Conv2d, nn.Linear): _weighted,
    (nn.BatchNorm2d,): lambda module, x, y: 2 * x.numel(),
    (nn.ReLU,): lambda module, x, y: x.numel(),
    (nn.MaxPool2d, nn.AvgPool2d): _pooled,
    (nn.AdaptiveAvgPool2d,): lambda module, x, y: x.numel(),
    (ChannelSelector,): lambda module, x, y: 2 * (x.numel() - y.numel()),
}
