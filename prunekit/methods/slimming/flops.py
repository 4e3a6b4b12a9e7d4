"""Operations and parameters as the code released with network slimming counts them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.graph.arguments import Arguments, Example, input_of
from prunekit.methods.slimming.channel_selector import ChannelSelector, shared_norms
from prunekit.modes import evaluating_unchanged


def slimming_flops(model: nn.Module, example: Example) -> int:
    """Count the operations of one forward pass as the released code does.

    It counts two for each multiply-add of convolutions and linear layers, one for each of their
    biased outputs, two for each output entry of a batch norm, one for each of a ReLU, and the size
    of the window for each output entry of a pooling layer. Functions are not counted, only modules.
    Batch norms after a channel selector count at full width: in the released code they come first.
    """
    counts: list[int] = []
    hooks = [
        module.register_forward_hook(partial(_record_operations, counts), with_kwargs=True)
        for module in model.modules()
    ]
    try:
        with evaluating_unchanged(model), torch.no_grad():
            Arguments.of(example).call(model)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts)


def slimming_params(model: nn.Module, example: Example) -> int:
    """Count the parameters as the released code does.

    There a channel selection is a mask of full width among the parameters, and the batch norm
    before it stays wide. Batch norms that need a selector but have none count with a mask, too.
    """
    modules = dict(model.named_modules())
    norms = [modules[name] for name in shared_norms(model, example)]
    masks = sum(int(getattr(norm, "num_features", 0)) for norm in norms)
    for module in modules.values():
        if isinstance(module, ChannelSelector):
            masks += module.width + 2 * (module.width - len(module.kept))
    return sum(parameter.numel() for parameter in model.parameters()) + masks


def _record_operations(
    counts: list[int],
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> None:
    for kinds, operations in _OPERATIONS.items():
        if isinstance(module, kinds):
            counts.append(operations(module, input_of(args, kwargs), output))


def _weighted(module: nn.Conv2d | nn.Linear, _: Tensor, output: Tensor) -> int:
    return output.numel() * (2 * module.weight[0].numel() + (module.bias is not None))


def _pooled(module: nn.MaxPool2d | nn.AvgPool2d, _: Tensor, output: Tensor) -> int:
    side = module.kernel_size
    return output.numel() * (side**2 if isinstance(side, int) else prod(side))


# classes of modules -> a function of the module, its input and its output
_OPERATIONS: dict[tuple[type[nn.Module], ...], Callable[[Any, Tensor, Tensor], int]] = {
    (nn.Conv2d, nn.Linear): _weighted,
    (nn.BatchNorm2d,): lambda module, x, y: 2 * x.numel(),
    (nn.ReLU,): lambda module, x, y: x.numel(),
    (nn.MaxPool2d, nn.AvgPool2d): _pooled,
    (nn.AdaptiveAvgPool2d,): lambda module, x, y: x.numel(),
    (ChannelSelector,): lambda module, x, y: 2 * (x.numel() - y.numel()),
}
