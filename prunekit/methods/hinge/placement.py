"""The choice of convolutions that get a sparsity-inducing matrix, and of what may vanish in it.

It depends on the kind of block that a convolution is part of (Li et al. 2020, section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Annotated

from torch import nn

from prunekit.errors import ConfigError, one_of
from prunekit.graph.arguments import Example
from prunekit.graph.channels import ChannelGraph
from prunekit.graph.layers import CONVOLUTIONS, TRANSPOSED
from prunekit.graph.whole_groups import removes_whole_groups
from prunekit.methods.hinge.blocks import KINDS, Block, Layout
from prunekit.methods.hinge.matrices import SIDES, STARTS, Site, hinged_modules
from prunekit.schema import Checked, OneOf

OWN_MATRICES = ("bottleneck", "grouped")  # kinds whose own 1 x 1 convolutions are the matrices
PAIRS = ("basic", "preactivation", *OWN_MATRICES)

_ROLES = ("first", "second")
_EITHER = ("rows", "columns", "rows+columns")
ACCEPTED: Mapping[str, tuple[tuple[str, ...], ...]] = {  # the sides of each matrix of a block
    "basic": (_EITHER, ("rows",)),
    "preactivation": (_EITHER, ("rows",)),
    "bottleneck": (("columns",), ("rows",)),
    "grouped": (("groups",), ("groups",)),
    "branch": (_EITHER,),
    "dense": (_EITHER,),
    "plain": (_EITHER,),
}
DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "basic": ("rows", "rows"),
    "preactivation": ("columns", "rows"),
    "bottleneck": ("columns", "rows"),
    "grouped": ("groups", "groups"),
    "branch": ("rows",),
    "dense": ("rows",),
    "plain": ("rows+columns",),
}


@dataclass(frozen=True)
class Sites:
    """The sites of matrices, and the grouped convolutions that lose whole groups.

    `notes` name convolutions that a kind of block or a pattern includes but that get less, and say
    why.
    """

    sites: tuple[Site, ...]
    whole: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement(Checked):
    """Selects convolutions that get a matrix, and the sides of it that may vanish.

    Sides are words like "rows+columns". `blocks` maps kinds of blocks (see `Block`) to the sides of
    their matrices in order: two for kinds with two matrices, else one for every layer. Without it,
    every kind in the network has `DEFAULTS`.

    In "bottleneck" and "grouped" blocks the 1 x 1 convolutions are the matrices; others are
    initialised as `start` says. Without it, they start as the identity in "preactivation" blocks
    and if only columns may vanish, else by singular values.

    `layers` maps names or patterns of layers to sides, which take precedence over those of blocks;
    a layer gets the sides of the first pattern it matches. Layers that match a pattern in `ignore`,
    or are in no block, get a matrix only by name.
    """

    blocks: Annotated[
        Mapping[str, Sequence[str]] | None, "sides by kind of block; null: defaults for all kinds"
    ] = None
    start: Annotated[
        str | None, OneOf(STARTS), "how matrices are initialised; null: by kind of block"
    ] = None
    ignore: Annotated[Sequence[str], "patterns of layers that get no matrix"] = ()
    layers: Annotated[Mapping[str, str] | None, "sides by name or pattern of layers"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, sides in (self.layers or {}).items():
            _check_sides(f"layers.{key}", sides, _EITHER)
        for kind, block_sides in (self.blocks or {}).items():
            _check_block(kind, block_sides)
        if self.start == "svd_weight":
            self._check_rows()

    def _check_rows(self) -> None:
        for setting, sides in self._inserted_sides():
            if "rows" in sides:
                raise ConfigError(
                    f"start=svd_weight with {sides} in {setting}: all rows would have norm "
                    "1 and say nothing; take start=svd"
                )

    def _inserted_sides(self) -> Iterator[tuple[str, str]]:
        """Yield the setting and the sides of every kind of matrix that is inserted."""
        for kind, block_sides in self._sides_by_kind.items():
            if kind not in OWN_MATRICES:
                yield from ((f"blocks.{kind}", sides) for sides in block_sides)
        yield from ((f"layers.{name}", sides) for name, sides in (self.layers or {}).items())

    @property
    def _sides_by_kind(self) -> Mapping[str, Sequence[str]]:
        return DEFAULTS if self.blocks is None else self.blocks

    def sites(self, model: nn.Module, example: Example) -> Sites:
        """Return the sites in this network, in order of execution.

        Raises ConfigError if the network lacks a kind of block that `blocks` names, or if a side
        cannot vanish; raises TraceError like `ChannelGraph.trace`.
        """
        if self.blocks is not None and not self.blocks and not self.layers:
            return Sites(())
        finder = SiteFinder(model, example, self.start, self.ignore)
        finder.check_kinds([*(self.blocks or {})])
        finder.add_layers(self.layers or {})
        finder.add_blocks(self._sides_by_kind, strict=self.blocks is not None)
        return finder.sites()


def _check_block(kind: str, block_sides: Sequence[str]) -> None:
    if kind not in KINDS:
        raise ConfigError(f"blocks.{kind} is no kind of block; {one_of(kind, KINDS)}")
    accepted = ACCEPTED[kind]
    if len(block_sides) != len(accepted):
        raise ConfigError(
            f"blocks.{kind}={list(block_sides)} must be a list of {len(accepted)}, such as "
            f"[{', '.join(DEFAULTS[kind])}]"
        )
    for index, (sides, words) in enumerate(zip(block_sides, accepted, strict=True)):
        _check_sides(f"blocks.{kind}[{index}]", sides, words)


def _check_sides(setting: str, sides: str, accepted: Sequence[str]) -> None:
    if sorted(sides.split("+")) not in [sorted(words.split("+")) for words in accepted]:
        raise ConfigError(
            f"{setting}={sides!r} is not accepted here; accepted: {', '.join(accepted)}"
        )


class SiteFinder:
    """Collects the sites of matrices in one network.

    Layers that match a pattern in `ignore` are left out; raises ConfigError for a pattern that
    matches no convolution. `start` is how new matrices are initialised; None: by kind of block.
    """

    def __init__(
        self, model: nn.Module, example: Example, start: str | None, ignore: Sequence[str]
    ) -> None:
        if hinged_modules(model):
            raise ConfigError("placement: the network has matrices already; fold them first")
        self.model, self.example, self.start = model, example, start
        self.layout = Layout.of(model, example)
        self.kinds = {name: block.kind for block in self.layout.blocks for name in block.layers}
        self.ignored = {
            name
            for pattern in ignore
            for name in _matching(f"placement.ignore={pattern}", pattern, self.layout.called)
        }
        self.by_layer: dict[str, Site] = {}
        self.whole: list[str] = []
        self.notes: dict[str, None] = {}

    def sites(self) -> Sites:
        """Return what was added, in order of execution; raises ConfigError if that is nothing."""
        if not self.by_layer:
            notes = "".join(f"; {note}" for note in [*self.notes][:3])
            raise ConfigError(
                f"placement finds no place for a matrix in {type(self.model).__name__}{notes}; "
                "set placement=none"
            )
        ordered = (self.by_layer[name] for name in self.layout.called if name in self.by_layer)
        return Sites(tuple(ordered), tuple(self.whole), tuple(self.notes))

    def check_kinds(self, kinds: Sequence[str]) -> None:
        """Raise ConfigError for a kind of block that the network does not have."""
        counts = Counter(block.kind for block in self.layout.blocks)
        for kind in kinds:
            if kind not in counts:
                has = ", ".join(f"{other} ({count})" for other, count in counts.items())
                raise ConfigError(
                    f"placement.blocks.{kind}: the network has no {kind} blocks; it has "
                    f"{has or 'none of any kind'}"
                )

    def add_layers(self, layers: Mapping[str, str]) -> None:
        """Add layers by name, then those that match a pattern."""
        names = [key for key in layers if not any(char in key for char in "*?[")]
        for name in names:
            self._add_named(name, split_sides(layers[name]))
        ungrouped = [name for name in self.kinds if getattr(self._module(name), "groups", 1) == 1]
        for pattern in (key for key in layers if ungrouped and key not in names):
            for name in _matching(f"placement.layers.{pattern}", pattern, ungrouped):
                if name not in self.by_layer:
                    self._add_single(name, split_sides(layers[pattern]))

    def add_blocks(self, sides_by_kind: Mapping[str, Sequence[str]], strict: bool) -> None:
        """Add blocks of these kinds; `strict` raises for a side of a pair that cannot vanish."""
        for block in self.layout.blocks:
            if block.kind in PAIRS and block.kind in sides_by_kind:
                self._add_pair(block, sides_by_kind[block.kind], strict)
            elif block.kind in sides_by_kind:
                for name in block.layers:
                    if name not in self.by_layer:
                        sides = split_sides(sides_by_kind[block.kind][0])
                        self._add_single(name, sides, block.name)

    def _add_named(self, name: str, sides: tuple[str, ...]) -> None:
        """Add a layer by name; raises ConfigError if it cannot have these sides."""
        setting = f"placement.layers.{name}"
        if name not in dict(self.model.named_modules()):
            raise ConfigError(f"{setting}: no layer has that name; {one_of(name, self.kinds)}")
        reason = self._why_no_matrix(name) or self._why_no_columns(name, sides)
        if reason:
            raise ConfigError(f"{setting}={'+'.join(sides)}: {reason}; name another layer")
        self._add(name, sides)

    def _add_single(self, name: str, sides: tuple[str, ...], block: str = "") -> None:
        """Add a layer with those of the sides that may vanish, if any."""
        if name in self.ignored:
            return
        reason = self._why_no_matrix(name)
        if reason:
            self._note(name, sides, reason)
            return
        read = self.kinds[name] == "plain" and name in self.layout.classified
        reason = "a linear layer reads them" if read else self._why_no_columns(name, sides)
        if reason and "columns" in sides:
            self._note(name, ("columns",), reason)
            sides = tuple(side for side in sides if side != "columns")
        if sides:
            self._add(name, sides, block)

    def _add_pair(self, block: Block, block_sides: Sequence[str], strict: bool) -> None:
        """Add the first and the last layer of a block."""
        ends = (block.layers[0], block.layers[-1])
        sides = {name: split_sides(words) for name, words in zip(ends, block_sides, strict=True)}
        free = [n for n in ends if n not in self.by_layer and n not in self.ignored]
        reasons = {name: self._why_not_in_pair(block, name, sides[name]) for name in free}
        for name, reason in reasons.items():
            if reason:
                self._reject(block.kind, name, sides[name], reason, strict)
        accepted = [name for name in free if not reasons[name]]
        if block.kind == "grouped" and len(accepted) < len(ends):
            return
        for name in accepted:
            self._add(name, sides[name], block.name, block.kind)
        if block.kind == "grouped" and not removes_whole_groups(self._module(block.layers[1])):
            self.whole.append(block.layers[1])
        own = block.kind in OWN_MATRICES
        members = accepted if own else [name for name in ends if name in self.by_layer]
        if len(members) == len(ends):
            for name, role in zip(ends, _ROLES, strict=True):
                self.by_layer[name] = replace(self.by_layer[name], block=block.name, role=role)

    def _reject(
        self, kind: str, name: str, sides: tuple[str, ...], reason: str, strict: bool
    ) -> None:
        """Raise ConfigError, or add a note, for a layer of a pair that cannot have its sides."""
        if strict:
            raise ConfigError(
                f"placement.blocks.{kind}: {'+'.join(sides)} of {name} cannot vanish: {reason}; "
                f"leave it out, by placement.ignore=[{name}]"
            )
        self._note(name, sides, reason)

    def _why_not_in_pair(self, block: Block, name: str, sides: tuple[str, ...]) -> str | None:
        """Return why a layer of a pair cannot have these sides, or None."""
        if block.kind not in OWN_MATRICES:
            return self._why_no_matrix(name) or self._why_no_columns(name, sides)
        middle = self._module(block.layers[1])
        if (
            block.kind == "grouped"
            and not removes_whole_groups(middle)
            and type(middle) is not nn.Conv2d
        ):
            return f"{block.layers[1]} is a {type(middle).__name__}, no plain nn.Conv2d"
        units = self._graph.outs if name == block.layers[0] else self._graph.ins
        frozen = not bool((units[name] != 0).all())
        return self._why_no_matrix(name) or (self._why_frozen(block.layers[0]) if frozen else None)

    def _why_no_columns(self, name: str, sides: tuple[str, ...]) -> str | None:
        """Return why columns of a new matrix cannot vanish, or None; without "columns", None."""
        if "columns" not in sides:
            return None
        if name in self.layout.added:
            return "its outputs are added to others"
        removable = name in self._graph.outs and bool((self._graph.outs[name] != 0).all())
        return None if removable else self._why_frozen(name)

    def _why_frozen(self, name: str) -> str:
        return self._graph.frozen.get(name, "some of its outputs stay")

    def _why_no_matrix(self, name: str) -> str | None:
        """Return why a layer cannot have a matrix at all, or None."""
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
        if name not in self.layout.called or name in self.layout.used_parameters:
            return "it is not called as a module, or its weight is used elsewhere too"
        if self._owners[id(layer.weight)] > 1:
            return "another layer has the same weight"
        return None

    @cached_property
    def _graph(self) -> ChannelGraph:
        """The channel graph, traced only if it is needed."""
        return ChannelGraph.trace(self.model, self.example)

    @cached_property
    def _owners(self) -> Counter[int]:
        """The number of modules that have each parameter, by id."""
        return Counter(id(p) for m in self.model.modules() for p in m._parameters.values())

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _note(self, name: str, sides: Sequence[str], reason: str) -> None:
        self.notes[f"{name} gets no {'+'.join(sides)}: {reason}"] = None

    def _add(self, name: str, sides: tuple[str, ...], block: str = "", kind: str = "") -> None:
        identity = kind == "preactivation" or sides == ("columns",)
        start = self.start or ("identity" if identity else "svd")
        start_or_none = None if kind in OWN_MATRICES else start
        self.by_layer[name] = Site(name, sides, start_or_none, block or name)


def split_sides(sides: str) -> tuple[str, ...]:
    """Return the words of "columns+rows", rows first."""
    words = sides.split("+")
    return tuple(side for side in SIDES if side in words)


def _matching(setting: str, pattern: str, names: Sequence[str]) -> list[str]:
    """Return the names that match a pattern; raises ConfigError if there are none."""
    matches = [name for name in names if fnmatchcase(name, pattern)]
    if not matches:
        raise ConfigError(f"{setting} matches no convolution; {one_of(pattern, names)}")
    return matches
