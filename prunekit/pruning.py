"""Pruning in one call: score, select, cut, check, and a result that knows what was done."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit import engine
from prunekit.criteria import CRITERIA, Criterion
from prunekit.data import Data, given_data
from prunekit.engine import CHECKED, CutOptions, Pruning, Traced
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.graph.arguments import Example
from prunekit.graph.wrappers import network_in, rewrapped
from prunekit.measure import CostModel
from prunekit.modes import random_states_kept, unchanged
from prunekit.selection import (
    SELECTIONS,
    Aim,
    Global,
    LatencyTarget,
    MacsTarget,
    ParamsTarget,
    PerLayer,
    Selection,
)
from prunekit.surgery import Edit, narrow_optimizer, save_model
from prunekit.surgery.bias_compensation import Absorbed
from prunekit.surgery.cut import Cut
from prunekit.surgery.equivalence import Agreement
from prunekit.validate import choice, number

_LISTED = 20  # groups that are printed
_SCORED = 1000  # examples of given data that are kept for a criterion that does not say how many


@dataclass(frozen=True)
class Size:
    """Parameters, and multiply-adds of one example."""

    params: int
    macs: int


@dataclass(frozen=True, eq=False)
class Pruned:
    """A narrow copy of a network, and everything about how it came about.

    `dense` is the network that was given, `model` the narrow one, in the same wrappers. `agreement`
    and `absorbed` are None where they were not asked for.
    """

    pruning: Pruning
    dense: nn.Module
    model: nn.Module

    @property
    def graph(self) -> ChannelGraph:
        """The channel graph of the dense network."""
        return self.pruning.dense.graph

    @property
    def masks(self) -> ChannelMask:
        """Group name -> bool mask over its units, True = kept."""
        return self.pruning.keep

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """Group name -> the indices of its units that are kept."""
        return self.masks.indices

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What was done, in order: on another copy of the dense network they repeat the cut."""
        return self.pruning.edits

    @property
    def agreement(self) -> Agreement | None:
        """How far the narrow network is from the silenced one."""
        return self._cut.agreement

    @property
    def absorbed(self) -> Absorbed | None:
        """Which constants were moved, and by how much the outputs moved."""
        return self._cut.absorbed

    @property
    def aims(self) -> tuple[Aim, ...]:
        """Budgets, asked and reached."""
        return self.pruning.selected.aims

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know, a sentence each."""
        absorbed = self.absorbed.notes if self.absorbed else ()
        return (*self.graph.notes, *self._cut.notes, *self.pruning.selected.notes, *absorbed)

    @property
    def before(self) -> Size:
        """The size of the dense network."""
        return self._sizes[0]

    @property
    def after(self) -> Size:
        """The size of the narrow network; absorbed biases are among its parameters."""
        return self._sizes[1]

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Layer -> its output channels before and after, 0 where a block was removed whole."""
        removed = self.masks.removed
        left = {n: int((~removed[ids]).sum()) for n, ids in self.graph.outs.items()}
        before, now = ({n for n, _ in net.named_modules()} for net in self._networks)
        left |= dict.fromkeys(left.keys() & (before - now), 0)
        return {n: (len(ids), left[n]) for n, ids in self.graph.outs.items()}

    def save(self, path: str | Path, arch: Mapping[str, Any] | None = None, **facts: Any) -> None:
        """Write a model file that `load_model` reads, with the cut to repeat; see `save_model`."""
        save_model(path, self.pruning.model, arch, self.edits, **facts)

    def narrow_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Move an optimizer of the dense network over to the narrow one, with its narrowed state.

        The same object comes back, so that schedules of its rates go on. SurgeryError when it is
        another network's, or keeps state that cannot be narrowed.
        """
        return narrow_optimizer(optimizer, *self._networks, self.edits)

    def narrow_copy(self, model: nn.Module) -> nn.Module:
        """The same cut of another copy of the dense network, such as a moving average of it.

        Wrappers (`AveragedModel`, `DataParallel`) are copied with what they keep. Constants are
        absorbed if they were here: those that the copy's own channels emit.
        """
        network = network_in(model)
        inner = getattr(network, "module", None)
        if isinstance(inner, nn.Module) and not hasattr(self.pruning.dense.model, "module"):
            narrow = copy.deepcopy(network, {id(inner): self.narrow_copy(inner)})
        else:
            narrow = self._again(network)
        return rewrapped(model, narrow)

    @property
    def _networks(self) -> tuple[nn.Module, nn.Module]:
        """The dense network and the narrow one, out of their wrappers."""
        return self.pruning.dense.model, self.pruning.model

    @property
    def _cut(self) -> Cut:
        return self.pruning.cuts[-1]

    @cached_property
    def _sizes(self) -> tuple[Size, Size]:
        """Parameters are counted; multiply-adds are the cost model's."""
        dense, narrow = self._networks
        cost = CostModel(dense, self.graph)
        after = cost.macs(self.masks.removed)
        if self._cut.skipped:  # whole layers are gone, which no choice of units says
            graph = ChannelGraph.trace(narrow, self.pruning.dense.example)
            after = CostModel(narrow, graph).macs()
        params = [sum(p.numel() for p in net.parameters()) for net in (dense, narrow)]
        return Size(params[0], cost.macs()), Size(params[1], after)

    def _again(self, model: nn.Module) -> nn.Module:
        maps = self.absorbed is not None and self.absorbed.maps
        copied = Traced(model, self.graph, self.pruning.dense.example, self.pruning.last.batch)
        absorb = self.absorbed is not None
        return copied.cut(self.pruning.step, absorb=absorb, check=False, maps=maps).model

    def __str__(self) -> str:
        old, new = self.before, self.after
        sizes = _change("parameters", old.params, new.params), _change("MACs", old.macs, new.macs)
        lines = [
            f"{type(self.pruning.model).__name__}: {', '.join(sizes)}",
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
    example: Example,
    *,
    keep: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    selection: Selection | str | None = None,
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
    """A narrowed copy of a network, which itself stays as it is to the last bit.

    Exactly one of four shares in (0, 1] says what is kept: `keep` of the channels of every group
    (in the scope `global`: of all of them together), or `macs`, `params` or `latency` of that
    budget, by the same share everywhere (`global`: wherever scores are lowest, over the mean of
    their group unless the criterion's compare as they are). `layers` are other shares for patterns
    of names, `ignore` patterns of layers that keep all. Widths are multiples of `round_to`.
    A budget out of reach is refused with the range there is; `on_miss="nearest"` takes the nearest.
    Any other rule is a `selection` in place of the share, such as `Slimming(0.7)`, with settings of
    its own for these.
    `criterion` is a name or an object; some need `data`, a prunekit Data or batches of (inputs,
    labels). `example` is an input, a tuple of arguments or a dict of them by name; tensors may lie
    in lists, tuples and dicts among these. A network in wrappers (DataParallel,
    DistributedDataParallel, torch.compile) is taken out of them, and the copy put into the same.
    The cut is checked against the silenced network unless `check` is off. What removed channels
    emit is absorbed by the next layer; "auto" leaves that out where only units that score exactly
    zero went, and "maps" is exact at padded borders too, by a bias for every position: for inputs
    of this size only. With `over_norms` channels that a layer norm runs over can go too; that is
    not exact, and the difference is reported.

    Raises ConfigError for settings, TraceError, SurgeryError.
    """
    criterion = CRITERIA.named(criterion, Criterion)
    shares = {"keep": keep, "macs": macs, "params": params, "latency": latency}
    common = {"round_to": round_to, "ignore": ignore}
    if selection is None:
        selection = _selection(shares, scope, layers, common, on_miss)
    else:
        selection = SELECTIONS.named(selection, Selection)
        rules = {"scope": scope, "layers": layers, **common, "on_miss": on_miss}
        _check_alone(selection, shares | rules)
    choice("over_norms", over_norms, (True, False))
    options = CutOptions(absorb, check)
    with random_states_kept():  # a loader that shuffles draws from the global numbers, too
        data = _data(data, criterion)
        dense = Traced.of(model, example, data and data.inputs(CHECKED), over_norms)
        with unchanged(dense.model), _speaking_of(shares):
            pruning = engine.prune(dense, criterion, selection, options, data)
    return Pruned(pruning, model, rewrapped(model, pruning.model))


def _check_alone(selection: Selection, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError where something is given that a selection would not heed."""
    if selection.rounds > 1:
        raise ConfigError(
            f"selection.rounds={selection.rounds} trains between the rounds, which needs a stage "
            "of a run; here give rounds=1"
        )
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
    return target(share, scope=scope, on_miss=on_miss, **common)


@contextmanager
def _speaking_of(shares: Mapping[str, float | None]) -> Iterator[None]:
    """Inside it, errors of a selection speak of the arguments of `prune`."""
    try:
        yield
    except ConfigError as error:
        name = next((name for name, share in shares.items() if share is not None), None)
        if name is None:
            raise
        told = str(error).replace("selection.keep", name)
        told = told.replace(", lower selection.min_keep", "").replace("selection.", "")
        raise ConfigError(told) from error


def _data(data: Data | Iterable[tuple[Tensor, Tensor]] | None, criterion: Criterion) -> Data | None:
    if data is None or isinstance(data, Data):
        return data
    return given_data(data, int(getattr(criterion, "samples", _SCORED)))


def _change(name: str, before: int, after: int) -> str:
    return f"{before:,} -> {after:,} {name} ({after / before:.1%})" if before else f"no {name}"
