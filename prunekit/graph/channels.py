"""Which channels of a network hang together, found by running it on labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import listed
from prunekit.graph import ops  # noqa: F401  (fills the table of operations)
from prunekit.graph.arguments import Arguments, Example, input_of, with_input
from prunekit.graph.discovery import Dependencies
from prunekit.graph.dress import validate_copies
from prunekit.graph.layers import channel_dim, is_weighted, layer_named
from prunekit.graph.mask import flags
from prunekit.graph.ops.activations import is_relu
from prunekit.graph.partition import FROZEN, Partition
from prunekit.graph.recording.twin import copy_network
from prunekit.graph.recording.runs import record_passes
from prunekit.graph.recording.steps import Recording
from prunekit.graph.rehearsal import validate
from prunekit.graph.wrappers import network_in
from prunekit.modes import random_states_kept

_INEXACT = (
    "normed over channels that can go on request (over_norms): where some go the statistics of the "
    "others change, so the narrow network is not exactly the silenced one"
)


@dataclass(frozen=True, eq=False)
class Group:
    """Units that stand side by side in the outputs of the same layers.

    `units` are ids, in the channel order of the first producer, `name`. `producers` are all
    convolutions and linear layers whose output channels belong to the units, in order of execution,
    depthwise convolutions included. Channels behind a `ChannelSelector` are units of their own,
    named after it; they have no producers.
    """

    name: str
    units: Tensor
    producers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The removable units of a network and where each of them sits.

    `ins` and `outs` give the unit of every input and output channel of a layer, 0 where it cannot
    be removed; layers that work per channel (norms, activations) have the same on both sides.
    `shapes` are output shapes for one example. `uses` says at how many positions the weights of a
    convolution or linear layer are applied to one example, over all its calls; `fixed_macs` are the
    multiply-adds of all other weights.
    `tensors` are parameters and buffers that a forward uses by itself, with a vector of units, or
    None, for each dimension; `picks` are those that hold indices, with the units that they pick
    from. `functional` are layers whose weights are given to a function, so that
    no hook sees them; such a weight may be a parameter of the user's own, whose name it then has.
    `frozen` says for every layer with channels that stay why they do, `notes` the same in
    sentences, without what leaves the network. `inexact` are norms over channels that were followed
    because `trace` was asked to; a note names them. Unit ids run from 1 to `count` - 1.
    `recordings` are the runs that this was found in, evaluation mode first; `rectified` are the
    units of the channels (dimension 1) at every ReLU of it in order, None where there are none.
    """

    groups: tuple[Group, ...]
    ins: Mapping[str, Tensor]
    outs: Mapping[str, Tensor]
    shapes: Mapping[str, tuple[int, ...]]
    uses: Mapping[str, int]
    tensors: Mapping[str, tuple[Tensor | None, ...]]
    picks: Mapping[str, Tensor]
    functional: Collection[str]
    fixed_macs: int
    frozen: Mapping[str, str]
    inexact: tuple[str, ...]
    notes: tuple[str, ...]
    count: int
    recordings: tuple[Recording, ...] = ()
    rectified: tuple[Tensor | None, ...] = ()

    @classmethod
    def trace(cls, model: nn.Module, example: Example, over_norms: bool = False) -> ChannelGraph:
        """Run `model` on labels, as in eval and in train mode; the model itself is not touched.

        Where its forward goes by flags or by the size of its inputs, the other sides are run too.
        Names are those inside its wrappers (DataParallel, torch.compile), where it is in some.

        Of `example` only shapes and types are used; costs are those of eval mode. A layer norm over
        channels freezes them, since its statistics would change; with `over_norms` they can be
        removed, and the narrow network is then another function than the silenced one. Raises
        TraceError where the forward cannot be followed or the example does not fit.
        """
        model = network_in(model)
        with random_states_kept(), torch.no_grad():
            runs = record_passes(model, Arguments.of(example))
            recordings = [one.recording for one in runs]
            deps = Dependencies(runs[0].network or copy_network(model), recordings, over_norms)
            deps.play()
            validate(deps)
            validate_copies(model, runs, deps)
        return _finish(deps)

    def drop(self, chosen: Mapping[str, Tensor]) -> Tensor:
        """Turn masks over the units of groups (True: remove) into one mask over unit ids."""
        return flags(self, chosen)

    def emptied(self, drop: Tensor) -> tuple[str, ...]:
        """The layers that would lose all of their input or all of their output channels.

        That can happen to a layer whose group keeps units, where a group spans several layers of
        which each has only some of the units (branches that are concatenated, then added to).
        """
        drop = drop.cpu()
        return tuple(
            name
            for name, units in self.ins.items()
            if bool(drop[units].all()) or bool(drop[self.outs[name]].all())
        )

    def table(self) -> list[tuple[str, str, str, str]]:
        """A line for every group: its name, its units, who makes them, who reads them."""
        return [
            (
                group.name,
                str(len(group.units)),
                listed(group.producers or (group.name,)),
                listed([n for n in self.uses if bool(torch.isin(self.ins[n], group.units).any())]),
            )
            for group in self.groups
        ]

    def frozen_lines(self) -> list[str]:
        """A line for every reason why channels stay, with the layers it is about."""
        layers: dict[str, list[str]] = {}
        for name, why in self.frozen.items():
            layers.setdefault(why, []).append(name)
        return [f"{listed(names)}: {why}" for why, names in layers.items()]

    def __str__(self) -> str:
        rows = [("group", "units", "made by", "read by"), *self.table()]
        sizes = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(n) for cell, n in zip(row, sizes, strict=False)), row[3]])
            for row in rows
        ]
        return "\n".join([*lines, *(f"stays: {line}" for line in self.frozen_lines())])

    @contextmanager
    def silencer(self, model: nn.Module, drop: Tensor) -> Iterator[None]:
        """Inside it, every layer of `model` sees zeros in place of dropped input channels."""
        with ExitStack() as stack:
            for name, units in self.ins.items():
                layer, gone = layer_named(model, name), drop.cpu()[units]
                if not bool(gone.any()) or not is_weighted(layer):
                    continue
                if name in self.functional:
                    stack.enter_context(_without_inputs(layer, gone))
                else:
                    hook = layer.register_forward_pre_hook(_silence(gone), with_kwargs=True)
                    stack.callback(hook.remove)
            yield


def _finish(deps: Dependencies) -> ChannelGraph:
    """Number the units by group and channel."""
    roots = deps.parts.roots()
    members = _groups(deps, roots)
    ids = torch.zeros(len(roots), dtype=torch.long)
    units_of: dict[str, Tensor] = {}
    count = 1
    for name, units in members.items():
        units_of[name] = torch.arange(count, count + len(units))
        ids[units] = units_of[name]
        count += len(units)
    final = ids[roots]
    ins = {name: final[labels] for name, labels in deps.ins.items()}
    outs = {name: final[labels] for name, labels in deps.outs.items()}
    producers = _producers(deps, units_of, outs, count)
    for name, units in members.items():
        width = sum(len(outs[layer]) for layer in producers[name])
        if len(units) == 1 and width > 1:
            why = "its channels hang together as one unit, so none can go"
            deps.layers_of_reason.setdefault(why, {})[name] = None
    inexact = tuple(name for name in deps.inexact if bool(ins[name].any()))
    if inexact:
        deps.layers_of_reason[_INEXACT] = dict.fromkeys(inexact)
    return ChannelGraph(
        groups=tuple(Group(name, units_of[name], tuple(producers[name])) for name in members),
        ins=ins,
        outs=outs,
        shapes=deps.shapes,
        uses=deps.uses,
        tensors=_tensors(deps, final),
        picks={path: final[labels] for path, labels in deps.picks.items()},
        functional=frozenset(deps.functional),
        fixed_macs=deps.fixed_macs,
        frozen=_frozen(deps, final),
        inexact=inexact,
        notes=(*deps.notes, *dict.fromkeys(n for run in deps.recordings for n in run.notes)),
        count=count,
        recordings=tuple(deps.recordings),
        rectified=tuple(_rectified(deps, final)),
    )


def _rectified(deps: Dependencies, final: Tensor) -> Iterator[Tensor | None]:
    for step in deps.recordings[0].steps:
        if step in deps.calls and is_relu(deps.calls[step]):
            value = deps.results[step]
            yield final[value.along(1)] if set(value.varying) == {1} else None


def _frozen(deps: Dependencies, final: Tensor) -> dict[str, str]:
    """Why layers have output channels that stay."""
    found = dict(deps.full_size)
    for name, labels in deps.producers.items():
        stay = labels[final[labels] == FROZEN].tolist()
        if stay:
            whys = dict.fromkeys(deps.reasons[one] for one in stay if one in deps.reasons)
            found[name] = "; ".join(whys) or "they are added to channels that stay"
    for name in deps.uses:
        if name not in found and bool((final[deps.outs[name]] == FROZEN).all()):
            found[name] = "its input channels stay"
    return found


def _tensors(deps: Dependencies, final: Tensor) -> dict[str, tuple[Tensor | None, ...]]:
    """The units of parameters that the forward uses by itself, where there are any."""
    found = {}
    for path, sides in deps.tensors.items():
        units = {dim: final[labels] for dim, labels in sides.items()}
        if any(bool(side.any()) for side in units.values()):
            found[path] = tuple(units.get(dim) for dim in range(deps.ranks[path]))
    return found


def _groups(deps: Dependencies, roots: Tensor) -> dict[str, Tensor]:
    """The units of every group; layers that make some of the same units share a group."""
    units = {name: roots[made] for name, made in deps.producers.items()}
    maker = torch.zeros(len(roots), dtype=torch.long)
    layers = Partition()
    number = {name: layers.new_ids(1) for name in units}
    for name, labels in reversed(units.items()):
        maker[labels] = number[name]
    for name, labels in units.items():
        layers.unite(maker[labels[labels != FROZEN]], number[name])
    home = layers.roots()
    names = {int(number[name]): name for name in units}
    found: dict[str, dict[int, None]] = {}
    for name, labels in units.items():
        mine = dict.fromkeys(labels[labels != FROZEN].tolist())
        found.setdefault(names[int(home[number[name]])], {}).update(mine)
    return {name: torch.tensor([*units]) for name, units in found.items() if units}


def _producers(
    deps: Dependencies, units_of: Mapping[str, Tensor], outs: Mapping[str, Tensor], count: int
) -> dict[str, list[str]]:
    """The layers whose output channels belong to each group, in order of execution."""
    home = torch.full((count,), -1)
    for index, units in enumerate(units_of.values()):
        home[units] = index
    names = [*units_of]
    found: dict[str, list[str]] = {name: [] for name in names}
    for layer in deps.uses:
        for index in set(home[outs[layer]].tolist()) - {-1}:
            found[names[index]].append(layer)
    return found


@contextmanager
def _without_inputs(layer: nn.Module, gone: Tensor) -> Iterator[None]:
    """Inside it, the weights for these input channels are zero: functions run no hooks."""
    weight, groups = layer.weight.data, getattr(layer, "groups", 1)
    before = weight.clone()
    kept = (~gone).to(weight).reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    weight.copy_((weight.reshape(groups, -1, *weight.shape[1:]) * kept).reshape(weight.shape))
    try:
        yield
    finally:
        weight.copy_(before)


def _silence(dropped: Tensor) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        x = input_of(args, kwargs)
        dim = channel_dim(module, x.ndim)
        kept = (~dropped).to(x).reshape([-1 if d == dim else 1 for d in range(x.ndim)])
        return with_input(args, kwargs, x * kept)

    return hook
