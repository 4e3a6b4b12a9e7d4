"""A network that was traced once, and what can be asked of it: scores, costs, cuts."""

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
from prunekit.measure import Clock, CostModel
from prunekit.measure.cost import cost_of
from prunekit.measure.latency_table import Track
from prunekit.modes import random_states_kept, unchanged, uncompiled
from prunekit.surgery.cut import Cut, cut
from prunekit.validate import choice

ABSORB = (True, False, "auto", "maps")
CHECKED = 64  # inputs that every cut is checked on


@dataclass(frozen=True)
class CutOptions:
    """How channels are cut: what becomes of the constants they emit, and whether that is checked.

    `absorb` moves constants into the next layer: True always, False never, "auto" unless only units
    went that score exactly zero, "maps" also exactly at padded borders, for one size of input.
    """

    absorb: bool | str = "auto"
    check: bool = True

    def __post_init__(self) -> None:
        choice("absorb", self.absorb, ABSORB)
        choice("check", self.check, (True, False))

    def absorbs(self, scores: Scores, keep: Mapping[str, Tensor]) -> bool:
        """Whether constants are absorbed where units with these scores are cut to `keep`."""
        if self.absorb != "auto":
            return bool(self.absorb)
        return any(
            bool(score[~keep[name].to(score.device)].any()) for name, score in scores.items()
        )

    @property
    def maps(self) -> bool:
        """Whether padded borders are made exact, by a bias for every position."""
        return self.absorb == "maps"


@dataclass(frozen=True, eq=False)
class Traced:
    """A network, its channel graph, and inputs: `example` for shapes, `batch` to check cuts on.

    The network is out of any wrapper.
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
        """Trace a network, which stays as it is; raises TraceError, ConfigError.

        `batch` defaults to `example`; a tensor takes the place of its one tensor. Both are brought
        to where the network is.
        """
        model, example = network_in(model), Arguments.of(example)
        graph = ChannelGraph.trace(model, example, over_norms=over_norms)
        _check_numbers(model, example)
        if batch is None:
            batch = example
        batch = example.filled(batch) if isinstance(batch, Tensor) else Arguments.of(batch)
        device = device_of(model)
        return cls(model, graph, example.to(device), batch.to(device), over_norms)

    @property
    def device(self) -> str:
        """Where the network is."""
        return device_of(self.model)

    def narrowed(self, model: nn.Module) -> Traced:
        """The same for a narrower network that takes the same inputs."""
        graph = ChannelGraph.trace(model, self.example, over_norms=self.over_norms)
        return replace(self, model=model, graph=graph)

    def cost(self, track: Track | None = None) -> CostModel:
        """What any choice of channels costs; milliseconds are measured when they are asked for.

        `track(items, label, total)` may show progress while that happens.
        """
        return cost_of(self.model, self.graph, Clock(self.example, self.device, track))

    def scores(self, criterion: Criterion, data: Data | None) -> Scores:
        """A number per unit of every group that the criterion can judge, larger = keep."""
        with unchanged(self.model), uncompiled(), random_states_kept():
            return criterion.scores(self.model, self.graph, data, self.device)

    def cut(
        self, keep: Mapping[str, Tensor], *, absorb: bool, check: bool = True, maps: bool = False
    ) -> Cut:
        """A narrow copy that keeps these units; see `surgery.cut.cut`."""
        return cut(self.model, self.graph, keep, self.batch, absorb=absorb, check=check, maps=maps)


def device_of(model: nn.Module) -> str:
    """The device of a network's first parameter."""
    return next((str(parameter.device) for parameter in model.parameters()), "cpu")


def _check_numbers(model: nn.Module, example: Arguments) -> None:
    """Raise ConfigError for tensors on the meta device, which are shapes only."""
    for name, tensors in (("model", [*model.parameters()]), ("example", example.tensors)):
        if any(tensor.is_meta for tensor in tensors):
            raise ConfigError(
                f"the {name} is on the meta device, which holds shapes only; give it numbers "
                "(ChannelGraph.trace needs none)"
            )
