"""prunekit makes convolutional networks smaller and faster.

Names are imported on first use, so that `prunekit --help` does not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit import criteria as criteria
    from prunekit import data as data
    from prunekit import errors as errors
    from prunekit import graph as graph
    from prunekit import measure as measure
    from prunekit import methods as methods
    from prunekit import models as models
    from prunekit import penalties as penalties
    from prunekit import selection as selection
    from prunekit import solvers as solvers
    from prunekit import surgery as surgery
    from prunekit import targets as targets
    from prunekit import training as training
    from prunekit.attachment import attach as attach
    from prunekit.attachment import shrink as shrink
    from prunekit.export import export_onnx as export_onnx
    from prunekit.export import export_program as export_program
    from prunekit.graph import ChannelGraph as ChannelGraph
    from prunekit.measure import CostModel as CostModel
    from prunekit.pruning import prune as prune
    from prunekit.surgery import Narrow as Narrow
    from prunekit.surgery import load_model as load_model
    from prunekit.surgery import save_model as save_model

__version__ = "0.1.0"

_OWNERS = {  # public name -> the module that it is imported from
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
__all__ = [
    "ChannelGraph",
    "CostModel",
    "Narrow",
    "attach",
    "criteria",
    "data",
    "errors",
    "export_onnx",
    "export_program",
    "graph",
    "load_model",
    "measure",
    "methods",
    "models",
    "penalties",
    "prune",
    "save_model",
    "selection",
    "shrink",
    "solvers",
    "surgery",
    "targets",
    "training",
]
_PACKAGES = frozenset(__all__) - frozenset(_OWNERS)

if not TYPE_CHECKING:  # a type checker that sees it accepts any name

    def __getattr__(name: str) -> Any:
        """Import a public name on first use."""
        if name in _OWNERS:
            value = getattr(importlib.import_module(f"prunekit.{_OWNERS[name]}"), name)
        elif name in _PACKAGES:
            value = importlib.import_module(f"prunekit.{name}")
        else:
            raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Return all public names, whether they were imported yet or not."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
