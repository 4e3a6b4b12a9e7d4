"""Parameters and buffers of the user's own modules, which a forward uses by itself."""

from __future__ import annotations

from torch import nn

from prunekit.graph.table import layer_operation


def user_tensors(network: nn.Module) -> set[str]:
    """Parameters and buffers of modules that are no layers: the forward uses them by itself."""
    return {
        f"{name}.{leaf}" if name else leaf
        for name, module in network.named_modules()
        if not has_channel_parameters(module)
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def has_channel_parameters(module: nn.Module) -> bool:
    """Whether a layer of this class has numbers for every channel."""
    entry = layer_operation(module)
    return (
        entry is not None
        and (entry.weighted or entry.emits_bias or entry.same_shape)
        and bool(entry.narrow)
    )
