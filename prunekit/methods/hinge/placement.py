"""Where sparsity-inducing matrices go: sides of them for every kind of block (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from torch import nn

from prunekit.errors import ConfigError, one_of
from prunekit.graph.arguments import Example
from prunekit.methods.hinge.blocks import KINDS
from prunekit.methods.hinge.module import STARTS
from prunekit.methods.hinge.places import MARKED, Places, Sites
from prunekit.schema import Checked, OneOf

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
class Placement(Checked):
    """Which convolutions get a matrix, and what of each may vanish, in words like "rows+columns".

    `blocks` gives for a kind of `graph.blocks` the sides of its matrices in order, one for each of
    two in residual blocks, else one for every layer; without it every kind that the network has
    gets `DEFAULTS`. In "bottleneck" and "grouped" blocks the 1 x 1 convolutions are the matrices;
    others begin as `start` says, without it as the identity in "preactivation" blocks and where
    only columns may vanish, else by singular values. `ignore` are patterns of layers that get none;
    `layers` gives sides by name or pattern, beside the blocks and before them, to layers whose
    pattern comes first; only names reach layers that blocks leave out or `ignore` names.
    """

    blocks: Annotated[
        Mapping[str, Sequence[str]] | None, "sides by kind of block; null: all kinds there are"
    ] = None
    start: Annotated[
        str | None, OneOf(STARTS), "what matrices begin as; null: what suits the block"
    ] = None
    ignore: Annotated[Sequence[str], "patterns of layers that get none"] = ()
    layers: Annotated[Mapping[str, str] | None, "sides by pattern of layers"] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for key, sides in (self.layers or {}).items():
            _accepted(f"layers.{key}", sides, _EITHER)
        for kind, sides in (self.blocks or {}).items():
            _check_block(kind, sides)
        if self.start == "svd_weight":
            self._check_rows()

    def _check_rows(self) -> None:
        for name, sides in self._new():
            if "rows" in sides:
                raise ConfigError(
                    f"start=svd_weight with {sides} in {name}: all rows would have norm "
                    "1 and say nothing; take start=svd"
                )

    def _new(self) -> Iterator[tuple[str, str]]:
        """The sides of matrices that are added, and the settings they are from."""
        for kind, sides in (DEFAULTS if self.blocks is None else self.blocks).items():
            if kind not in MARKED:
                yield from ((f"blocks.{kind}", one) for one in sides)
        yield from ((f"layers.{name}", one) for name, one in (self.layers or {}).items())

    def sites(self, model: nn.Module, example: Example) -> Sites:
        """The places in this network, in order of execution.

        ConfigError where the network lacks what is asked for, or where it cannot vanish; TraceError
        like `ChannelGraph.trace`.
        """
        if self.blocks is not None and not self.blocks and not self.layers:
            return Sites(())
        places = Places(model, example, self.start, self.ignore)
        places.check([*(self.blocks or {})])
        places.add_layers(self.layers or {})
        places.add_blocks(DEFAULTS if self.blocks is None else self.blocks, self.blocks is not None)
        return places.sites()


def _check_block(kind: str, sides: Sequence[str]) -> None:
    if kind not in KINDS:
        raise ConfigError(f"blocks.{kind} is no kind of block; {one_of(kind, KINDS)}")
    accepted = ACCEPTED[kind]
    if len(sides) != len(accepted):
        raise ConfigError(
            f"blocks.{kind}={list(sides)} must be a list of {len(accepted)}, such as "
            f"[{', '.join(DEFAULTS[kind])}]"
        )
    for index, (one, words) in enumerate(zip(sides, accepted, strict=True)):
        _accepted(f"blocks.{kind}[{index}]", one, words)


def _accepted(place: str, sides: str, words: Sequence[str]) -> None:
    if sorted(sides.split("+")) not in map(_sorted, words):
        raise ConfigError(f"{place}={sides!r} is not accepted here; accepted: {', '.join(words)}")


def _sorted(words: str) -> list[str]:
    return sorted(words.split("+"))
