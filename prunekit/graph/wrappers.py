"""Wrappers of torch around a network: for several devices or processes, or compiled."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from torch import distributed, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from prunekit.graph.recording.copies import wrapped_name
from prunekit.modes import copy_hooks, recompiler


def network_in(model: nn.Module) -> nn.Module:
    """Return the network inside any number of wrappers."""
    while isinstance(model, nn.Module) and (inner := wrapped_name(model)) is not None:
        model = getattr(model, inner)
    return model


def rewrapped(model: nn.Module, network: nn.Module) -> nn.Module:
    """Return another network in wrappers like those around `model`, with the same settings.

    Compiled networks are compiled again at their first call. Without a process group,
    DistributedDataParallel is left out.
    """
    inner = wrapped_name(model)
    return network if inner is None else _like(model, rewrapped(getattr(model, inner), network))


def renew(model: nn.Module) -> None:
    """Make wrappers anew that hold parameters which their module may no longer have, in place."""
    for parent in [*model.modules()]:
        for name, child in parent._modules.items():
            if isinstance(child, DistributedDataParallel):
                parent._modules[name] = _like(child, child.module)


def _like(wrapper: Any, network: nn.Module) -> nn.Module:
    """Return a wrapper like this one around another network."""
    new: nn.Module
    if isinstance(wrapper, DataParallel):
        new = copy.copy(wrapper)
        vars(new)["_modules"] = {"module": network}
    elif isinstance(wrapper, DistributedDataParallel):
        new = _distributed(wrapper, network)
    else:
        new = recompiler(wrapper)(network)
    if new is not network and not isinstance(wrapper, DistributedDataParallel):
        copy_hooks(wrapper, new)
    new.training = wrapper.training if new is not network else network.training
    return new


def _distributed(wrapper: Any, network: nn.Module) -> nn.Module:
    if not (distributed.is_available() and distributed.is_initialized()):
        return network
    names = (
        *("device_ids", "output_device", "dim", "process_group", "broadcast_buffers"),
        *("find_unused_parameters", "gradient_as_bucket_view", "static_graph"),
    )
    settings = {name: getattr(wrapper, name) for name in names}
    if not getattr(wrapper, "bucket_bytes_cap_default", True):
        settings["bucket_cap_mb"] = wrapper.bucket_bytes_cap / 2**20
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer names, which older versions lack
        return DistributedDataParallel(network, **settings)
