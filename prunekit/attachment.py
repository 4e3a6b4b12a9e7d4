"""Sparse training in a loop of your own: attach a penalty, call two hooks, read the scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.engine import Traced
from prunekit.errors import ConfigError
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.channels import ChannelGraph
from prunekit.graph.wrappers import network_in, rewrapped
from prunekit.methods.hinge import Fold
from prunekit.penalties import PENALTIES, Penalty
from prunekit.rows import Rows
from prunekit.selection import SELECTIONS, Scored, Selection
from prunekit.solvers import SOLVERS, Solver, check_fit
from prunekit.targets import TARGETS, Target, unit_scores


class Attached:
    """A penalty on a network, to be called around the optimizer's step; made by `attach`.

    The order in a loop: backward, unscale and clip if you do, `before_step`, `optimizer.step`,
    `after_step`; once after the last epoch `finish`. With accumulated gradients the hooks go around
    the optimizer's step, not every backward; a step that a GradScaler leaves out has no
    `after_step`. In several processes each calls the hooks, with the same result.
    """

    def __init__(self, graph: ChannelGraph, solver: Solver, blocks: list[Rows]) -> None:
        self.graph, self.solver, self.blocks = graph, solver, blocks

    def before_step(self, optimizer: Optimizer) -> None:
        """After backward: the solver may edit gradients."""
        self.solver.before_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """After the optimizer's step: the solver may edit parameters."""
        self.solver.after_step(optimizer)

    def finish(self) -> None:
        """Leave exact zeros in the parameters, where the solver has them."""
        self.solver.finish()

    def scores(self) -> dict[str, Tensor]:
        """The 2-norm of all rows of each unit, for every channel group that the target reaches."""
        return unit_scores(self.graph, self.blocks, self.solver.solution())

    def metrics(self) -> dict[str, float]:
        """The penalty's value, rows left in all and per block, and what the solver adds."""
        return self.solver.metrics()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, next to the states of the model and the optimizer."""
        return self.solver.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self.solver.load_state_dict(state)


def attach(
    model: nn.Module,
    example: Example,
    *,
    penalty: Penalty | str,
    solver: Solver | str,
    target: Target | str = "filters",
    lam: float | None = None,
) -> Attached:
    """Put a penalty on a network, which should be on its device already.

    `example` is a batch the network accepts. `penalty`, `solver` and `target` are names or objects;
    a penalty that is named has the strength `lam`. A network is taken out of its wrappers, such as
    DistributedDataParallel, which makes all processes start alike. ConfigError when penalty, solver
    and target do not fit, TraceError when the network cannot be traced.
    """
    model = network_in(model)
    solver = SOLVERS.named(solver, Solver)
    penalty = PENALTIES.named(penalty, Penalty, **({} if lam is None else {"lam": lam}))
    if lam is not None and penalty.lam != lam:
        raise ConfigError(f"lam={lam} beside {penalty}, which has its own; leave lam out")
    check_fit(solver, penalty)
    graph = ChannelGraph.trace(model, example)
    blocks = TARGETS.named(target, Target).rows(model, graph)
    solver.bind(penalty, blocks)
    return Attached(graph, solver, blocks)


def shrink(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    selection: Selection | str = "zeros",
) -> nn.Module:
    """A physically smaller copy of a network; by default the units that score zero go.

    The model keeps its parameters; an optimizer for the copy, which is put into the wrappers that
    the model is in, must be made anew. Sparsity-inducing matrices are folded. Nothing is checked or
    absorbed, so that what the solver zeroed goes exactly; `prunekit.prune` does both.
    """
    dense = Traced(network_in(model), graph, example=Arguments((), {}), batch=None)
    scored = Scored(scores, graph, dense.cost())
    keep = SELECTIONS.named(selection, Selection).select(scored).keep
    narrow = dense.cut(keep, absorb=False, check=False).model
    Fold.of(narrow).apply(narrow)
    return rewrapped(model, narrow)
