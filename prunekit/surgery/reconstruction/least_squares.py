"""Refit layers behind a cut, so that they put out again what those of the dense network do.

He, Zhang and Sun 2017 (channel pruning) refit one layer after another on unlabelled images. Here
every layer whose input changed is refitted, in order of execution, on what the layers in front of
it put out after their own refit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.errors import DataError
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, input_of
from prunekit.graph.called_maps import map_of_calls
from prunekit.graph.dataflow import batch_norm, followers, weighted_layer
from prunekit.graph.layers import channel_dim, with_shared_parameters
from prunekit.graph.linear_maps import LinearMap
from prunekit.graph.program import Program
from prunekit.graph.recording.passes import record_batch
from prunekit.graph.recording.steps import Step, with_results
from prunekit.modes import evaluating, random_states_kept
from prunekit.schema import Count, Positive, Range
from prunekit.surgery.edits import NewBiases
from prunekit.surgery.reconstruction.base import (
    RECONSTRUCTIONS,
    Reconstruction,
    Refitted,
    RefittedLayer,
    Sample,
)
from prunekit.surgery.reconstruction.norms import InputStatistics, can_renormalise, renormalise
from prunekit.surgery.reconstruction.paired_run import Batches, PairedRun, State
from prunekit.surgery.reconstruction.residual import Addition
from prunekit.surgery.reconstruction.ridge import Fit
from prunekit.surgery.reconstruction.sampling import RowSample, batches_wanted

_GIB = 2**30
_LARGEST_BATCH = 250


@RECONSTRUCTIONS.register("least_squares")
@dataclass(frozen=True)
class LeastSquares(Reconstruction):
    """Refits every layer whose input changed to the dense network's output, by least squares."""

    images: Annotated[Count, "training images, without labels, that layers are refitted on"] = 1000
    ridge: Annotated[Positive, "how strongly new weights are drawn to the old ones"] = 1e-3
    rows: Annotated[float, Range(at_least=5), "positions sampled per unknown weight"] = 100
    memory: Annotated[Positive, "GiB that activations and sums may take"] = 2.0

    def apply(
        self,
        dense: nn.Module,
        narrow: nn.Module,
        graph: ChannelGraph,
        removed: Tensor,
        sample: Sample | None,
    ) -> Refitted:
        """Refit all layers that read other values than before, in order of execution."""
        assert sample is not None, "least squares needs images"
        most = self._batch_size(Program(dense, graph.recordings[0]))
        total = sum(len(batch.tensors[0]) for batch in sample(self.images, most))
        size = total // max(ceil(total / most), 1)  # batches of one size leave few images out

        def batches() -> Iterator[Arguments]:
            for batch in sample(self.images, size):
                if len(batch.tensors[0]) == size:  # a recording takes one size
                    yield batch

        count = total // size if size else 0
        return refit(dense, narrow, graph, removed, batches, self, count)

    def _batch_size(self, dense: Program) -> int:
        """Return how many examples are run at once; `dense` is recorded with one."""
        most = dense.most_live_bytes()
        return max(1, min(_LARGEST_BATCH, int(self.memory * _GIB / 8 / max(most, 1))))


def refit(
    dense: nn.Module,
    narrow: nn.Module,
    graph: ChannelGraph,
    removed: Tensor,
    batches: Batches,
    settings: LeastSquares,
    count: int | None = None,
) -> Refitted:
    """Refit the layers of `narrow`, in place, on batches of inputs; see `Reconstruction.apply`.

    `batches` returns the same inputs in every call, `count` batches of one size.
    """
    count = sum(1 for _ in batches()) if count is None else count
    if not count:
        raise DataError(
            "there are no images to refit layers on; set dataset=..., or reconstruct=none"
        )
    first = next(iter(batches()))
    with random_states_kept(), evaluating(dense, narrow), torch.no_grad():
        run = PairedRun(
            Program(dense, record_batch(dense, first)),
            Program(narrow, record_batch(narrow, first)),
            batches,
            count,
            settings.memory * _GIB / 2,
        )
        work = _Refit(run, graph, removed.cpu(), settings)
        changed = work.changed_calls()
        for name, calls in track(changed.items(), "refit", len(changed)):
            work.visit(name, calls)
    edits = (NewBiases(tuple(work.new_biases)),) if work.new_biases else ()
    results = (tuple(work.layers), tuple(work.norms), tuple(work.notes))
    return Refitted(edits, *results, examples=count * len(first.tensors[0]))


@dataclass(eq=False)
class _Refit:
    """Refits one layer after another, in the order of the narrow network's run."""

    run: PairedRun
    graph: ChannelGraph
    removed: Tensor
    settings: LeastSquares
    layers: list[RefittedLayer] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    new_biases: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = self.run.narrow.network
        self.pairs = self.run.pairs
        self.following_norms = followers(self.network, [self.run.narrow.recording])
        self.tied = with_shared_parameters(self.network)

    def changed_calls(self) -> dict[str, list[Step]]:
        """Return all calls of the layers and batch norms that read other values than before.

        They are in the order of their first calls.
        """
        changed: set[Step] = set()
        calls: dict[str, list[Step]] = {}
        for step in self.run.narrow.steps:
            layer = weighted_layer(self.network, step)
            if self._lost_inputs(layer) or any(source in changed for source in step.sources):
                changed.add(step)
            name = layer or batch_norm(self.network, step)
            if name is not None:
                calls.setdefault(name, []).append(step)
        return {name: steps for name, steps in calls.items() if not changed.isdisjoint(steps)}

    def _lost_inputs(self, layer: str | None) -> bool:
        inputs = None if layer is None else self.graph.ins.get(layer)
        return inputs is not None and bool(self.removed[inputs].any())

    def visit(self, name: str, calls: Sequence[Step]) -> None:
        """Refit the layer, or renew the statistics of the batch norm, that these steps call."""
        if batch_norm(self.network, calls[0]) == name:
            self._renormalise(name, calls)
            return
        needs_bias = name not in self.following_norms
        layer = map_of_calls(self.network, name, calls, needs_bias)
        if isinstance(layer, str):
            self.notes.append(f"{name} was not refitted: {layer}")
        elif not all(step in self.pairs for step in calls):
            self.notes.append(f"{name} was not refitted: the dense network calls it otherwise")
        else:
            self._refit(name, layer, calls)

    def _refit(self, name: str, layer: LinearMap, calls: Sequence[Step]) -> None:
        kept = (~self.removed[self.graph.outs[name]]).nonzero().flatten()
        additions = self._additions(calls)
        stops = [(self.run.dense.position[self.pairs[s]] + 1, self._position(s)) for s in calls]
        memory, rows = self.settings.memory * _GIB / 2, self.settings.rows
        wanted = batches_wanted(layer, calls[0].result, rows)
        chunks = self.run.activate(*stops[0], *wanted) * len(calls)
        sample = RowSample(name, layer, rows, memory, chunks)
        for number, state in self._states(stops):
            output = state.dense[self.pairs[calls[number]]]
            kept = kept.to(output.device)
            dim = channel_dim(layer.layer, output.ndim)
            target = output.index_select(dim, kept)
            error = None if additions is None else self._correction(*additions, state, kept, dim)
            sample.add(_input(calls[number], state), target, error)
        self._store(name, layer, sample.solve(self.settings.ridge))

    def _states(self, stops: Sequence[tuple[int, int]]) -> Iterator[tuple[int, State]]:
        """Yield the state of every batch at every stop, with the number of the stop."""
        for state in self.run.advance(*stops[0]):
            yield 0, state
            later = state.cloned() if len(stops) > 1 else state
            for number in range(1, len(stops)):
                self.run.resume(later, stops[number - 1], stops[number])
                yield number, later

    def _additions(self, calls: Sequence[Step]) -> tuple[Addition, Addition] | None:
        """Return the additions that a layer ends in, in the dense and in the narrow network."""
        if len(calls) > 1:
            return None
        dense = Addition.behind(self.run.dense.network, self.pairs[calls[0]])
        narrow = Addition.behind(self.network, calls[0])
        return None if dense is None or narrow is None else (dense, narrow)

    def _correction(
        self, dense: Addition, narrow: Addition, state: State, kept: Tensor, dim: int
    ) -> Tensor | None:
        """Return what a layer must add to make up for the shortcut, where that is known by now.

        Layers in the shortcut that come later are refitted with what this one then puts out.
        """
        others = (
            self.run.dense.preview(state.dense, dense.other),
            self.run.narrow.preview(state.narrow, narrow.other),
        )
        if not all(isinstance(other, Tensor) for other in others):
            return None
        return narrow.correction(*others, kept, dim)

    def _position(self, step: Step) -> int:
        return self.run.narrow.position[step]

    def _store(self, name: str, layer: LinearMap, fit: Fit) -> None:
        """Write weights, and put the intercept where there is room for it."""
        intercept, bias = fit.intercept.flatten(), layer.layer.bias
        norm = self.following_norms.get(name)
        layer.set_matrix(fit.matrix)
        if bias is not None:
            bias.copy_(intercept)
        elif norm is not None:
            running_mean: Any = self.network.get_submodule(norm).running_mean
            running_mean.sub_(intercept.to(running_mean))
        else:
            NewBiases((name,)).apply(self.network)
            self.new_biases.append(name)
            layer.layer.bias.copy_(intercept)
        self.layers.append(RefittedLayer(name, fit.before, fit.after, fit.rows, layer.unknowns))

    def _renormalise(self, name: str, calls: Sequence[Step]) -> None:
        norm = self.network.get_submodule(name)
        if name in self.tied or not can_renormalise(norm):
            return
        statistics, dense = InputStatistics(), self.run.position[0]
        stops = [(dense, self._position(step)) for step in calls]
        self.run.activate(*stops[0], self.run.active, self.run.active)
        for number, state in self._states(stops):
            statistics.add(_input(calls[number], state))
        renormalise(norm, statistics)
        self.norms.append(name)


def _input(step: Step, state: State) -> Tensor:
    """Return what a layer reads in the narrow network."""
    args, kwargs = with_results((step.args, step.kwargs), state.narrow)
    x: Tensor = input_of(args, kwargs)
    return x
