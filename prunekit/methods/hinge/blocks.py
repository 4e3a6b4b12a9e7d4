"""Kinds of blocks that convolutions stand in, told from a recorded run alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.layers import CONVOLUTIONS
from prunekit.graph.recording.runs import record_eval
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.recording.twin import twin_of
from prunekit.graph.table import of_step
from prunekit.graph.walks import alone, makers, meets, reaching, sides, sources
from prunekit.graph.whole_groups import goes_whole

KINDS = ("basic", "preactivation", "bottleneck", "grouped", "branch", "dense", "plain")


@dataclass(frozen=True)
class Block:
    """Convolutions that belong together, in order of execution.

    Residual branches are "basic" (two k x k), "preactivation" (two k x k, a norm before the first),
    "bottleneck" (1 x 1, k x k, 1 x 1), "grouped" (the same with convolution groups, also those of
    one channel each) or "branch" (any other). Elsewhere each convolution is a block of its own,
    "dense" where its outputs are concatenated, else "plain". `name` is the innermost module that
    holds these layers and those of no other block, or the first layer.
    """

    kind: str
    name: str
    layers: tuple[str, ...]


def blocks(model: nn.Module, example: Example) -> tuple[Block, ...]:
    """The blocks of a network in order of execution.

    Left out are convolutions that read the network's input only, those in shortcuts and in gates
    (squeeze and excitation), and grouped ones that are in no "grouped" block. Nothing is computed;
    raises TraceError like `ChannelGraph.trace`.
    """
    return Layout.of(model, example).blocks


class Layout:
    """Where the layers of a recorded run stand to each other."""

    def __init__(self, twin: nn.Module, recording: Recording) -> None:
        self.twin, self.recording = twin, recording
        self.place = {step: index for index, step in enumerate(recording.steps)}
        self.layers = {step for step in recording.steps if self._weighs(step)}

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> Layout:
        """That of a network in eval mode; raises TraceError."""
        return cls(twin_of(model), record_eval(model, Arguments.of(example)))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in order of execution."""
        first = {name: index for index, name in enumerate(self.called)}
        found = sorted((*self._branches[0], *self._alone()), key=lambda one: first[one.layers[0]])
        return tuple(_named(found))

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The convolutions, transposed ones too, that are called as modules."""
        steps = [n for n in self.recording.steps if n in self.layers and n.kind is Kind.LAYER]
        return tuple(dict.fromkeys(str(step.target) for step in steps if self._convolves(step)))

    @cached_property
    def lent(self) -> frozenset[str]:
        """The modules whose parameters the forward uses by itself."""
        steps = (step for step in self.recording.steps if step.kind is Kind.TENSOR)
        return frozenset(str(step.target).rpartition(".")[0] for step in steps)

    @cached_property
    def added(self) -> frozenset[str]:
        """The layers whose output channels are added to others, behind depthwise ones too."""

        def passes(step: Step) -> bool:
            return self._depthwise(step) or self._passes(step)

        return self._names(reaching(self.recording, lambda step: meets(step, "add"), passes))

    @cached_property
    def classified(self) -> frozenset[str]:
        """The layers that a linear layer reads, but for linear layers of gates."""

        def linear(step: Step) -> bool:
            return step in self._main and not self._convolves(step)

        return self._names(reaching(self.recording, linear, self._passes))

    @cached_property
    def _gates(self) -> set[Step]:
        """The steps whose results only scale others, as in squeeze and excitation."""
        found: set[Step] = set()
        for step in self.recording.steps:
            if meets(step, "mul"):
                both = sides(step, self.place)
                counts = [sum(one in self.layers for one in side) for side in both]
                for count, side in zip(counts, both, strict=True):
                    found |= alone(step, side) if count == max(counts) > 0 else set()
        return found

    @cached_property
    def _main(self) -> set[Step]:
        """The layers but for those of gates."""
        return self.layers - self._gates

    @cached_property
    def _stems(self) -> set[Step]:
        """The layers that read the network's input and nothing else."""
        origins: dict[Step, set[str]] = {}
        for step in self.recording.steps:
            origins[step] = {"input"} if step.kind is Kind.INPUT else set()
            for source in sources(step):
                origins[step] |= {"layer"} if source in self.layers else origins[source]
        return {step for step in self.layers if origins[step] == {"input"}}

    @cached_property
    def _branches(self) -> tuple[list[Block], set[str]]:
        """The blocks of residual branches, and all layers in branches and shortcuts."""
        found: list[Block] = []
        taken: set[str] = set()
        for step in self.recording.steps:
            if meets(step, "add"):
                both = [(self._chain(side), side) for side in sides(step, self.place)]
                most = max(len(chain) for chain, _ in both)
                for chain, side in both:
                    found += self._block(step, chain, side, taken) if len(chain) == most else []
                taken |= {str(one.target) for chain, _ in both for one in chain}
        return found, taken

    def _alone(self) -> Iterator[Block]:
        joined = reaching(self.recording, lambda step: self._knows(step, "joins"), self._passes)
        dense, out = self._names(joined), self._names(self._stems | self._gates)
        out |= self._branches[1]
        for name in self.called:
            if name not in out and self._has_matrix(name):
                yield Block("dense" if name in dense else "plain", name, (name,))

    def _chain(self, side: Collection[Step]) -> list[Step]:
        """The layers of a side in order of execution, without gates."""
        return sorted((n for n in side if n in self._main), key=self.place.__getitem__)

    def _block(
        self, end: Step, chain: Sequence[Step], side: Sequence[Step], taken: set[str]
    ) -> list[Block]:
        """What stands in a branch and in no block within it, if anything."""
        layers = tuple(str(step.target) for step in chain)
        kind = "branch" if taken & {*layers} else self._kind(end, chain, side)
        if kind == "branch":
            named = [n for n in chain if n.kind is Kind.LAYER and n not in self._stems]
            names = dict.fromkeys(str(step.target) for step in named if self._convolves(step))
            layers = tuple(n for n in names if n not in taken and self._has_matrix(n))
        return [Block(kind, "", layers)] if layers else []

    def _kind(self, end: Step, chain: Sequence[Step], side: Collection[Step]) -> str:
        shape = "".join(self._shape(step) for step in chain)
        moved = shape == "1g1" and any(self._moves(step) for step in side)
        if shape not in _SHAPES or moved or not self._in_a_row(end, chain, {*side}):
            return "branch"
        norm = shape == "kk" and self._norm_first(chain, side)
        return "preactivation" if norm else _SHAPES[shape]

    def _shape(self, step: Step) -> str:
        """One letter for a convolution that is called as a module, "?" for other layers."""
        conv = self.twin.get_submodule(str(step.target)) if step.kind is Kind.LAYER else None
        if not isinstance(conv, CONVOLUTIONS) or step in self._stems:
            return "?"
        wide = max(conv.kernel_size) > 1
        if conv.groups == 1:
            return "k" if wide else "1"
        return "g" if wide and conv.in_channels == conv.out_channels else "?"

    def _in_a_row(self, end: Step, chain: Sequence[Step], side: set[Step]) -> bool:
        """Whether each layer is called once and reads the one before it alone."""
        before = [set(), *({step} for step in chain)]
        return len({step.target for step in chain}) == len(chain) and all(
            makers(step, self._main, side) == expected
            for step, expected in zip([*chain, end], before, strict=True)
        )

    def _norm_first(self, chain: Sequence[Step], side: Collection[Step]) -> bool:
        """Whether a norm precedes the first layer that belongs to the block.

        In front of the fork it may as well belong to the stem: then the block has a norm between
        its layers, as behind a layer of the stem, and none behind them.
        """
        step = chain[0]
        while not self._is_norm(step):
            before = sources(step)
            if len(before) != 1 or before[0] in self.layers:
                return False
            step = before[0]
        first, last = (self.place[one] for one in chain)
        norms = [self.place[one] for one in side if self._is_norm(one)]
        between, behind = any(first < n < last for n in norms), any(n > last for n in norms)
        return step in side or (between and not behind)

    def _moves(self, step: Step) -> bool:
        """Whether channels may come out in another order; gates may do so before they scale."""
        return self._knows(step, "moves") and step not in self._gates

    def _is_norm(self, step: Step) -> bool:
        return self._knows(step, "norm")

    def _knows(self, step: Step, fact: str) -> bool:
        """Whether the table of operations says so of what a step calls."""
        entry = of_step(step, self.twin) if step.kind in (Kind.LAYER, Kind.CALL) else None
        return entry is not None and bool(getattr(entry, fact))

    def _has_matrix(self, name: str) -> bool:
        """Whether one matrix can stand for a layer's weight."""
        conv = self.twin.get_submodule(name)
        return isinstance(conv, CONVOLUTIONS) and conv.groups == 1

    def _depthwise(self, step: Step) -> bool:
        return step.kind is Kind.LAYER and goes_whole(self.twin.get_submodule(str(step.target)))

    def _passes(self, step: Step) -> bool:
        return step not in self.layers and not step.asks

    def _names(self, steps: set[Step]) -> frozenset[str]:
        return frozenset(str(step.target) for step in self.layers & steps)

    def _convolves(self, step: Step) -> bool:
        if step.kind is Kind.LAYER:
            return not isinstance(self.twin.get_submodule(str(step.target)), nn.Linear)
        return step.name != "linear"

    def _weighs(self, step: Step) -> bool:
        """Whether a step is a convolution or a linear layer, as a module or a function."""
        return self._knows(step, "weighs")


_SHAPES = {"kk": "basic", "1k1": "bottleneck", "1g1": "grouped"}


def _named(found: Sequence[Block]) -> Iterator[Block]:
    held = Counter(outer for block in found for name in block.layers for outer in _outer(name))
    for block in found:
        shared = (o for o in _outer(block.layers[0]) if all(_in(n, o) for n in block.layers))
        around, count = next(shared, ""), len(block.layers)
        name = around if held[around] == count > 1 else block.layers[0]
        yield Block(block.kind, name, block.layers)


def _in(layer: str, outer: str) -> bool:
    return layer.startswith(f"{outer}.")


def _outer(name: str) -> Iterator[str]:
    """The modules around a layer, innermost first."""
    while name := name.rpartition(".")[0]:
        yield name
