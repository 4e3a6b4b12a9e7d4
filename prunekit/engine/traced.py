"""A network that was traced once, with methods to score it, to measure it and to cut it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, nn

from prunekit.criteria import Criterion, Scores
from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.wrappers import network_in
from prunekit.measure import CostModel, LatencySetup
from prunekit.measure.cost import make_cost_model
from prunekit.measure.latency_table import Track
from prunekit.modes import random_states_kept, unchanged, uncompiled
from prunekit.surgery.cut import Cut, cut
from prunekit.validate import choice

ABSORB = (True, False, "auto", "maps")
CHECKED = 64  # number of inputs on which every cut is checked


@dataclass(frozen=True)
class CutOptions:
    """Options of a cut: whether it is checked, and how constants of removed channels are treated.

    `absorb` moves constants into the next layer: True always, False never, "auto" unless all
    removed units score exactly zero, and "maps" exactly at padded borders too, for one input size.
    """

    absorb: bool | str = "auto"
    check: bool = True

    def __post_init__(self) -> None:
        choice("absorb", self.absorb, ABSORB)
        choice("check", self.check, (True, False))

    def absorbs(self, scores: Scores, keep: Mapping[str, Tensor]) -> bool:
        """Return whether a cut of units with these scores to `keep` absorbs constants."""
        if self.absorb != "auto":
            return bool(self.absorb)
        return any(
            bool(score[~keep[name].to(score.device)].any()) for name, score in scores.items()
        )

    @property
    def per_position(self) -> bool:
        """True if padded borders are made exact by a bias for every position."""
        return self.absorb == "maps"


@dataclass(frozen=True, eq=False)
class Traced:
    """An unwrapped network, its channel graph, and its inputs.

    `example` gives the shapes; cuts are checked on `batch`, and not at all if it is None.
    """

    model: nn.Module
    graph: ChannelGraph
    example: Arguments
    batch: Arguments | None
    over_norms: bool = False

    @classmethod
    def of(
        cls,
        model: nn.Module,
        example: Example,
        batch: Example | None = None,
        over_norms: bool = False,
    ) -> Traced:
        """Trace a network, which is left as it is; raise TraceError or ConfigError.

        `batch` defaults to `example`; if it is a tensor, it replaces the one tensor in `example`.
        Both are moved to the device of the network.
        """
        network, arguments = network_in(model), Arguments.of(example)
        graph = ChannelGraph.trace(network, arguments, over_norms=over_norms)
        _check_values(network, arguments)
        if batch is None:
            batch = arguments
        batch = arguments.with_batch(batch) if isinstance(batch, Tensor) else Arguments.of(batch)
        device = device_of(network)
        return cls(network, graph, arguments.to(device), batch.to(device), over_norms)

    @property
    def device(self) -> str:
        """The device of the network."""
        return device_of(self.model)

    def retraced(self, model: nn.Module) -> Traced:
        """Trace a narrower network that takes the same inputs."""
        graph = ChannelGraph.trace(model, self.example, over_norms=self.over_norms)
        return replace(self, model=model, graph=graph)

    def cost(self, track: Track | None = None) -> CostModel:
        """Return a cost model; it measures latency when milliseconds are first requested.

        `track(items, label, total)` may show progress of the measurement.
        """
        return make_cost_model(
            self.model, self.graph, LatencySetup(self.example, self.device, track)
        )

    def scores(self, criterion: Criterion, data: Data | None) -> Scores:
        """Return a score per unit of every group that the criterion can score, larger = keep."""
        with unchanged(self.model), uncompiled(), random_states_kept():
            return criterion.scores(self.model, self.graph, data, self.device)

    def cut(
        self,
        keep: Mapping[str, Tensor],
        *,
        absorb: bool,
        check: bool = True,
        per_position: bool = False,
    ) -> Cut:
        """Cut a narrow copy that keeps these units; see `surgery.cut.cut`."""
        return cut(
            self.model,
            self.graph,
            keep,
            self.batch,
            absorb=absorb,
            check=check,
            per_position=per_position,
        )


def device_of(model: nn.Module) -> str:
    """Return the device of a network's first parameter, "cpu" without parameters."""
    return next((str(parameter.device) for parameter in model.parameters()), "cpu")


def _check_values(model: nn.Module, example: Arguments) -> None:
    """Raise ConfigError for tensors on the meta device, which have shapes but no values."""
    for name, tensors in (("model", [*model.parameters()]), ("example", example.tensors)):
        if any(tensor.is_meta for tensor in tensors):
            raise ConfigError(
                f"the {name} is on the meta device, which holds shapes only; give it numbers "
                "(ChannelGraph.trace needs none)"
            )
