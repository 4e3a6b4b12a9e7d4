"""Multiply-adds counted by fvcore, a second opinion on the cost model."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from prunekit.modes import evaluating

_COUNTED = ("conv", "linear", "addmm")


def counted_macs(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> int:
    """Multiply-adds of convolutions and linear layers in one forward pass of `example`.

    fvcore counts normalisation and pooling too; those are left out, and biases are never counted.
    """
    counts = _analysis(model, example)
    return int(sum(counts[name] for name in _COUNTED if name in counts))


def _analysis(model: nn.Module, example: Tensor | tuple[Tensor, ...]) -> dict[str, float]:
    """Operations by kind, without the log lines of fvcore and the warnings of tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        with evaluating(model), torch.no_grad():
            analysis = FlopCountAnalysis(model, example)
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.tracer_warnings("none")
            return dict(analysis.by_operator())
