"""The classifier that a network is tuned with: the one it has, or a new one."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.data import Data
from prunekit.stages.common import check_fits, outputs
from prunekit.surgery import Head, NewHead


def with_head(model: nn.Module, data: Data, head: Head | None) -> NewHead | None:
    """Put it in place and return what was done; ConfigError where the network fits no such data."""
    edit = None
    if head is not None:
        outputs(model, data)  # images that the network cannot take are refused as everywhere
        edit = head.edit(model, data.example, data.classes)
        edit.apply(model)
    check_fits(model, data, "head=linear gives it a new last layer for {}")
    return edit


def paced(model: nn.Module, head: Head | None, edit: NewHead | None) -> list[dict[str, Any]] | None:
    """Parameters for the optimizer, those of a new layer with a rate of their own; None: all."""
    if head is None or edit is None:
        return None
    fresh = [*model.get_submodule(edit.last).parameters()]
    known = {id(param) for param in fresh}
    rest = [param for param in model.parameters() if id(param) not in known]
    groups = [{"params": rest}, {"params": fresh, "lr_scale": head.rate}]
    return [group for group in groups if group["params"]]
