"""Pruning in one call: score, select, cut and check, and return a record of all of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, IterableDataset
from torch.utils.data import Dataset as Examples

from prunekit import engine
from prunekit.criteria import CRITERIA, Criterion
from prunekit.data import Data, data_from_batches
from prunekit.engine import CHECKED, CutOptions, Pruning, Traced
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph, ChannelMask
from prunekit.graph.arguments import Example
from prunekit.graph.wrappers import network_in, rewrapped
from prunekit.measure import CostModel
from prunekit.modes import random_states_kept, unchanged
from prunekit.selection import (
    SELECTIONS,
    BudgetResult,
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
from prunekit.surgery.distance import Distance
from prunekit.surgery.equivalence import Agreement
from prunekit.surgery.reconstruction import Reconstruction, Refitted, reconstruction_of
from prunekit.validate import choice, number

_LISTED = 20  # groups that are printed
_CARRIED = (
    "optimizers and copies that narrow_optimizer and narrow_copy narrow keep what they knew of "
    "the weights before they were refitted"
)
_BATCH = 100  # examples of a torch data set that are read at once
_SAMPLES = 1000  # examples that are read from batches for a criterion without its own number


@dataclass(frozen=True)
class Size:
    """The number of parameters, and of multiply-adds for one example."""

    params: int
    macs: int


@dataclass(frozen=True, eq=False)
class Pruned:
    """A narrow copy of a network and the record of how it was made.

    `dense` is the original network and `model` the narrow one, in the same wrappers. `agreement`,
    `distance` and `absorbed` are None where the check or the absorption was off.
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
        """Masks over the units of every group, by group name, True = kept."""
        return self.pruning.keep

    @property
    def kept(self) -> Mapping[str, Tensor]:
        """The indices of the kept units of every group, by group name."""
        return self.masks.indices

    @property
    def edits(self) -> tuple[Edit, ...]:
        """All edits, in order; they repeat the cut on another copy of the dense network."""
        return self.pruning.edits

    @property
    def agreement(self) -> Agreement | None:
        """The distance between the narrow network and the silenced one."""
        return self._cut.agreement

    @property
    def distance(self) -> Distance | None:
        """The distance between the narrow network, constants absorbed, and the dense one."""
        return self._cut.distance

    @property
    def absorbed(self) -> Absorbed | None:
        """The constants that were moved into biases, and the resulting change of the outputs."""
        return self._cut.absorbed

    @property
    def refitted(self) -> Refitted | None:
        """The layers that were refitted behind the last cut; None where none was asked for."""
        return self._cut.refitted

    @property
    def budgets(self) -> tuple[BudgetResult, ...]:
        """The requested and the achieved amount of every budget."""
        return self.pruning.selected.budgets

    @property
    def aims(self) -> tuple[BudgetResult, ...]:
        """The former name of `budgets`, which scripts may still use."""
        return self.budgets

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on everything that a user should know about this result."""
        absorbed = self.absorbed.notes if self.absorbed else ()
        refitted = (*self.refitted.notes, _CARRIED) if self.refitted else ()
        selected = self.pruning.selected.notes
        return (*self.graph.notes, *self._cut.notes, *selected, *absorbed, *refitted)

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
        """Output channels of every layer before and after; 0 in blocks that were removed whole."""
        removed = self.masks.removed
        after = {n: int((~removed[ids]).sum()) for n, ids in self.graph.outs.items()}
        dense, narrow = ({n for n, _ in net.named_modules()} for net in self._networks)
        after |= dict.fromkeys(after.keys() & (dense - narrow), 0)
        return {n: (len(ids), after[n]) for n, ids in self.graph.outs.items()}

    def save(self, path: str | Path, arch: Mapping[str, Any] | None = None, **facts: Any) -> None:
        """Write a model file with the edits, which `load_model` reads; see `save_model`."""
        save_model(path, self.pruning.model, arch, self.edits, **facts)

    def narrow_optimizer(self, optimizer: Optimizer) -> Optimizer:
        """Move an optimizer of the dense network, with its state, to the narrow one and return it.

        The optimizer is changed in place, so that learning-rate schedules continue. Raises
        SurgeryError if it belongs to another network or has state that cannot be narrowed.
        """
        return narrow_optimizer(optimizer, *self._networks, self.edits)

    def narrow_copy(self, model: nn.Module) -> nn.Module:
        """Cut another copy of the dense network alike, such as a moving average of its weights.

        Wrappers (`AveragedModel`, `DataParallel`) are copied with their state. If this result
        absorbed constants, those of the copy's own channels are absorbed too. Layers are not
        refitted: weights of the copy stay its own.
        """
        network = network_in(model)
        inner = getattr(network, "module", None)
        if isinstance(inner, nn.Module) and not hasattr(self.pruning.dense.model, "module"):
            narrow = copy.deepcopy(network, {id(inner): self.narrow_copy(inner)})
        else:
            narrow = self._repeat_cut(network)
        return rewrapped(model, narrow)

    @property
    def _networks(self) -> tuple[nn.Module, nn.Module]:
        """The dense network and the narrow one, without wrappers."""
        return self.pruning.dense.model, self.pruning.model

    @property
    def _cut(self) -> Cut:
        return self.pruning.cuts[-1]

    @cached_property
    def _sizes(self) -> tuple[Size, Size]:
        """The sizes of the dense and the narrow network; the cost model gives multiply-adds."""
        dense, narrow = self._networks
        cost = CostModel(dense, self.graph)
        after = cost.macs(self.masks.removed)
        if self._cut.skipped:  # whole layers were removed, which no mask of units expresses
            graph = ChannelGraph.trace(narrow, self.pruning.dense.example)
            after = CostModel(narrow, graph).macs()
        params = [sum(p.numel() for p in net.parameters()) for net in (dense, narrow)]
        return Size(params[0], cost.macs()), Size(params[1], after)

    def _repeat_cut(self, model: nn.Module) -> nn.Module:
        traced = Traced(model, self.graph, self.pruning.dense.example, self.pruning.last.batch)
        absorb = self.absorbed is not None
        narrow = traced.cut(
            self.pruning.last_keep,
            absorb=absorb,
            check=False,
            per_position=self.absorbed is not None and self.absorbed.per_position,
        ).model
        for edit in self.refitted.edits if self.refitted else ():  # parameters stay in line
            edit.apply(narrow)
        return narrow

    def __str__(self) -> str:
        old, new = self.before, self.after
        sizes = _change("parameters", old.params, new.params), _change("MACs", old.macs, new.macs)
        lines = [
            f"{type(self.pruning.model).__name__}: {', '.join(sizes)}",
            *(
                str(part)
                for part in (self.agreement, self.absorbed, self.refitted, self.distance)
                if part is not None
            ),
            *(f"note: {note}" for note in self.notes),
        ]
        groups = [(g.name, len(g.units), len(self.kept[g.name])) for g in self.graph.groups]
        width = max([5, *(len(name) for name, _, _ in groups[:_LISTED])])
        lines.append(f"{'group':<{width}}  units   kept")
        lines += [f"{name:<{width}} {units:>6} {kept:>6}" for name, units, kept in groups[:_LISTED]]
        if len(groups) > _LISTED:
            lines.append(f"and {len(groups) - _LISTED} more groups")
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
    reconstruct: Reconstruction | str | None = "auto",
    check: bool = True,
    over_norms: bool = False,
    on_miss: str = "refuse",
) -> Pruned:
    """Return a narrow copy of a network; the network itself is left as it is to the last bit.

    Exactly one of four shares in (0, 1] says how much is kept: `keep` of the channels of every
    group (with the scope `global`: of all groups together), or `macs`, `params` or `latency` of the
    dense network's budget. The budget is met by the same share everywhere, or with `global`
    wherever scores are lowest; scores are divided by the mean of their group unless those of the
    criterion are comparable between layers. `layers` are other shares for patterns of names, and
    layers that match a pattern in `ignore` keep all channels. Widths are multiples of `round_to`. A
    budget out of reach is refused with the possible range; `on_miss="nearest"` takes the nearest.
    Instead of a share, `selection` gives any other rule with its own settings, such as
    `Slimming(0.7)`.

    `criterion` is a name or an object; some need `data`: a prunekit Data, a torch data set, or
    batches of (inputs, labels). `example` is an input, a tuple of arguments or a dict of them by
    name, possibly nested in lists, tuples and dicts. A network in wrappers (DataParallel,
    DistributedDataParallel, torch.compile) is unwrapped, and the copy is wrapped alike.

    The cut is checked against the silenced network, and its distance to the dense one measured,
    unless `check` is off. Constants of removed channels are absorbed by the next layer; with "auto"
    only those that are known exactly if all removed units score zero. "maps" is exact at padded
    borders too, by a bias for every position, for inputs of this size only. With `over_norms`
    channels under a layer norm can be removed too; that is not exact, and the difference is
    reported.

    Where there is `data`, the layers behind the cut are then refitted on it, without labels, so
    that they put out again what those of the dense network do (`reconstruct="least_squares"`). None
    or "none" leaves them as they are.

    Raises ConfigError for settings, TraceError and SurgeryError.
    """
    criterion = CRITERIA.resolve(criterion, Criterion)
    shares = {"keep": keep, "macs": macs, "params": params, "latency": latency}
    common = {"round_to": round_to, "ignore": ignore}
    if selection is None:
        rule = _selection(shares, scope, layers, common, on_miss)
    else:
        rule = SELECTIONS.resolve(selection, Selection)
        others = {"scope": scope, "layers": layers, **common, "on_miss": on_miss}
        _check_alone(rule, shares | others)
    choice("over_norms", over_norms, (True, False))
    has_images = data.train.size > 0 if isinstance(data, Data) else data is not None
    refitting = reconstruction_of(reconstruct, has_images and absorb != "maps")
    options = CutOptions(absorb, check, refitting)
    with random_states_kept():  # a loader that shuffles draws from the global generator, too
        dataset = _as_data(data, criterion, refitting)
        inputs = None if dataset is None else dataset.inputs(CHECKED)
        dense = Traced.of(model, example, inputs, over_norms)
        with unchanged(dense.model), _renamed_settings(shares):
            pruning = engine.prune(dense, criterion, rule, options, dataset)
    return Pruned(pruning, model, rewrapped(model, pruning.model))


def _check_alone(selection: Selection, settings: Mapping[str, Any]) -> None:
    """Raise ConfigError for arguments of `prune` that a selection object would ignore."""
    if selection.rounds > 1:
        raise ConfigError(
            f"selection.rounds={selection.rounds} trains between the rounds, which needs a stage "
            "of a run; here give rounds=1"
        )
    defaults = {name: setting.default for name, setting in signature(prune).parameters.items()}
    ignored = [
        name
        for name, value in settings.items()
        if value != defaults[name] and (value or defaults[name])
    ]
    if ignored:
        raise ConfigError(
            f"{', '.join(ignored)} beside selection={type(selection).__name__}(...): a selection "
            "says by itself what is kept; give that to it, or leave it out"
        )


def _selection(
    shares: Mapping[str, float | None],
    scope: str,
    layers: Mapping[str, float] | None,
    common: Mapping[str, Any],
    on_miss: str,
) -> Selection:
    requested = {name: share for name, share in shares.items() if share is not None}
    if len(requested) != 1:
        listing = ", ".join(f"{name}={share}" for name, share in requested.items())
        alone = layers is not None and not requested
        raise ConfigError(
            "give exactly one of keep, macs, params and latency, or a selection, not "
            f"{listing or 'none of them'}"
            f"{'; keep=1 leaves all but the layers named in layers whole' if alone else ''}"
        )
    choice("scope", scope, ("local", "global"))
    ((name, share),) = requested.items()
    number(name, share, above=0, at_most=1)
    if layers is not None and (name != "keep" or scope != "local"):
        beside = f"{name}={share}" if name != "keep" else f"scope={scope!r}"
        raise ConfigError(
            f"layers={{...}} beside {beside}: shares by layer are shares of channels; give that of "
            f"all other layers, keep=..., in place of {beside}, or leave layers out"
        )
    choice("on_miss", on_miss, ("refuse", "nearest"))
    if name == "keep" and scope == "local":
        return PerLayer(share, layers=layers or {}, **common)
    settings: dict[str, Any] = {**common, "on_miss": on_miss}
    if name == "keep":
        return Global(share, **settings)
    target = {"macs": MacsTarget, "params": ParamsTarget, "latency": LatencyTarget}[name]
    return target(share, **settings | {"scope": scope})


@contextmanager
def _renamed_settings(shares: Mapping[str, float | None]) -> Iterator[None]:
    """Let errors of a selection name the arguments of `prune` inside the context."""
    try:
        yield
    except ConfigError as error:
        name = next((name for name, share in shares.items() if share is not None), None)
        if name is None:
            raise
        message = str(error).replace("selection.keep", name)
        message = message.replace(", lower selection.min_keep", "").replace("selection.", "")
        raise ConfigError(message) from error


def _as_data(
    data: Data | Iterable[tuple[Tensor, Tensor]] | None,
    criterion: Criterion,
    reconstruct: Reconstruction | None,
) -> Data | None:
    if data is None or isinstance(data, Data):
        return data
    if isinstance(data, Examples) and not isinstance(data, IterableDataset):
        order = torch.Generator().manual_seed(0)  # sets are often sorted by class
        data = DataLoader(data, batch_size=_BATCH, shuffle=True, generator=order)
    needed = (getattr(criterion, "samples", _SAMPLES), getattr(reconstruct, "images", 0))
    return data_from_batches(data, int(max(needed)))


def _change(name: str, before: int, after: int) -> str:
    return f"{before:,} -> {after:,} {name} ({after / before:.1%})" if before else f"no {name}"
