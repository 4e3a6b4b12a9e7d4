"""The kinds of blocks that convolutions are part of, recognised in a recorded run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import nn

from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.dataflow import (
    combines_two,
    input_steps,
    needed_only_by,
    operand_branches,
    producing_layers,
    steps_reaching,
)
from prunekit.graph.layers import CONVOLUTIONS
from prunekit.graph.recording.copies import copy_network
from prunekit.graph.recording.passes import record_eval
from prunekit.graph.recording.steps import Kind, Recording, Step
from prunekit.graph.table import step_operation
from prunekit.graph.whole_groups import removes_whole_groups

KINDS = ("basic", "preactivation", "bottleneck", "grouped", "branch", "dense", "plain")
_KIND_OF_SHAPES = {"kk": "basic", "1k1": "bottleneck", "1g1": "grouped"}  # see Layout._shape


@dataclass(frozen=True)
class Block:
    """Convolutions that belong together, in order of execution.

    Residual branches are "basic" (two k x k convolutions), "preactivation" (the same with a norm
    layer before the first), "bottleneck" (1 x 1, k x k, 1 x 1), "grouped" (the same with
    convolution groups, or depthwise) or "branch" (any other). Outside of them each convolution is a
    block of its own, "dense" if its outputs are concatenated, else "plain". `name` is the innermost
    module that contains exactly these layers of all blocks, or else the first layer.
    """

    kind: str
    name: str
    layers: tuple[str, ...]


def blocks(model: nn.Module, example: Example) -> tuple[Block, ...]:
    """Return the blocks of a network in order of execution.

    Convolutions are left out if they read only the network's input, are part of a shortcut or a
    gate (squeeze and excitation), or are grouped but not in a "grouped" block. The network is only
    recorded, not computed; raises TraceError like `ChannelGraph.trace`.
    """
    return Layout.of(model, example).blocks


class Layout:
    """The connections between the layers of a network, from one recording in eval mode."""

    def __init__(self, network: nn.Module, recording: Recording) -> None:
        self.network, self.recording = network, recording
        self.order = {step: index for index, step in enumerate(recording.steps)}
        self.layers = {step for step in recording.steps if self._is(step, "weighted")}

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> Layout:
        """Record a network in eval mode; raises TraceError."""
        return cls(copy_network(model), record_eval(model, Arguments.of(example)))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in order of execution."""
        order = {name: index for index, name in enumerate(self.called)}
        unnamed = [*self._branches[0], *self._single_blocks()]
        return tuple(_with_names(sorted(unnamed, key=lambda block: order[block.layers[0]])))

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The convolutions, also transposed ones, that are called as modules."""
        steps = [n for n in self.recording.steps if n in self.layers and n.kind is Kind.LAYER]
        return tuple(dict.fromkeys(str(step.target) for step in steps if self._convolves(step)))

    @cached_property
    def used_parameters(self) -> frozenset[str]:
        """The modules whose parameters the forward uses without calling the module."""
        steps = (step for step in self.recording.steps if step.kind is Kind.TENSOR)
        return frozenset(str(step.target).rpartition(".")[0] for step in steps)

    @cached_property
    def added(self) -> frozenset[str]:
        """The layers whose output channels are added to others, perhaps after depthwise layers."""

        def passes(step: Step) -> bool:
            return self._is_depthwise(step) or self._passes(step)

        return self._names(
            steps_reaching(self.recording, lambda step: combines_two(step, "add"), passes)
        )

    @cached_property
    def classified(self) -> frozenset[str]:
        """The layers that a linear layer reads, apart from linear layers of gates."""

        def is_linear(step: Step) -> bool:
            return step in self._ungated and not self._convolves(step)

        return self._names(steps_reaching(self.recording, is_linear, self._passes))

    @cached_property
    def _gates(self) -> set[Step]:
        """The steps whose results only scale others, as in squeeze and excitation."""
        gates: set[Step] = set()
        for step in self.recording.steps:
            if combines_two(step, "mul"):
                both = operand_branches(step, self.order)
                counts = [sum(other in self.layers for other in side) for side in both]
                for count, side in zip(counts, both, strict=True):
                    gates |= needed_only_by(step, side) if count == max(counts) > 0 else set()
        return gates

    @cached_property
    def _ungated(self) -> set[Step]:
        """The layers that are not in gates."""
        return self.layers - self._gates

    @cached_property
    def _stems(self) -> set[Step]:
        """The layers that read the network's input and nothing else."""
        origins: dict[Step, set[str]] = {}
        for step in self.recording.steps:
            origins[step] = {"input"} if step.kind is Kind.INPUT else set()
            for source in input_steps(step):
                origins[step] |= {"layer"} if source in self.layers else origins[source]
        return {step for step in self.layers if origins[step] == {"input"}}

    @cached_property
    def _branches(self) -> tuple[list[Block], set[str]]:
        """The blocks of residual branches, and the names of all layers in branches and shortcuts.

        Of the two operands of an addition, the branch is the one with more layers.
        """
        branches: list[Block] = []
        taken: set[str] = set()
        for step in self.recording.steps:
            if combines_two(step, "add"):
                both = [
                    (self._layers_of(side), side) for side in operand_branches(step, self.order)
                ]
                most = max(len(layers) for layers, _ in both)
                for layers, side in both:
                    if len(layers) == most:
                        branches += self._branch(step, layers, side, taken)
                taken |= {str(layer.target) for layers, _ in both for layer in layers}
        return branches, taken

    def _single_blocks(self) -> Iterator[Block]:
        """Yield the convolutions outside of residual branches as blocks of their own."""
        concatenated = steps_reaching(
            self.recording, lambda step: self._is(step, "concatenates"), self._passes
        )
        dense = self._names(concatenated)
        excluded = self._names(self._stems | self._gates) | self._branches[1]
        for name in self.called:
            if name not in excluded and self._may_have_matrix(name):
                yield Block("dense" if name in dense else "plain", name, (name,))

    def _layers_of(self, side: Collection[Step]) -> list[Step]:
        """Return the layers among these steps in order of execution, without gates."""
        return sorted((n for n in side if n in self._ungated), key=self.order.__getitem__)

    def _branch(
        self, end: Step, layers: Sequence[Step], side: Sequence[Step], taken: set[str]
    ) -> list[Block]:
        """Return the block of a branch that ends in `end`; none if inner blocks have its layers."""
        names = tuple(str(step.target) for step in layers)
        kind = "branch" if taken & {*names} else self._kind(end, layers, side)
        if kind == "branch":
            called = [n for n in layers if n.kind is Kind.LAYER and n not in self._stems]
            distinct = dict.fromkeys(str(n.target) for n in called if self._convolves(n))
            names = tuple(n for n in distinct if n not in taken and self._may_have_matrix(n))
        return [Block(kind, "", names)] if names else []

    def _kind(self, end: Step, layers: Sequence[Step], side: Collection[Step]) -> str:
        shapes = "".join(self._shape(step) for step in layers)
        permuted = shapes == "1g1" and any(self._permutes(step) for step in side)
        if shapes not in _KIND_OF_SHAPES or permuted:
            return "branch"
        if not self._is_sequence(end, layers, {*side}):
            return "branch"
        preactivation = shapes == "kk" and self._has_norm_first(layers, side)
        return "preactivation" if preactivation else _KIND_OF_SHAPES[shapes]

    def _shape(self, step: Step) -> str:
        """Return a letter for the kernel: 1, k, or g for grouped ones; "?" for other layers."""
        conv = self.network.get_submodule(str(step.target)) if step.kind is Kind.LAYER else None
        if not isinstance(conv, CONVOLUTIONS) or step in self._stems:
            return "?"
        wide = max(conv.kernel_size) > 1
        if conv.groups == 1:
            return "k" if wide else "1"
        return "g" if wide and conv.in_channels == conv.out_channels else "?"

    def _is_sequence(self, end: Step, layers: Sequence[Step], side: set[Step]) -> bool:
        """Return whether each layer is called once and reads only the one before it."""
        before = [set(), *({step} for step in layers)]
        return len({step.target for step in layers}) == len(layers) and all(
            producing_layers(step, self._ungated, side) == expected
            for step, expected in zip([*layers, end], before, strict=True)
        )

    def _has_norm_first(self, layers: Sequence[Step], side: Collection[Step]) -> bool:
        """Return whether a norm layer before the first of two layers belongs to the block.

        A norm layer before the fork may also belong to the stem. It belongs to the block if the
        block has another one between its layers and none after them.
        """
        step = layers[0]
        while not self._is(step, "normalizes"):
            before = input_steps(step)
            if len(before) != 1 or before[0] in self.layers:
                return False
            step = before[0]
        first, last = (self.order[layer] for layer in layers)
        norms = [self.order[other] for other in side if self._is(other, "normalizes")]
        between, after = any(first < n < last for n in norms), any(n > last for n in norms)
        return step in side or (between and not after)

    def _permutes(self, step: Step) -> bool:
        """Return whether channels may change their order; inside gates that does not matter."""
        return self._is(step, "moves") and step not in self._gates

    def _is(
        self, step: Step, fact: Literal["weighted", "concatenates", "normalizes", "moves"]
    ) -> bool:
        """Return a fact that the table of operations has about the operation of a step."""
        entry = step_operation(step, self.network) if step.kind in (Kind.LAYER, Kind.CALL) else None
        return entry is not None and bool(getattr(entry, fact))

    def _may_have_matrix(self, name: str) -> bool:
        """Return whether a layer is a convolution without groups."""
        conv = self.network.get_submodule(name)
        return isinstance(conv, CONVOLUTIONS) and conv.groups == 1

    def _is_depthwise(self, step: Step) -> bool:
        return step.kind is Kind.LAYER and removes_whole_groups(
            self.network.get_submodule(str(step.target))
        )

    def _passes(self, step: Step) -> bool:
        return step not in self.layers and not step.is_query

    def _names(self, steps: set[Step]) -> frozenset[str]:
        return frozenset(str(step.target) for step in self.layers & steps)

    def _convolves(self, step: Step) -> bool:
        if step.kind is Kind.LAYER:
            return not isinstance(self.network.get_submodule(str(step.target)), nn.Linear)
        return step.name != "linear"


def _with_names(unnamed: Sequence[Block]) -> Iterator[Block]:
    """Yield the blocks with their names: the innermost module with these layers and no others."""
    counts = Counter(outer for block in unnamed for name in block.layers for outer in _outer(name))
    for block in unnamed:
        common = (
            outer
            for outer in _outer(block.layers[0])
            if all(name.startswith(f"{outer}.") for name in block.layers)
        )
        module, size = next(common, ""), len(block.layers)
        name = module if counts[module] == size > 1 else block.layers[0]
        yield Block(block.kind, name, block.layers)


def _outer(name: str) -> Iterator[str]:
    """Yield the names of the modules around a layer, innermost first."""
    while name := name.rpartition(".")[0]:
        yield name
