"""Sparse training in a loop of your own: attach a penalty, call two hooks, read the scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.engine import Traced, device_of
from prunekit.errors import ConfigError
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.channels import ChannelGraph
from prunekit.graph.wrappers import network_in, rewrapped
from prunekit.methods.hinge import Fold
from prunekit.penalties import PENALTIES, Penalty
from prunekit.rows import Rows
from prunekit.selection import SELECTIONS, PerLayer, Scored, Selection
from prunekit.selection.nothing_removed import check_removal
from prunekit.solvers import SOLVERS, Solver, check_fit
from prunekit.surgery.distance import measure_distance
from prunekit.targets import TARGETS, Target, unit_scores
from prunekit.validate import number

log = logging.getLogger(__name__)


class Attached:
    """A penalty on a network, with hooks to call around the optimizer's step; see `attach`.

    Call in this order: backward, unscale and clip if you do, `before_step`, `optimizer.step`,
    `after_step`; and `finish` once after the last epoch. With accumulated gradients the hooks go
    around the optimizer's step, not around every backward. Leave out `after_step` where a
    GradScaler skips the step. With several processes, each calls the hooks, with the same result.
    """

    def __init__(self, graph: ChannelGraph, solver: Solver, blocks: list[Rows]) -> None:
        self.graph, self.solver, self.blocks = graph, solver, blocks

    def before_step(self, optimizer: Optimizer) -> None:
        """Let the solver edit gradients; call it after backward."""
        self.solver.before_step(optimizer)

    def after_step(self, optimizer: Optimizer) -> None:
        """Let the solver edit parameters; call it after the optimizer's step."""
        self.solver.after_step(optimizer)

    def finish(self) -> None:
        """Write the exact zeros of the solver's solution into the parameters."""
        self.solver.finish()

    def scores(self) -> dict[str, Tensor]:
        """Return the 2-norm over all rows of each unit, for every group that the target covers."""
        return unit_scores(self.graph, self.blocks, self.solver.solution())

    def metrics(self) -> dict[str, float]:
        """Return the penalty's value, the nonzero rows in all and per block, and solver values."""
        return self.solver.metrics()

    def state_dict(self) -> dict[str, Any]:
        """Return the state to store for a resumed run, beside those of model and optimizer."""
        return self.solver.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
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
    """Attach a penalty to a network, which should be on its device already.

    `example` is a batch the network accepts. `penalty`, `solver` and `target` are names or objects;
    `lam` is the strength of a penalty given by name. Wrappers such as DistributedDataParallel are
    removed; they make all processes start with the same parameters. Raises ConfigError when
    penalty, solver and target do not fit, TraceError when the network cannot be traced.
    """
    model = network_in(model)
    solver = SOLVERS.resolve(solver, Solver)
    penalty = PENALTIES.resolve(penalty, Penalty, **({} if lam is None else {"lam": lam}))
    if lam is not None and penalty.lam != lam:
        raise ConfigError(f"lam={lam} beside {penalty}, which has its own; leave lam out")
    check_fit(solver, penalty)
    graph = ChannelGraph.trace(model, example)
    blocks = TARGETS.resolve(target, Target).rows(model, graph)
    solver.bind(penalty, blocks)
    return Attached(graph, solver, blocks)


def shrink(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    selection: Selection | str | float = "zeros",
    example: Example | None = None,
) -> nn.Module:
    """Return a physically smaller copy of a network; by default units that score zero are removed.

    A number is the share of channels to keep in every group.
    The model itself is not changed. The copy has the model's wrappers and needs a new optimizer.
    Sparsity-inducing matrices are folded. What removed channels put out whatever the input is, such
    as the shift behind a scale of zero, is added to the next layer, so that the outputs stay as
    they are. Where they do not, as at padded borders, a warning gives the distance that is measured
    on `example`, by default noise of the shapes that the graph was traced on. `prunekit.prune` also
    checks the cut and absorbs what is not known exactly. Raises ConfigError and SurgeryError.
    """
    if not isinstance(graph, ChannelGraph):
        kind = type(graph).__name__
        raise ConfigError(f"graph is a {kind}, not a ChannelGraph; give attach(...).graph")
    if isinstance(selection, float | int):
        selection = PerLayer(number("selection", selection, above=0, at_most=1))
    network = network_in(model)
    inputs = _noise_like(graph.example) if example is None else Arguments.of(example)
    dense = Traced(network, graph, graph.example, batch=inputs.to(device_of(network)))
    scored = Scored(scores, graph, dense.cost())
    rule = SELECTIONS.resolve(selection, Selection)
    keep = check_removal(rule, rule.select(scored), graph).keep
    if not bool(keep.removed.any()):
        log.warning("shrink: nothing was removed: %s", rule.all_kept)
    narrow = dense.cut(keep, absorb=True, only_known=True, check=False).model
    Fold.of(narrow).apply(narrow)
    distance = measure_distance(network, narrow, dense.batch)
    if not distance.exact:
        log.warning("shrink: %s", distance)
    return rewrapped(model, narrow)


def _noise_like(example: Arguments) -> Arguments:
    """Return one example of these shapes and types; whole numbers are zeros."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        if not like.is_floating_point():
            return torch.zeros_like(like, device="cpu")
        return torch.randn(like.shape, generator=generator).to(like.dtype)

    return example.single_example().map_tensors(noise)
