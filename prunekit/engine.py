"""The engine behind every entry point: trace, score, select, cut and check a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from prunekit.criteria import Criterion, Scores
from prunekit.data import Batches, Data
from prunekit.data.base import draw, regrouped
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.wrappers import network_in
from prunekit.measure import CostModel, LatencySetup
from prunekit.measure.cost import make_cost_model
from prunekit.measure.latency_table import Track
from prunekit.modes import random_states_kept, unchanged, uncompiled
from prunekit.selection import Scored, Selected, Selection
from prunekit.selection.nothing_removed import check_removal
from prunekit.surgery import Edit
from prunekit.surgery.cut import Cut, cut
from prunekit.surgery.reconstruction import Reconstruction, Sample
from prunekit.surgery.refit import refit_cut
from prunekit.validate import choice

ABSORB = (True, False, "auto", "maps")
CHECKED = 64  # number of inputs on which every cut is checked


@dataclass(frozen=True)
class CutOptions:
    """Options of a cut: whether it is checked, and how constants of removed channels are treated.

    `absorb` moves constants into the next layer: True always, False never, and "maps" exactly at
    padded borders too, for one input size. "auto" moves those that are known exactly, and the
    others too unless all removed units score exactly zero. `reconstruct` refits the layers behind
    every cut on training images, which `seed` chooses.
    """

    absorb: bool | str = "auto"
    check: bool = True
    reconstruct: Reconstruction | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        choice("absorb", self.absorb, ABSORB)
        choice("check", self.check, (True, False))
        if self.reconstruct is not None and self.absorb == "maps":
            raise ConfigError(
                "absorb=maps gives every position a bias of its own, which refitted layers do not "
                "have; choose absorb=auto, or reconstruct=none"
            )

    @property
    def absorbs(self) -> bool:
        """True if constants of removed channels are absorbed, all of them or the known ones."""
        return bool(self.absorb)

    def only_known(self, scores: Scores, keep: Mapping[str, Tensor]) -> bool:
        """Return whether a cut to `keep` absorbs only constants that are known exactly."""
        return self.absorb == "auto" and not any(
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
        only_known: bool = False,
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
            only_known=only_known,
        )

    def refit(
        self, cut: Cut, reconstruction: Reconstruction, data: Data | None, seed: int = 0
    ) -> Cut:
        """Refit the network of a cut, in place, on training images without labels.

        The seed chooses the images. Raises ConfigError without images.
        """
        sample = None if data is None or not data.train.size else self._sample(data.train, seed)
        if sample is None and reconstruction.needs_images:
            raise ConfigError(
                "reconstruct refits layers on images and there are none; give data (dataset=...), "
                "or reconstruct=none"
            )
        return refit_cut(cut, self.model, self.graph, reconstruction, sample, self.batch)

    def _sample(self, images: Batches, seed: int) -> Sample:
        """Return a function that yields arguments of the network with images in them."""

        def sample(count: int, batch: int) -> Iterator[Arguments]:
            inputs_only = (inputs for inputs, _ in draw(images, count, batch, seed))
            for inputs in regrouped(inputs_only, batch):
                yield self.example.with_batch(inputs).to(self.device)

        return sample


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


@dataclass(frozen=True, eq=False)
class UnitMap:
    """The correspondence of units between the `dense` network and the `current`, narrower one.

    `keep` marks the units of the dense network that the current one still has. Before the first
    cut, both graphs are the same object.
    """

    dense: ChannelGraph
    current: ChannelGraph
    keep: ChannelMask

    @cached_property
    def _current_ids(self) -> Tensor:
        """The current unit id for every unit id of the dense network, -1 where it is removed."""
        ids = torch.full((self.dense.count,), -1)
        for name, units in self.dense.outs.items():
            if name in self.current.outs:  # layers are removed with their blocks
                ids[units[~self.keep.removed[units]]] = self.current.outs[name]
        return ids

    def to_dense(self, keep: ChannelMask) -> ChannelMask:
        """Translate a mask over the current network into one over the dense network."""
        ids = self._current_ids
        kept = (ids >= 0) & ~keep.removed[ids.clamp_min(0)]
        return ChannelMask.of(self.dense, {g.name: kept[g.units] for g in self.dense.groups})

    def to_current(self, keep: Mapping[str, Tensor]) -> ChannelMask:
        """Translate a mask over the dense network into one over the current network."""
        ids, removed = self._current_ids, ChannelMask.of(self.dense, keep).removed
        kept = torch.ones(self.current.count, dtype=torch.bool)
        kept[ids[(ids >= 0) & removed]] = False
        return ChannelMask.of(self.current, {g.name: kept[g.units] for g in self.current.groups})

    def dense_scores(self, scores: Scores) -> Scores:
        """Return scores of the dense network's units for scores of the current network.

        Removed units score below all others; groups without scores are left out.
        """
        if self.current is self.dense:
            return dict(scores)
        by_id = torch.full((self.current.count,), torch.nan, dtype=torch.float64)
        for group in self.current.groups:
            if group.name in scores:
                by_id[group.units] = scores[group.name].double().cpu()
        lowest = float(torch.cat([*scores.values()]).min())
        below = 0.0 if lowest > 0 else lowest - max(abs(lowest) * 1e-9, 1e-300)
        dense = {}
        for group in self.dense.groups:
            ids = self._current_ids[group.units]
            score = torch.where(ids < 0, below, by_id[ids.clamp_min(0)])
            if bool((~score[ids >= 0].isnan()).any()):
                dense[group.name] = score.nan_to_num(float(score[~score.isnan()].max()))
        return dense


Tune = Callable[[nn.Module, int], None]  # trains the network in place after round number i


@dataclass(frozen=True, eq=False)
class Pruning:
    """The record of a pruning: the dense network, scores, the selection and one cut per round.

    `scores` and `selected` refer to units of the dense network. `last` is the network that the last
    cut was made from, and `last_keep` the mask of that cut over the units of `last`.
    """

    dense: Traced
    scores: Scores
    selected: Selected
    cost: CostModel
    cuts: tuple[Cut, ...]
    last: Traced
    last_keep: ChannelMask

    @property
    def model(self) -> nn.Module:
        """The narrow network."""
        return self.cuts[-1].model

    @property
    def keep(self) -> ChannelMask:
        """The mask of kept units of the dense network."""
        return self.selected.keep

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits of the dense network, in order."""
        return tuple(edit for cut in self.cuts for edit in cut.edits)

    @property
    def absorbed(self) -> bool:
        """True if the last cut absorbed constants."""
        return self.cuts[-1].absorbed is not None

    def with_constants(self, absorb: bool) -> nn.Module:
        """Return the network of the last cut before refitting, with constants absorbed or not."""
        if absorb == self.absorbed and self.cuts[-1].refitted is None:
            return self.model
        return self.last.cut(self.last_keep, absorb=absorb, check=False).model


def prune(
    dense: Traced,
    criterion: Criterion,
    selection: Selection,
    options: CutOptions,
    data: Data | None = None,
    tune: Tune | None = None,
    track: Track | None = None,
) -> Pruning:
    """Score, select and cut a copy of a network; the dense network is left as it is.

    A selection of several rounds removes a part of the units in each, calls `tune(model, round)`
    after it and scores the network again. Every round selects among the units of the dense network,
    where removed units score lowest. The final widths are therefore those of one cut with the same
    scores. Raises ConfigError for an impossible selection, SurgeryError for a cut that does not
    fit.
    """
    cost, current, keep = dense.cost(track), dense, ChannelMask.all(dense.graph)
    criterion = criterion.for_cut(options.absorbs)
    cuts: list[Cut] = []
    notes: list[str] = []
    for rounds_left in range(selection.rounds, 0, -1):
        units = UnitMap(dense.graph, current.graph, keep)
        scores = units.dense_scores(current.scores(criterion, data))
        scored = Scored(scores, dense.graph, cost, criterion.comparable, dense.model, data)
        chosen = selection.select(scored)
        selected = check_removal(selection, chosen, dense.graph)
        goal = {n: _round_mask(selected.keep[n], keep[n], scores.get(n), rounds_left) for n in keep}
        last, last_keep = current, units.to_current(goal)
        if selection.rounds > 1 and not bool(last_keep.removed.any()):
            notes.append(f"round {len(cuts) + 1} removed nothing")
        only_known = options.only_known(scores, goal)
        is_last = rounds_left == 1
        cuts.append(_cut(current, last_keep, options, only_known, is_last, data))
        keep = units.to_dense(cuts[-1].keep)
        if rounds_left > 1:
            assert tune is not None, "several rounds train in between"
            tune(cuts[-1].model, selection.rounds - rounds_left + 1)
            current = dense.retraced(cuts[-1].model)
    final = selected.after(keep)
    final = replace(final, notes=(*final.notes, *notes))
    return Pruning(dense, scores, final, cost, tuple(cuts), last, last_keep)


def cut_once(
    traced: Traced, keep: Mapping[str, Tensor], scores: Scores, options: CutOptions
) -> Cut:
    """Cut a network to the units in `keep`, as `prune` does in its last round."""
    mask = ChannelMask.of(traced.graph, keep)
    only_known = options.only_known(scores, mask)
    return _cut(traced, mask, options, only_known, is_last=True, data=None)


def _cut(
    traced: Traced,
    keep: ChannelMask,
    options: CutOptions,
    only_known: bool,
    is_last: bool,
    data: Data | None,
) -> Cut:
    """Cut a network, and refit what is left where that is asked for.

    Biases per position rename layers, so that only the last round adds them.
    """
    result = traced.cut(
        keep,
        absorb=options.absorbs,
        check=options.check,
        per_position=options.per_position and is_last,
        only_known=only_known,
    )
    if options.reconstruct is None:
        return result
    return traced.refit(result, options.reconstruct, data, options.seed)


def _round_mask(goal: Tensor, keep: Tensor, score: Tensor | None, rounds_left: int) -> Tensor:
    """Return the mask of one group after a round; `rounds_left` includes this round.

    It removes the lowest `1 / rounds_left` of the units that are still to be removed, rounded half
    up.
    """
    candidates = (keep & ~goal).nonzero().flatten()
    if score is None or not len(candidates):
        return keep
    count = int(len(candidates) / rounds_left + 0.5)
    mask = keep.clone()
    mask[candidates[score[candidates].argsort(stable=True)[:count]]] = False
    return mask
