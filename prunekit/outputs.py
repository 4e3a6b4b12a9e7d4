"""Which of a network's outputs are the logits, and which are those of auxiliary heads.

A network may return a tensor, or several outputs in a tuple, a named tuple, a dict or a dataclass.
Every pass that needs logits (training, distillation, evaluation, criteria) calls `logits_of`, so
that all of them use the same output.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from prunekit.errors import ConfigError, listed

_LEADING = ("logits", "out")  # as torchvision, Hugging Face, and segmenters call them
_AUXILIARY = "aux"  # what the names of outputs of auxiliary heads begin with


def logits_of(output: Any) -> Tensor:
    """Return the logits among the outputs of one call of a network.

    A tensor is the logits itself. Among several outputs they are the one named `logits` or `out`,
    otherwise the first tensor of a tuple or a list, or the only tensor of a dict. Raises
    ConfigError where none of this applies.
    """
    if isinstance(output, Tensor):
        return output
    named = _named(output)
    for name in _LEADING:
        if isinstance(named.get(name), Tensor):
            return named[name]
    ordered = isinstance(output, tuple | list)
    values = output if ordered else named.values()
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors or (len(tensors) > 1 and not ordered):
        raise ConfigError(
            f"the network returns {describe_output(output)}, and prunekit cannot tell which of "
            "them are the logits; name that output logits, or wrap the network in a module that "
            "returns it alone"
        )
    return tensors[0]


def auxiliary_logits(output: Any) -> dict[str, Tensor]:
    """Return the outputs named `aux...` that have the shape of the logits, by their names."""
    named = _named(output)
    return {
        name: value
        for name, value in named.items()
        if name.startswith(_AUXILIARY)
        and isinstance(value, Tensor)
        and value.shape == logits_of(output).shape
    }


def describe_output(output: Any) -> str:
    """Describe the outputs of a network for messages, for instance "a dict of boxes, scores"."""
    if isinstance(output, Tensor):
        return f"a tensor of the shape {tuple(output.shape)}"
    names = [*_named(output)]
    kind = type(output).__name__
    return f"a {kind} of {listed(names)}" if names else f"a {kind}"


def _named(output: Any) -> dict[str, Any]:
    """Return the outputs that have names; empty for a tensor, a plain tuple or a list."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if isinstance(output, tuple) and hasattr(output, "_fields"):
        return dict(zip(output._fields, output, strict=True))
    if dataclasses.is_dataclass(output):
        return dict(vars(output))
    return {}
