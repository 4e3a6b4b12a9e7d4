"""Pruning in one call: score, select, cut, check, and a result that knows what was done."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit import criteria
from prunekit.checks import choice, instance, number
from prunekit.criteria import Criterion, Scores
from prunekit.data import Data, given_data
from prunekit.errors import ConfigError, one_of
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.selection import (
    Aim,
    Global,
    LatencyTarget,
    MacsTarget,
    ParamsTarget,
    PerLayer,
    Selection,
)
from prunekit.solvers.regression import FISTA
from prunekit.surgery import Edit, narrow_optimizer, save_model
from prunekit.surgery.absorb import Absorbed
from prunekit.surgery.check import Agreement, Batch
from prunekit.surgery.cut import Cut, cut

CRITERIA = {
    "apib": criteria.APIB,
    "apoz": criteria.APoZ,
    "bn_scale": criteria.BatchNormScale,
    "fpgm": criteria.FPGM,
    "hessian": criteria.HessianDiagonal,
    "hrank": criteria.HRank,
    "l1_norm": criteria.L1Norm,
    "l2_norm": criteria.L2Norm,
    "lamp": criteria.LAMP,
    "max_cka": criteria.MaxCKA,
    "random": criteria.Random,
    "representatives": criteria.Representatives,
    "sglp": criteria.StructuredLasso,
    "stlp": partial(criteria.StructuredLasso, structure=criteria.Hierarchy(), solver=FISTA()),
    "taylor": criteria.Taylor,
}
ABSORB = (True, False, "auto", "maps")
_LISTED = 20  # groups that are printed
_CHECKED = 64  # examples of given data that a cut is checked on
_SCORED = 1000  # examples of given data that are kept for a criterion that does not say how many


@dataclass(frozen=True)
class Size:
    """Parameters, and multiply-adds of one example."""

    params: int
    macs: int


@dataclass(frozen=True, eq=False)
class Pruned:
    """A narrow copy of a network, and everything about how it came about.

    `kept` gives for every group of the dense network's `graph` the indices of its units that
    stayed, `chosen` the masks that the selection gave: blocks that were removed whole took more.
    `edits` repeat the cut on another copy; `agreement` and `absorbed` are None where they were not
    asked for; `aims` are budgets, asked and reached.
    """

    model: nn.Module
    dense: nn.Module
    graph: ChannelGraph
    kept: Mapping[str, Tensor]
    chosen: Mapping[str, Tensor]
    edits: tuple[Edit, ...]
    agreement: Agreement | None
    absorbed: Absorbed | None
    before: Size
    after: Size
    aims: tuple[Aim, ...]
    notes: tuple[str, ...]
    batch: Batch

    @property
    def masks(self) -> dict[str, Tensor]:
        """Group name -> bool mask over its units, True = kept."""
        found = {}
        for group in self.graph.groups:
            found[group.name] = torch.zeros(len(group.units), dtype=torch.bool)
            found[group.name][self.kept[group.name]] = True
        return found

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Layer -> its output channels before and after, 0 where a block was removed whole."""
        drop = self.graph.drop({name: ~mask for name, mask in self.masks.items()})
        left = {n: int((~drop[ids]).sum()) for n, ids in self.graph.outs.items()}
        before, now = ({n for n, _ in net.named_modules()} for net in (self.dense, self.model))
        left |= dict.fromkeys(left.keys() & (before - now), 0)
        return {n: (len(ids), left[n]) for n, ids in self.graph.outs.items()}

    def save(self, path: str | Path, arch: Mapping[str, Any] | None = None, **facts: Any) -> None:
        """Write a model file that `load_model` reads, with the cut to repeat; see `save_model`."""
        save_model(path, self.model, arch, self.edits, **facts)

    def narrow_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Move an optimizer of the dense network over to the narrow one, with its narrowed state.

        The same object comes back, so that schedules of its rates go on. SurgeryError when it is
        another network's, or keeps state that cannot be narrowed.
        """
        return narrow_optimizer(optimizer, self.dense, self.model, self.edits)

    def narrow_copy(self, model: nn.Module) -> nn.Module:
        """The same cut of another copy of the dense network, such as a moving average of it.

        Wrappers (`AveragedModel`, `DataParallel`) are copied with what they keep. Constants are
        absorbed if they were here: those that the copy's own channels emit.
        """
        if not isinstance(getattr(model, "module", None), nn.Module) or hasattr(
            self.dense, "module"
        ):
            return self._cut(model).model
        inside = self._cut(model.module).model
        return copy.deepcopy(model, {id(model.module): inside})

    def _cut(self, model: nn.Module) -> Cut:
        given, made = (model, self.graph, self.chosen, self.batch), self.absorbed
        maps = made is not None and made.maps
        return cut(*given, absorb=made is not None, check=False, maps=maps)

    def __str__(self) -> str:
        old, new = self.before, self.after
        sizes = _change("parameters", old.params, new.params), _change("MACs", old.macs, new.macs)
        lines = [
            f"{type(self.model).__name__}: {', '.join(sizes)}",
            *(str(part) for part in (self.agreement, self.absorbed) if part is not None),
            *(f"note: {note}" for note in self.notes),
        ]
        rows = [(g.name, len(g.units), len(self.kept[g.name])) for g in self.graph.groups]
        width = max([5, *(len(name) for name, _, _ in rows[:_LISTED])])
        lines.append(f"{'group':<{width}}  units   kept")
        lines += [f"{name:<{width}} {units:>6} {kept:>6}" for name, units, kept in rows[:_LISTED]]
        if len(rows) > _LISTED:
            lines.append(f"and {len(rows) - _LISTED} more groups")
        return "\n".join(lines)


def prune(
    model: nn.Module,
    example: Batch,
    *,
    keep: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    selection: Selection | None = None,
    criterion: str | Criterion = "l1_norm",
    scope: str = "local",
    round_to: int = 1,
    ignore: Sequence[str] = (),
    layers: Mapping[str, float] | None = None,
    data: Data | Iterable[tuple[Tensor, Tensor]] | None = None,
    absorb: bool | str = "auto",
    check: bool = True,
    over_norms: bool = False,
    on_miss: str = "refuse",
) -> Pruned:
    """A narrowed copy of a network, whose own parameters and mode stay as they are.

    Exactly one of four shares in (0, 1] says what is kept: `keep` of the channels of every group
    (in the scope `global`: of all of them together), or `macs`, `params` or `latency` of that
    budget, by the same share everywhere (`global`: wherever scores are lowest, over the mean of
    their group unless the criterion's compare as they are). `layers` are other shares for patterns
    of names, `ignore` patterns of layers that keep all. Widths are multiples of `round_to`.
    A budget out of reach is refused with the range there is; `on_miss="nearest"` takes the nearest.
    Any other rule is a `selection` in place of the share, such as `Slimming(0.7)`, with settings of
    its own for these.
    `criterion` is a name or an object; some need `data`, a prunekit Data or batches of (inputs,
    labels). `example` is an input, or a tuple of them. The cut is checked against the silenced
    network unless `check` is off. What removed channels emit is absorbed by the next layer; "auto"
    leaves that out where only units that score exactly zero went, and "maps" is exact at padded
    borders too, by a bias for every position: for inputs of this size only. With `over_norms`
    channels that a layer norm runs over can go too; that is not exact, and the difference is
    reported.

    Raises ConfigError for settings, TraceError, SurgeryError.
    """
    judge = criterion_named(criterion)
    shares = {"keep": keep, "macs": macs, "params": params, "latency": latency}
    common = {"round_to": round_to, "ignore": ignore}
    if selection is None:
        selection = _selection(shares, scope, layers, common, judge.comparable, on_miss)
    else:
        rules = {"scope": scope, "layers": layers, **common, "on_miss": on_miss}
        _check_alone(selection, shares | rules)
    known = _data(data, judge)
    choice("over_norms", over_norms, (True, False))
    graph = ChannelGraph.trace(model, example, over_norms=over_norms)
    _check_numbers(model, example)
    device = next((str(p.device) for p in model.parameters()), "cpu")
    batch = _placed(example if known is None else known.inputs(_CHECKED), device)
    scores = judge.scores(model, graph, known, device)
    cost = selection.costs(model, graph, example, device)
    masks = _chosen(selection, scores, graph, cost, shares)
    wish = absorbs(absorb, scores, masks)
    made = cut(model, graph, masks, batch, absorb=wish, check=check, maps=absorb == "maps")
    return Pruned(
        model=made.model,
        dense=model,
        graph=graph,
        chosen=masks,
        kept={name: mask.nonzero().flatten() for name, mask in made.keep.items()},
        edits=made.edits,
        agreement=made.agreement,
        absorbed=made.absorbed,
        **_sizes(model, made, graph, example),
        aims=selection.aims(made.keep, scores, graph, cost),
        notes=(
            *graph.notes,
            *made.notes,
            *selection.notes(made.keep, scores, graph, cost),
            *(made.absorbed.notes if made.absorbed else ()),
        ),
        batch=batch,
    )


def criterion_named(criterion: str | Criterion) -> Criterion:
    """The criterion of that name with its default settings; ConfigError lists the names."""
    if isinstance(criterion, Criterion):
        return criterion
    if criterion not in CRITERIA:
        raise ConfigError(f"criterion={criterion!r} is unknown; {one_of(criterion, CRITERIA)}")
    return CRITERIA[criterion]()


def absorbs(wish: bool | str, scores: Scores, keep: Mapping[str, Tensor]) -> bool:
    """Whether to absorb constants; "auto": where a unit goes whose score is not exactly zero."""
    choice("absorb", wish, ABSORB)
    if wish != "auto":
        return bool(wish)
    return any(bool(score[~keep[name].to(score.device)].any()) for name, score in scores.items())


def _check_alone(selection: Selection, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where something is given that a selection would not heed."""
    instance("selection", selection, Selection)
    usual = {name: setting.default for name, setting in signature(prune).parameters.items()}
    beside = [n for n, value in settings.items() if value != usual[n] and (value or usual[n])]
    if beside:
        raise ConfigError(
            f"{', '.join(beside)} beside selection={type(selection).__name__}(...): a selection "
            "says by itself what is kept; give that to it, or leave it out"
        )


def _selection(
    shares: Mapping[str, float | None],
    scope: str,
    layers: Mapping[str, float] | None,
    common: Mapping[str, Any],
    comparable: bool,
    on_miss: str,
) -> Selection:
    asked = {name: share for name, share in shares.items() if share is not None}
    if len(asked) != 1:
        given = ", ".join(f"{name}={share}" for name, share in asked.items()) or "none of them"
        raise ConfigError(
            f"give exactly one of keep, macs, params and latency, or a selection, not {given}"
        )
    choice("scope", scope, ("local", "global"))
    ((name, share),) = asked.items()
    number(name, share, above=0, at_most=1)
    if layers is not None and (name != "keep" or scope != "local"):
        raise ConfigError(
            "layers={...} are shares of channels: they go with keep=... and scope='local'"
        )
    choice("on_miss", on_miss, ("refuse", "nearest"))
    if name == "keep" and scope == "local":
        return PerLayer(share, layers=layers or {}, **common)
    if name == "keep":
        return Global(share, on_miss=on_miss, **common)
    target = {"macs": MacsTarget, "params": ParamsTarget, "latency": LatencyTarget}[name]
    scale = {"normalise": None} if comparable else {}  # else by the mean of each group
    return target(share, scope=scope, on_miss=on_miss, **scale, **common)


def _chosen(
    selection: Selection,
    scores: Scores,
    graph: ChannelGraph,
    cost: CostModel,
    shares: Mapping[str, float | None],
) -> dict[str, Tensor]:
    """What the selection keeps; its errors speak of the arguments of `prune`."""
    try:
        return selection.choose(scores, graph, cost)
    except ConfigError as error:
        name = next((name for name, share in shares.items() if share is not None), None)
        if name is None:
            raise
        told = str(error).replace("selection.keep", name)
        told = told.replace(", lower selection.min_keep", "").replace("selection.", "")
        raise ConfigError(told) from error


def _data(data: Data | Iterable[tuple[Tensor, Tensor]] | None, judge: Criterion) -> Data | None:
    if data is None or isinstance(data, Data):
        return data
    return given_data(data, int(getattr(judge, "samples", _SCORED)))


def _check_numbers(model: nn.Module, example: Batch) -> None:
    """Raise ConfigError for tensors on the meta device, which are shapes only."""
    inputs = [example] if isinstance(example, Tensor) else [*example]
    for name, tensors in (("model", [*model.parameters()]), ("example", inputs)):
        if any(tensor.is_meta for tensor in tensors):
            raise ConfigError(
                f"the {name} is on the meta device, which holds shapes only; give it numbers "
                "(ChannelGraph.trace needs none)"
            )


def _placed(batch: Batch, device: str) -> Batch:
    return batch.to(device) if isinstance(batch, Tensor) else tuple(x.to(device) for x in batch)


def _sizes(model: nn.Module, made: Cut, graph: ChannelGraph, example: Batch) -> dict[str, Size]:
    """Parameters are counted, absorbed biases among them; multiply-adds are the cost model's."""
    cost = CostModel(model, graph)
    after = cost.macs(graph.drop({name: ~mask for name, mask in made.keep.items()}))
    if made.skipped:  # whole layers are gone, which no choice of units says
        after = CostModel(made.model, ChannelGraph.trace(made.model, example)).macs()
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model, made.model)]
    return {"before": Size(sizes[0], cost.macs()), "after": Size(sizes[1], after)}


def _change(name: str, before: int, after: int) -> str:
    return f"{before:,} -> {after:,} {name} ({after / before:.1%})" if before else f"no {name}"
