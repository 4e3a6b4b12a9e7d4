"""The stopping rule of Hinge: sparse training ends near the share of MACs that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

from prunekit.methods.hinge.cost import FoldedCost
from prunekit.methods.hinge.threshold import Threshold
from prunekit.rows import Rows
from prunekit.schema import NotNegative
from prunekit.solvers import Solver
from prunekit.targets import unit_scores
from prunekit.training.orders import StopRule, Training


@dataclass(frozen=True)
class Until(StopRule):
    """Stop when rows below a `threshold` would leave little more than the share of MACs asked for.

    That is, at most `within` above `selection.keep`, with its floor and its same-ratio rule (Li et
    al. 2020, section 3.3). Counted from masks; the network is not touched.
    """

    selection: Annotated[Threshold, "whose share, floor and same-ratio rule count"]
    threshold: Annotated[NotNegative, "rows with a smaller norm count as gone"] = 5e-3
    within: Annotated[NotNegative, "stops this near the share asked for"] = 0.1

    def watch(
        self, training: Training, blocks: Sequence[Rows], solver: Solver
    ) -> Callable[[], tuple[dict[str, float], bool]]:
        """What `fit` asks after every epoch: the share of MACs left, and whether that is enough.

        ConfigError before the first one, where the share asked for is out of reach.
        """
        cost = FoldedCost(training.model, training.graph)
        dense = cost.macs()
        scores = unit_scores(training.graph, blocks, solver.solution())
        self.selection.check(scores, training.graph, cost)

        def look() -> tuple[dict[str, float], bool]:
            scores = unit_scores(training.graph, blocks, solver.solution())
            keep = self.selection.at(self.threshold, scores, training.graph, cost)
            share = cost.macs(keep.removed) / dense
            return {"macs_share": share}, share - self.selection.keep <= self.within

        return look
