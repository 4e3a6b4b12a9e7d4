"""The places for sparsity-inducing matrices in one network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

from torch import nn

from prunekit.errors import ConfigError, one_of
from prunekit.graph.arguments import Example
from prunekit.graph.channels import ChannelGraph
from prunekit.graph.layers import CONVOLUTIONS, TRANSPOSED
from prunekit.graph.whole_groups import goes_whole
from prunekit.methods.hinge.blocks import Block, Layout
from prunekit.methods.hinge.module import SIDES, Hinged, Site

MARKED = ("bottleneck", "grouped")  # kinds whose own 1 x 1 convolutions are the matrices
PAIRS = ("basic", "preactivation", *MARKED)

_ROLES = ("first", "second")


@dataclass(frozen=True)
class Sites:
    """Places for matrices, and the grouped convolutions that lose whole groups.

    `notes` say which convolutions that were asked for by kind or pattern get less, and why.
    """

    sites: tuple[Site, ...]
    whole: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Places:
    """A network in which places are looked for, but for layers that match a pattern in `ignore`.

    `start` is how new matrices begin, None: as it suits each. ConfigError for a pattern that
    matches no convolution.
    """

    def __init__(
        self, model: nn.Module, example: Example, start: str | None, ignore: Sequence[str]
    ) -> None:
        if any(isinstance(module, Hinged) for module in model.modules()):
            raise ConfigError("placement: the network has matrices already; fold them first")
        self.model, self.example, self.start = model, example, start
        self.layout = Layout.of(model, example)
        self.kinds = {layer: one.kind for one in self.layout.blocks for layer in one.layers}
        self.ignored = {
            name
            for pattern in ignore
            for name in _matched(f"placement.ignore={pattern}", pattern, self.layout.called)
        }
        self.found: dict[str, Site] = {}
        self.whole: list[str] = []
        self.notes: dict[str, None] = {}

    def sites(self) -> Sites:
        """What was added, in order of execution; ConfigError where that is nothing."""
        if not self.found:
            shown = "".join(f"; {note}" for note in [*self.notes][:3])
            raise ConfigError(
                f"placement finds no place for a matrix in {type(self.model).__name__}{shown}; "
                "set placement=none"
            )
        ordered = (self.found[name] for name in self.layout.called if name in self.found)
        return Sites(tuple(ordered), tuple(self.whole), tuple(self.notes))

    def check(self, kinds: Sequence[str]) -> None:
        """Raise ConfigError for a kind of block that the network does not have."""
        there = Counter(block.kind for block in self.layout.blocks)
        for kind in kinds:
            if kind not in there:
                has = ", ".join(f"{one} ({count})" for one, count in there.items())
                raise ConfigError(
                    f"placement.blocks.{kind}: the network has no {kind} blocks; it has "
                    f"{has or 'none of any kind'}"
                )

    def add_layers(self, layers: Mapping[str, str]) -> None:
        """Places in layers that are named, then in those that match a pattern first."""
        names = [key for key in layers if not any(one in key for one in "*?[")]
        for name in names:
            self._add_named(name, parted(layers[name]))
        dense = [name for name in self.kinds if self._module(name).groups == 1]
        for pattern in (key for key in layers if dense and key not in names):
            for name in _matched(f"placement.layers.{pattern}", pattern, dense):
                if name not in self.found:
                    self._add_alone(name, parted(layers[pattern]))

    def add_blocks(self, kinds: Mapping[str, Sequence[str]], strict: bool) -> None:
        """Places in blocks of these kinds; `strict` refuses what cannot vanish in one of a pair."""
        for block in self.layout.blocks:
            if block.kind in PAIRS and block.kind in kinds:
                self._add_pair(block, kinds[block.kind], strict)
            elif block.kind in kinds:
                for name in block.layers:
                    if name not in self.found:
                        self._add_alone(name, parted(kinds[block.kind][0]), block.name)

    def _add_named(self, name: str, sides: tuple[str, ...]) -> None:
        """A place that was asked for by name."""
        place = f"placement.layers.{name}"
        modules = dict(self.model.named_modules())
        if name not in modules:
            raise ConfigError(f"{place}: no layer has that name; {one_of(name, self.kinds)}")
        why = self._unfit(name) or self._stays(name, sides)
        if why:
            raise ConfigError(f"{place}={'+'.join(sides)}: {why}; name another layer")
        self._add(name, sides)

    def _add_alone(self, name: str, sides: tuple[str, ...], block: str = "") -> None:
        """A place with those of the sides that may vanish, if any."""
        if name in self.ignored:
            return
        why = self._unfit(name)
        if why:
            self._note(name, sides, why)
            return
        read = self.kinds[name] == "plain" and name in self.layout.classified
        why = "a linear layer reads them" if read else self._stays(name, sides)
        if why and "columns" in sides:
            self._note(name, ("columns",), why)
            sides = tuple(side for side in sides if side != "columns")
        if sides:
            self._add(name, sides, block)

    def _add_pair(self, block: Block, sides: Sequence[str], strict: bool) -> None:
        """Places in the first and the last layer of a block."""
        ends = (block.layers[0], block.layers[-1])
        wanted = {name: parted(one) for name, one in zip(ends, sides, strict=True)}
        free = [n for n in ends if n not in self.found and n not in self.ignored]
        reasons = {name: self._pair_stays(block, name, wanted[name]) for name in free}
        self._tell(block.kind, {n: (wanted[n], why) for n, why in reasons.items() if why}, strict)
        kept = [name for name in free if not reasons[name]]
        if block.kind == "grouped" and len(kept) < len(ends):
            return
        for name in kept:
            self._add(name, wanted[name], block.name, block.kind)
        if block.kind == "grouped" and not goes_whole(self._module(block.layers[1])):
            self.whole.append(block.layers[1])
        mine = kept if block.kind in MARKED else [name for name in ends if name in self.found]
        if len(mine) == len(ends):
            for name, role in zip(ends, _ROLES, strict=True):
                self.found[name] = replace(self.found[name], block=block.name, role=role)

    def _tell(
        self, kind: str, lost: Mapping[str, tuple[tuple[str, ...], str]], strict: bool
    ) -> None:
        """Refuse or note what is asked for in layers of a pair, and why it cannot be."""
        for name, (sides, why) in lost.items():
            if strict:
                raise ConfigError(
                    f"placement.blocks.{kind}: {'+'.join(sides)} of {name} cannot vanish: {why}; "
                    f"leave it out, by placement.ignore=[{name}]"
                )
            self._note(name, sides, why)

    def _pair_stays(self, block: Block, name: str, sides: tuple[str, ...]) -> str | None:
        """Why a layer of a pair cannot have these sides; None: it can."""
        if block.kind not in MARKED:
            return self._unfit(name) or self._stays(name, sides)
        middle = self._module(block.layers[1])
        if block.kind == "grouped" and not goes_whole(middle) and type(middle) is not nn.Conv2d:
            return f"{block.layers[1]} is a {type(middle).__name__}, no plain nn.Conv2d"
        table = self._graph.outs if name == block.layers[0] else self._graph.ins
        fixed = not bool((table[name] != 0).all())
        return self._unfit(name) or (self._frozen(block.layers[0]) if fixed else None)

    def _stays(self, name: str, sides: tuple[str, ...]) -> str | None:
        """Why columns of a new matrix cannot vanish, if that is asked for; None: they can."""
        if "columns" not in sides:
            return None
        if name in self.layout.added:
            return "its outputs are added to others"
        removable = name in self._graph.outs and bool((self._graph.outs[name] != 0).all())
        return None if removable else self._frozen(name)

    def _frozen(self, name: str) -> str:
        return self._graph.frozen.get(name, "some of its outputs stay")

    def _unfit(self, name: str) -> str | None:
        """Why a layer takes no matrix at all; None: it takes one."""
        layer = self._module(name)
        kind = type(layer).__name__
        if isinstance(layer, TRANSPOSED):
            return f"{kind} is transposed, which a 1 x 1 convolution behind it does not split"
        if not isinstance(layer, CONVOLUTIONS):
            return f"{kind} is no convolution"
        if layer.groups > 1:
            return f"its {layer.groups} groups would be mixed by a matrix behind it"
        if "weight" not in layer._parameters:
            return "its weight is computed; remove the parametrisation first"
        if type(layer) not in CONVOLUTIONS:
            return f"{kind} is a class of its own, not one of torch.nn"
        if name not in self.layout.called or name in self.layout.lent:
            return "it is not called as a module, or its weight is used elsewhere too"
        if self._owners[id(layer.weight)] > 1:
            return "another layer has the same weight"
        return None

    @cached_property
    def _graph(self) -> ChannelGraph:
        """What can be removed; traced where that matters, and once."""
        return ChannelGraph.trace(self.model, self.example)

    @cached_property
    def _owners(self) -> Counter[int]:
        """How many modules have each parameter."""
        return Counter(id(p) for m in self.model.modules() for p in m._parameters.values())

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _note(self, name: str, sides: Sequence[str], why: str) -> None:
        self.notes[f"{name} gets no {'+'.join(sides)}: {why}"] = None

    def _add(self, name: str, sides: tuple[str, ...], block: str = "", kind: str = "") -> None:
        identity = kind == "preactivation" or sides == ("columns",)
        start = self.start or ("identity" if identity else "svd")
        self.found[name] = Site(name, sides, None if kind in MARKED else start, block or name)


def parted(sides: str) -> tuple[str, ...]:
    """Words like "columns+rows" one by one, rows first."""
    words = sides.split("+")
    return tuple(side for side in SIDES if side in words)


def _matched(setting: str, pattern: str, names: Sequence[str]) -> list[str]:
    """The names that a pattern matches; ConfigError if there is none."""
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise ConfigError(f"{setting} matches no convolution; {one_of(pattern, names)}")
    return found
