"""The channel graph: which channels of a network have to be removed together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import listed
from prunekit.graph import ops  # noqa: F401  (fills the table of operations)
from prunekit.graph.arguments import Arguments, Example, input_of, with_input
from prunekit.graph.dependencies import Dependencies
from prunekit.graph.labels import FROZEN, Partition
from prunekit.graph.layers import channel_dim, is_weighted, layer_named
from prunekit.graph.mask import flags
from prunekit.graph.narrowed_copy import validate_copies
from prunekit.graph.ops.elementwise import is_relu
from prunekit.graph.recording.copies import copy_network
from prunekit.graph.recording.passes import record_passes
from prunekit.graph.recording.steps import Recording
from prunekit.graph.validation import validate
from prunekit.graph.wrappers import network_in
from prunekit.modes import garbage_collection_paused, random_states_kept

_INEXACT = (
    "normed over channels that can go on request (over_norms): where some go the statistics of the "
    "others change, so the narrow network is not exactly the silenced one"
)


@dataclass(frozen=True, eq=False)
class Group:
    """Units whose channels are outputs of the same layers.

    `units` are ids in the channel order of the first producer, `name`. `producers` are all
    convolutions and linear layers whose output channels belong to the units, depthwise
    convolutions included, in order of execution. Channels behind a `ChannelSelector` are a group of
    their own that is named after it and has no producers.
    """

    name: str
    units: Tensor
    producers: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The removable units of a network, and the channels that belong to each of them.

    Unit ids run from 1 to `count` - 1; 0 stands for everything that cannot be removed. `ins` and
    `outs` give the unit of every input and output channel of a layer; norm layers and activations
    have the same on both sides. `shapes` are output shapes for one example. `uses` is the number of
    positions at which the weights of a convolution or linear layer are applied to one example, over
    all its calls; `fixed_macs` are the multiply-adds of all other weights.
    `tensors` are parameters and buffers that a forward uses itself, with a vector of units or None
    for each dimension; `picks` are buffers of indices, with the units that they pick from.
    `functional` are layers whose weights are passed to a function, so that hooks are not called;
    parameters of the user's own modules that are used as weights are among them by their own name.
    `frozen` gives the reason for every layer with channels that cannot be removed; `notes` are
    sentences about the reasons, without outputs of the network. `inexact` are norm layers over
    channels that were followed because of `over_norms`. `recordings` are the recorded passes, eval
    mode first; `rectified` are the units of the channels (dimension 1) at every ReLU in eval mode,
    in order, and None for a ReLU without channels. `example` holds the shapes and types of what the
    network was traced on, as tensors on the meta device.
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
    example: Arguments = field(default_factory=lambda: Arguments((), {}))

    @classmethod
    def trace(cls, model: nn.Module, example: Example, over_norms: bool = False) -> ChannelGraph:
        """Record a copy of `model`, and find which channels have to be removed together.

        Eval and train mode are recorded, and both sides of branches on flags or on the size of the
        inputs. Names are those inside wrappers (DataParallel, torch.compile). Only shapes and types
        of `example` are used; costs are those of eval mode. A layer norm over channels freezes
        them, since removing some changes its statistics; with `over_norms` they can be removed, and
        the narrow network differs from the silenced one. Raises TraceError where the forward cannot
        be followed or the example does not fit.
        """
        model = network_in(model)
        with garbage_collection_paused(), random_states_kept(), torch.no_grad():
            arguments = Arguments.of(example)
            passes = record_passes(model, arguments)
            recordings = [forward_pass.recording for forward_pass in passes]
            deps = Dependencies(passes[0].network or copy_network(model), recordings, over_norms)
            deps.play()
            validate(deps)
            validate_copies(model, passes, deps)
            return replace(_finish(deps), example=arguments.on_meta())

    def drop(self, chosen: Mapping[str, Tensor]) -> Tensor:
        """Return one mask over unit ids for masks over the units of groups (True: remove)."""
        return flags(self, chosen)

    def emptied(self, drop: Tensor) -> tuple[str, ...]:
        """Return the layers that would lose all of their input or all of their output channels.

        That can happen although the group keeps units, if each of its layers has only some of them
        (branches that are concatenated, and then added to others).
        """
        drop = drop.cpu()
        return tuple(
            name
            for name, units in self.ins.items()
            if bool(drop[units].all()) or bool(drop[self.outs[name]].all())
        )

    def table(self) -> list[tuple[str, str, str, str]]:
        """Return the name, the number of units, the producers and the readers of every group."""
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
        """Return a line for every reason in `frozen`, with the layers that it is about."""
        layers: dict[str, list[str]] = {}
        for name, why in self.frozen.items():
            layers.setdefault(why, []).append(name)
        return [f"{listed(names)}: {why}" for why, names in layers.items()]

    def __str__(self) -> str:
        table = [("group", "units", "made by", "read by"), *self.table()]
        widths = [max(len(line[column]) for line in table) for column in range(3)]
        lines = [
            "  ".join([*(cell.ljust(n) for cell, n in zip(line, widths, strict=False)), line[3]])
            for line in table
        ]
        return "\n".join([*lines, *(f"stays: {line}" for line in self.frozen_lines())])

    @contextmanager
    def silencer(self, model: nn.Module, drop: Tensor) -> Iterator[None]:
        """Within the context, give layers of `model` zeros in place of removed input channels."""
        with ExitStack() as stack:
            for name, units in self.ins.items():
                layer, removed = layer_named(model, name), drop.cpu()[units]
                if not bool(removed.any()) or not is_weighted(layer):
                    continue
                if name in self.functional:
                    stack.enter_context(_without_inputs(layer, removed))
                else:
                    hook = layer.register_forward_pre_hook(_silence(removed), with_kwargs=True)
                    stack.callback(hook.remove)
            yield


def _finish(deps: Dependencies) -> ChannelGraph:
    """Number the units by group and channel, and return the graph."""
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
            deps.log.add_note("its channels hang together as one unit, so none can go", [name])
    inexact = tuple(name for name in deps.inexact if bool(ins[name].any()))
    deps.log.add_note(_INEXACT, inexact)
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
        notes=(*deps.log.notes, *dict.fromkeys(n for r in deps.recordings for n in r.notes)),
        count=count,
        recordings=tuple(deps.recordings),
        rectified=tuple(_rectified(deps, final)),
    )


def _rectified(deps: Dependencies, final: Tensor) -> Iterator[Tensor | None]:
    """Yield the units at every ReLU of the first recording."""
    for step in deps.recordings[0].steps:
        if step in deps.calls and is_relu(deps.calls[step]):
            value = deps.results[step]
            yield final[value.along(1)] if set(value.varying) == {1} else None


def _frozen(deps: Dependencies, final: Tensor) -> dict[str, str]:
    """Return the reasons why layers have output channels that cannot be removed."""
    frozen = dict(deps.log.full_size)
    for name, labels in deps.producers.items():
        ids = labels[final[labels] == FROZEN].tolist()
        if ids:
            reasons = dict.fromkeys(deps.log.reasons[i] for i in ids if i in deps.log.reasons)
            frozen[name] = "; ".join(reasons) or "they are added to channels that stay"
    for name in deps.uses:
        if name not in frozen and bool((final[deps.outs[name]] == FROZEN).all()):
            frozen[name] = "its input channels stay"
    return frozen


def _tensors(deps: Dependencies, final: Tensor) -> dict[str, tuple[Tensor | None, ...]]:
    """Return the units of parameters that the forward uses itself, where there are any."""
    tensors = {}
    for path, sides in deps.tensors.items():
        units = {dim: final[labels] for dim, labels in sides.items()}
        if any(bool(side.any()) for side in units.values()):
            tensors[path] = tuple(units.get(dim) for dim in range(deps.ranks[path]))
    return tensors


def _groups(deps: Dependencies, roots: Tensor) -> dict[str, Tensor]:
    """Return the labels of every group; layers that produce common units share a group."""
    units = {name: roots[labels] for name, labels in deps.producers.items()}
    producer = torch.zeros(len(roots), dtype=torch.long)
    layers = Partition()
    number = {name: layers.new_ids(1) for name in units}
    for name, labels in reversed(units.items()):
        producer[labels] = number[name]
    for name, labels in units.items():
        layers.unite(producer[labels[labels != FROZEN]], number[name])
    group = layers.roots()
    names = {int(number[name]): name for name in units}
    groups: dict[str, dict[int, None]] = {}
    for name, labels in units.items():
        own = dict.fromkeys(labels[labels != FROZEN].tolist())
        groups.setdefault(names[int(group[number[name]])], {}).update(own)
    return {name: torch.tensor([*units]) for name, units in groups.items() if units}


def _producers(
    deps: Dependencies, units_of: Mapping[str, Tensor], outs: Mapping[str, Tensor], count: int
) -> dict[str, list[str]]:
    """Return the layers whose output channels belong to each group, in order of execution."""
    group = torch.full((count,), -1)
    for index, units in enumerate(units_of.values()):
        group[units] = index
    names = [*units_of]
    producers: dict[str, list[str]] = {name: [] for name in names}
    for layer in deps.uses:
        for index in set(group[outs[layer]].tolist()) - {-1}:
            producers[names[index]].append(layer)
    return producers


@contextmanager
def _without_inputs(layer: Any, removed: Tensor) -> Iterator[None]:
    """Within the context, set weights for removed inputs to zero; functions run no hooks."""
    weight, groups = layer.weight.data, getattr(layer, "groups", 1)
    before = weight.clone()
    kept = (~removed).to(weight).reshape(groups, 1, -1, *[1] * (weight.ndim - 2))
    weight.copy_((weight.reshape(groups, -1, *weight.shape[1:]) * kept).reshape(weight.shape))
    try:
        yield
    finally:
        weight.copy_(before)


def _silence(removed: Tensor) -> Callable[..., Any]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> tuple[Any, Any]:
        x = input_of(args, kwargs)
        dim = channel_dim(module, x.ndim)
        kept = (~removed).to(x).reshape([-1 if d == dim else 1 for d in range(x.ndim)])
        return with_input(args, kwargs, x * kept)

    return hook
