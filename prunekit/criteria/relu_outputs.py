"""What criteria read at ReLUs; which units these are was found when the network was traced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.criteria.base import Scores, seen_groups
from prunekit.errors import ConfigError
from prunekit.graph.ops.activations import is_relu6
from prunekit.graph.recording.steps import operation_name
from prunekit.graph.table import of_name
from prunekit.modes import consulting

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph

# of a ReLU's output (examples, channels, ...): a sum per channel, and over how many things it is
Count = Callable[[Tensor], tuple[Tensor, float]]

_NO_RELU = "meets a ReLU on all of its channels; use for instance criterion=taylor or l1_norm"


def relu_means(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor], count: Count
) -> Scores:
    """The mean of what `count` sees of every unit at ReLUs, in evaluation mode.

    ReLUs are caught whether they are modules, functions or methods; a unit that meets several has
    the mean over all. Groups with a unit that meets none have no score; ConfigError if no group
    has one, or where a forward meets other ReLUs than when it was traced.
    """
    met = _AtReLUs(graph, count)
    with consulting(model), torch.no_grad():
        for x in batches:
            with met:
                model(x)
            met.finish(type(model).__name__)
    return seen_groups(graph, met.total / met.seen.clamp_min(1), met.seen, _NO_RELU)


class _AtReLUs(TorchFunctionMode):
    """Adds up what `count` says of the output of each ReLU, per unit, in order of execution."""

    def __init__(self, graph: ChannelGraph, count: Count) -> None:
        super().__init__()
        self.rectified, self.count, self.met = graph.rectified, count, 0
        self.total = torch.zeros(graph.count, dtype=torch.float64)
        self.seen = torch.zeros(graph.count, dtype=torch.float64)

    def finish(self, network: str) -> None:
        """Begin again; ConfigError where a forward met more or fewer ReLUs than when traced."""
        met, self.met = self.met, 0
        if met != len(self.rectified):
            raise ConfigError(
                f"{network} ran through {met} ReLUs, and through {len(self.rectified)} when it was "
                "traced: its forward depends on its input; use for instance criterion=taylor"
            )

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = operation_name(func)
        entry = of_name(name)
        if entry is not None and (entry.rectifies or is_relu6(name, kwargs)):
            units = self.rectified[self.met] if self.met < len(self.rectified) else None
            self.met += 1
            if units is not None:
                self._add(out, units)
        return out

    def _add(self, out: Tensor, units: Tensor) -> None:
        found, things = self.count(out)
        self.total.index_add_(0, units, found.double().cpu())
        self.seen.index_add_(0, units, torch.full((len(units),), things).double())
