"""A second opinion on the cost model: fvcore's count of multiply-adds."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.recording.nests import tensors_within
from prunekit.modes import consulting

_COUNTED = ("conv", "linear", "addmm")


def counted_macs(model: nn.Module, example: Example) -> int:
    """Multiply-adds of convolutions and linear layers in one forward pass of `example`.

    fvcore counts normalisation and pooling too; those are left out, and biases are never counted.
    """
    counts = _analysis(model, example)
    return int(sum(counts[name] for name in _COUNTED if name in counts))


class _OnTensors(nn.Module):
    """A network that is called with tensors alone and returns nothing else, as tracing needs it."""

    def __init__(self, network: nn.Module, given: Arguments) -> None:
        super().__init__()
        self.network, self._given = network, given

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The tensors take the places of those that were given."""
        rest = iter(tensors)
        return tuple(tensors_within(self._given.changed(lambda _: next(rest)).call(self.network)))


def _analysis(model: nn.Module, example: Example) -> dict[str, float]:
    """Operations by kind, without the log lines of fvcore and the warnings of tracing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from fvcore.nn import FlopCountAnalysis

        logging.getLogger("fvcore.nn.jit_analysis").setLevel(logging.ERROR)
        given = Arguments.of(example)
        with consulting(model), torch.no_grad():
            analysis = FlopCountAnalysis(_OnTensors(model, given), tuple(given.tensors))
            analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
            analysis.tracer_warnings("none")
            return dict(analysis.by_operator())
