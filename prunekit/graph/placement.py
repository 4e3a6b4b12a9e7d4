"""Where sparsity-inducing matrices go: sides of them for every kind of block (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from prunekit.checks import choice
from prunekit.errors import ConfigError, one_of
from prunekit.graph.blocks import KINDS
from prunekit.graph.channels import Example
from prunekit.graph.hinged import STARTS
from prunekit.graph.places import MARKED, Places, Sites

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
class Placement:
    """Which convolutions get a matrix, and what of each may vanish, in words like "rows+columns".

    `blocks` gives for a kind of `graph.blocks` the sides of its matrices in order, one for each of
    two in residual blocks, else one for every layer; without it every kind that the network has
    gets `DEFAULTS`. In "bottleneck" and "grouped" blocks the 1 x 1 convolutions are the matrices;
    others begin as `start` says, without it as the identity in "preactivation" blocks and where
    only columns may vanish, else by singular values. `ignore` are patterns of layers that get none;
    `layers` gives sides by name or pattern, beside the blocks and before them, to layers whose
    pattern comes first; only names reach layers that blocks leave out or `ignore` names.
    """

    blocks: Mapping[str, Sequence[str]] | None = None
    start: str | None = None
    ignore: Sequence[str] = ()
    layers: Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.ignore, str) or not all(isinstance(one, str) for one in self.ignore):
            raise ConfigError(f"placement.ignore={self.ignore!r} is no list of patterns; give one")
        for key, sides in _items("layers", self.layers or {}):
            _accepted(f"placement.layers.{key}", sides, _EITHER)
        for kind, sides in _items("blocks", self.blocks or {}):
            _check_block(kind, sides)
        if self.start is not None:
            choice("placement.start", self.start, STARTS)
        if self.start == "svd_weight":
            self._check_rows()

    def _check_rows(self) -> None:
        for name, sides in self._new():
            if "rows" in sides:
                raise ConfigError(
                    f"placement.start=svd_weight with {sides} in {name}: all rows would have norm "
                    "1 and say nothing; take start=svd"
                )

    def _new(self) -> Iterator[tuple[str, str]]:
        """The sides of matrices that are added, and the settings they are from."""
        for kind, sides in (DEFAULTS if self.blocks is None else self.blocks).items():
            if kind not in MARKED:
                yield from ((f"placement.blocks.{kind}", one) for one in sides)
        yield from ((f"placement.layers.{name}", one) for name, one in (self.layers or {}).items())

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


def _items(name: str, given: object) -> Iterable[tuple[object, object]]:
    if not isinstance(given, Mapping):
        raise ConfigError(f"placement.{name}={given!r} is no mapping; give sides by name")
    return given.items()


def _check_block(kind: object, sides: object) -> None:
    if kind not in KINDS:
        raise ConfigError(f"placement.blocks.{kind} is no kind of block; {one_of(kind, KINDS)}")
    accepted = ACCEPTED[str(kind)]
    fits = isinstance(sides, Sequence) and not isinstance(sides, str)
    if not fits or len(sides) != len(accepted):
        raise ConfigError(
            f"placement.blocks.{kind}={sides!r} must be a list of {len(accepted)}, such as "
            f"[{', '.join(DEFAULTS[str(kind)])}]"
        )
    for index, (one, words) in enumerate(zip(sides, accepted, strict=True)):
        _accepted(f"placement.blocks.{kind}[{index}]", one, words)


def _accepted(place: str, sides: object, words: Sequence[str]) -> None:
    if not isinstance(sides, str) or sorted(sides.split("+")) not in map(_sorted, words):
        raise ConfigError(f"{place}={sides!r} is not accepted here; accepted: {', '.join(words)}")


def _sorted(words: str) -> list[str]:
    return sorted(words.split("+"))
