"""Parameters and buffers of the user's own modules, which a forward uses by itself."""

from __future__ import annotations

from torch import nn

from prunekit.graph.table import of_layer


def user_tensors(twin: nn.Module) -> set[str]:
    """Parameters and buffers of modules that are no layers: the forward uses them by itself."""
    return {
        f"{name}.{leaf}" if name else leaf
        for name, module in twin.named_modules()
        if not holds_channels(module)
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items())
        if tensor is not None
    }


def holds_channels(module: nn.Module) -> bool:
    """Whether a layer of this class has numbers for every channel."""
    entry = of_layer(module)
    return (
        entry is not None and (entry.weighs or entry.shifts or entry.alike) and bool(entry.narrow)
    )
