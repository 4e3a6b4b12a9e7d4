"""prunekit makes convolutional networks smaller and faster."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ChannelGraph": "graph",
    "CostModel": "measure",
    "Narrow": "surgery",
    "attach": "attachment",
    "export_onnx": "export",
    "export_program": "export",
    "load_model": "surgery",
    "prune": "pruning",
    "save_model": "surgery",
    "shrink": "attachment",
}
_PACKAGES = ("criteria", "data", "models", "penalties", "selection", "solvers", "targets")

__all__ = [*_HOMES, *_PACKAGES]


def __getattr__(name: str) -> Any:
    """Import on first use: `prunekit --help` must not wait for torch."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"prunekit.{_HOMES[name]}"), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"prunekit.{name}")
    else:
        raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
    globals()[name] = value
    return value
