"""Residual blocks whose branch a cut would empty: find them, and leave only their shortcut."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import ArtifactError, SurgeryError, one_of
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import layer_named
from prunekit.graph.recording.steps import HELD, Kind, Recording, Step
from prunekit.graph.table import entries, of_name
from prunekit.modes import copy_hooks
from prunekit.surgery.edits import BiasMap, register, replace_module

ADDED = "+"  # the step at which the branch was added
FUNCTIONS: Mapping[str, type[nn.Module]] = {
    f"{name}()": entry.stands_for
    for entry in entries()
    if entry.stands_for is not None
    for name in entry.functions
}


class ChannelBias(nn.Module):
    """Add a number to every channel, which is trained as biases are."""

    def __init__(self, bias: Tensor, trained: bool = True) -> None:
        super().__init__()
        self.bias = nn.Parameter(bias, requires_grad=trained)

    def forward(self, x: Tensor) -> Tensor:
        """The input plus the shift, which is shaped to broadcast over examples and positions."""
        return x + self.bias

    def extra_repr(self) -> str:
        """How many channels."""
        return str(self.bias.numel())


@register
@dataclass(frozen=True)
class SkipBlock:
    """A residual block without its branch: the modules of its shortcut and what follows, in a row.

    `steps` are names of modules directly in the block, of functions ("relu()"), and `ADDED` where
    the branch was added. There a `ChannelBias` of zeros of the shape `shift` takes its place, or a
    `BiasMap` if the shape has positions; nothing without a shape. Modules keep their names.
    """

    block: str
    steps: tuple[str, ...]
    shift: tuple[int, ...] | None = None
    kind: ClassVar[str] = "skip_block"

    def apply(self, model: nn.Module) -> None:
        """Put what is left wherever the block is registered; raises SurgeryError."""
        block = layer_named(model, self.block, "the edit was made for another network")
        parts: OrderedDict[str, nn.Module] = OrderedDict()
        for step in self.steps:
            made = self._part(block, step)
            if type(made) not in (type(None), nn.Identity):
                name = "shift" if step == ADDED else step.removesuffix("()")
                parts[name if name not in parts else f"{name}_{len(parts)}"] = made
        left = nn.Sequential(parts) if parts else nn.Identity()
        left.training = block.training
        copy_hooks(block, left)
        replace_module(model, block, left)

    def _part(self, block: nn.Module, step: str) -> nn.Module | None:
        if step == ADDED:
            return None if self.shift is None else _shift(block, self.shift)
        made = FUNCTIONS[step]() if step in FUNCTIONS else block._modules.get(step)
        if made is None:
            raise SurgeryError(
                f"{self.block} has no part {step!r}; {one_of(step, block._modules)}; the edit was "
                "made for another network"
            )
        if getattr(made, "inplace", False):
            made.inplace = False  # it may now write into what the layer in front keeps for autograd
        return made

    def to_dict(self) -> dict[str, Any]:
        """The block, its steps, and the shape of the shift, left out where there is none."""
        shift = {} if self.shift is None else {"shift": list(self.shift)}
        return {"edit": self.kind, "block": self.block, "steps": list(self.steps), **shift}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> SkipBlock:
        """The inverse of `to_dict`."""
        try:
            shift = tuple(map(int, plain["shift"])) if "shift" in plain else None
            return cls(str(plain["block"]), tuple(map(str, plain["steps"])), shift)
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(f"an edit of kind {cls.kind!r} is damaged: {error!r}") from error


def _shift(block: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    like = next(block.parameters())
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    if sum(size > 1 for size in shape) > 1:
        return BiasMap(zeros)
    return ChannelBias(zeros, any(parameter.requires_grad for parameter in block.parameters()))


@dataclass(frozen=True)
class EmptyBlock:
    """A residual block whose branch puts out nothing that depends on its input.

    `steps` are what is left of it, as in `SkipBlock`. `end` is the module that puts out the branch,
    `maker` the layer in it whose output channels these are.
    """

    block: str
    steps: tuple[str, ...]
    end: str
    maker: str

    def loses(self, name: str) -> bool:
        """Whether the block goes with the layer or parameter of this name in it."""
        inside = name.startswith(f"{self.block}.")
        return inside and name.removeprefix(f"{self.block}.").split(".")[0] not in self.steps

    def edit(self, shift: tuple[int, ...] | None = None) -> SkipBlock:
        """The edit that leaves the rest of it, with a place for constants of this shape."""
        return SkipBlock(self.block, self.steps, shift)


def empty_blocks(graph: ChannelGraph, drop: torch.Tensor) -> tuple[EmptyBlock, ...]:
    """The smallest residual blocks whose branches hold every layer that `drop` would empty.

    A block is a module with one tensor in and one out, that is a chain of modules and activations
    but for the addition of the branch. SurgeryError for a layer that is in no such branch.
    """
    emptied = graph.emptied(drop)
    if not emptied:
        return ()
    traced = graph.recordings[0]
    found: dict[str, EmptyBlock] = {}
    for name in emptied:
        if not any(block.loses(name) for block in found.values()):
            block = _around(traced, name, emptied)
            if block is None or block.maker not in graph.outs:
                raise SurgeryError(_refusal(graph, name))
            found[block.block] = block
    return tuple(
        one for one in found.values() if not any(other.loses(one.block) for other in found.values())
    )


def _refusal(graph: ChannelGraph, name: str) -> str:
    units = torch.cat([graph.ins[name], graph.outs[name]])
    groups = [group.name for group in graph.groups if torch.isin(units, group.units).any()]
    return (
        f"{name} would be left without channels (of {len(graph.ins[name])} inputs and "
        f"{len(graph.outs[name])} outputs), and is in no residual branch that could be removed "
        f"whole; keep more units of group {' or '.join(groups)}, by selection.on_empty=keep_best "
        "or a lower ratio"
    )


def _around(traced: Recording, name: str, emptied: Collection[str]) -> EmptyBlock | None:
    """The smallest block that loses this layer."""
    outer = name.rpartition(".")[0]
    while outer:
        block = _Called(traced, outer).without(emptied)
        if block is not None and block.loses(name):
            return block
        outer = outer.rpartition(".")[0]
    return None


class _Called:
    """The one call of a module in a recorded run."""

    def __init__(self, traced: Recording, name: str) -> None:
        self.traced, self.name = traced, name
        self.steps = {n: None for n in traced.steps if n.kind not in HELD and name in _paths(n)}

    def without(self, emptied: Collection[str]) -> EmptyBlock | None:
        """The block without its one dead summand; None where it is not of that kind."""
        entries, exits = self._sources(self.steps), self._exits()
        if len(_calls(self.steps, self.name)) != 1 or len(entries) != 1 or len(exits) != 1:
            return None
        (entry,), (step,) = entries, exits
        alive, steps, dead = self._alive(entry, emptied), [], None
        while step is not entry:
            summands = self._summands(step)
            if summands:
                gone = [one for one in summands if one not in alive]
                if len(gone) != 1 or dead is not None:
                    return None
                dead = gone[0]
                part, step = ADDED, next(one for one in summands if one is not dead)
            else:
                part, step = self._part(step)
            if part is None or step is None:
                return None
            steps.append(part)
        return self._block(dead, tuple(reversed(steps))) if dead is not None else None

    def _block(self, dead: Step, steps: tuple[str, ...]) -> EmptyBlock | None:
        while self._child(dead) is None and _drops(dead):
            (dead,) = self._sources({dead: None})
        child, maker = self._child(dead), _maker(dead)
        alone = [len(_calls(self.traced.steps, one or "")) == 1 for one in (child, maker)]
        if child is None or maker is None or not all(alone):
            return None
        block = EmptyBlock(self.name, steps, child, maker)
        others = (n for n in self.traced.steps if n not in self.steps)
        used = any(block.loses(layer) for step in others for layer in _layers(step))
        return None if used else block

    def _alive(self, entry: Step, emptied: Collection[str]) -> set[Step]:
        """What still depends on the input."""
        alive = {entry}
        for step in self.steps:
            empty = any(layer in emptied for layer in _layers(step))
            if not empty and not step.asks and any(n in alive for n in step.sources):
                alive.add(step)
        return alive

    def _part(self, step: Step) -> tuple[str | None, Step | None]:
        """A module directly in the block or an activation, and what goes into it."""
        child = self._child(step)
        whole = {step: None}
        if child is not None:
            key = next(key for key, path in step.calls if path == child)
            whole = {n: None for n in self.steps if any(key == other for other, _ in n.calls)}
        sources = self._sources(whole)
        if len(sources) != 1:
            return None, None
        part = child.removeprefix(f"{self.name}.") if child is not None else _function(step)
        return (None if part is None or "." in part else part), sources[0]

    def _summands(self, step: Step) -> tuple[Step, ...]:
        """The two tensors that are added, by the block itself."""
        steps = tuple(arg for arg in step.args if isinstance(arg, Step))
        plain = self._child(step) is None and not step.kwargs and len(steps) == len(step.args) == 2
        return steps if plain and step.name == "add" else ()

    def _child(self, step: Step) -> str | None:
        """The module that the block called to get there; None if it was the block itself."""
        paths = [*_paths(step)]
        if self.name not in paths:
            return None
        at = paths.index(self.name) + 1
        return paths[at] if at < len(paths) else None

    def _sources(self, steps: Collection[Step]) -> list[Step]:
        """The tensors from elsewhere that these steps read, without parameters."""
        read = dict.fromkeys(source for step in steps for source in step.sources)
        return [n for n in read if n not in steps and n.kind not in HELD and not n.asks]

    def _exits(self) -> list[Step]:
        return [n for n in self.steps if any(user not in self.steps for user in n.users)]


def _drops(step: Step) -> bool:
    """Whether a function does nothing while evaluating."""
    entry = of_name(step.name)
    return entry is not None and entry.drops


def _paths(step: Step) -> Iterator[str]:
    return (path for _, path in step.calls)


def _calls(steps: Collection[Step], name: str) -> set[int]:
    return {key for step in steps for key, path in step.calls if path == name}


def _function(step: Step) -> str | None:
    """An activation with nothing but defaults, as a step."""
    name = f"{step.name}()"
    if step.kind is Kind.LAYER or name not in FUNCTIONS or len(step.args) != 1:
        return None
    usual = FUNCTIONS[name]()
    given = {key: value for key, value in step.kwargs.items() if key != "inplace"}
    return name if all(getattr(usual, key, None) == value for key, value in given.items()) else None


def _layers(step: Step) -> list[str]:
    """The layer that a step calls, or those whose parameters it reads, and these parameters."""
    if step.kind is Kind.LAYER:
        return [str(step.target)]
    read = [str(source.target) for source in step.sources if source.kind is Kind.TENSOR]
    return [*read, *(path.rpartition(".")[0] for path in read)]


def _maker(step: Step) -> str | None:
    """The convolution, norm, ... that made a tensor, through what changes no channels."""
    while step.kind is Kind.CALL and _drops(step):
        step = step.sources[0]
    return str(step.target) if step.kind is Kind.LAYER else next(iter(_layers(step)[1:]), None)
