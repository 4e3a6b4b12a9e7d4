"""Kinds of blocks that convolutions stand in, told from the traced network alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import fx, nn

from prunekit.graph import symbolic
from prunekit.graph.calls import NAMES
from prunekit.graph.channels import Example, shapes_of
from prunekit.graph.junctions import alone, makers, meets, operation, reaching, sides, sources
from prunekit.graph.layers import (
    BATCH_NORMS,
    CONSUMERS,
    CONVOLUTIONS,
    FUNCTIONS,
    INSTANCE_NORMS,
    NORMS_OF_GROUPS,
)
from prunekit.graph.moves import MOVING
from prunekit.graph.shared import asks
from prunekit.graph.whole import goes_whole

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
    """Where the layers of a traced network stand to each other."""

    def __init__(self, twin: nn.Module, graph: fx.Graph) -> None:
        self.twin, self.graph = twin, graph
        self.place = {node: index for index, node in enumerate(graph.nodes)}
        self.layers = {node for node in graph.nodes if self._weighs(node)}

    @classmethod
    def of(cls, model: nn.Module, example: Example) -> Layout:
        """That of a network in eval mode; raises TraceError."""
        twin = symbolic.shapes_only(model)
        with torch.no_grad():
            return cls(twin, symbolic.graphs(twin, shapes_of(example))[0])

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks in order of execution."""
        first = {name: index for index, name in enumerate(self.called)}
        found = sorted((*self._branches[0], *self._alone()), key=lambda one: first[one.layers[0]])
        return tuple(_named(found))

    @cached_property
    def called(self) -> tuple[str, ...]:
        """The convolutions, transposed ones too, that are called as modules."""
        nodes = [n for n in self.graph.nodes if n in self.layers and n.op == "call_module"]
        return tuple(dict.fromkeys(str(node.target) for node in nodes if self._convolves(node)))

    @cached_property
    def lent(self) -> frozenset[str]:
        """The modules whose parameters the forward uses by itself."""
        nodes = (node for node in self.graph.nodes if node.op == "get_attr")
        return frozenset(str(node.target).rpartition(".")[0] for node in nodes)

    @cached_property
    def added(self) -> frozenset[str]:
        """The layers whose output channels are added to others, behind depthwise ones too."""

        def passes(node: fx.Node) -> bool:
            return self._depthwise(node) or self._passes(node)

        return self._names(reaching(self.graph, lambda node: meets(node, "add"), passes))

    @cached_property
    def classified(self) -> frozenset[str]:
        """The layers that a linear layer reads, but for linear layers of gates."""

        def linear(node: fx.Node) -> bool:
            return node in self._main and not self._convolves(node)

        return self._names(reaching(self.graph, linear, self._passes))

    @cached_property
    def _gates(self) -> set[fx.Node]:
        """The steps whose results only scale others, as in squeeze and excitation."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if meets(node, "mul"):
                both = sides(node, self.place)
                counts = [sum(one in self.layers for one in side) for side in both]
                for count, side in zip(counts, both, strict=True):
                    found |= alone(node, side) if count == max(counts) > 0 else set()
        return found

    @cached_property
    def _main(self) -> set[fx.Node]:
        """The layers but for those of gates."""
        return self.layers - self._gates

    @cached_property
    def _stems(self) -> set[fx.Node]:
        """The layers that read the network's input and nothing else."""
        origins: dict[fx.Node, set[str]] = {}
        for node in self.graph.nodes:
            origins[node] = {"input"} if node.op == "placeholder" else set()
            for source in sources(node):
                origins[node] |= {"layer"} if source in self.layers else origins[source]
        return {node for node in self.layers if origins[node] == {"input"}}

    @cached_property
    def _branches(self) -> tuple[list[Block], set[str]]:
        """The blocks of residual branches, and all layers in branches and shortcuts."""
        found: list[Block] = []
        taken: set[str] = set()
        for node in self.graph.nodes:
            if meets(node, "add"):
                both = [(self._chain(side), side) for side in sides(node, self.place)]
                most = max(len(chain) for chain, _ in both)
                for chain, side in both:
                    found += self._block(node, chain, side, taken) if len(chain) == most else []
                taken |= {str(one.target) for chain, _ in both for one in chain}
        return found, taken

    def _alone(self) -> Iterator[Block]:
        joined = reaching(self.graph, lambda node: operation(node) in _JOINING, self._passes)
        dense, out = self._names(joined), self._names(self._stems | self._gates)
        out |= self._branches[1]
        for name in self.called:
            if name not in out and self._has_matrix(name):
                yield Block("dense" if name in dense else "plain", name, (name,))

    def _chain(self, side: Collection[fx.Node]) -> list[fx.Node]:
        """The layers of a side in order of execution, without gates."""
        return sorted((n for n in side if n in self._main), key=self.place.__getitem__)

    def _block(
        self, end: fx.Node, chain: Sequence[fx.Node], side: Sequence[fx.Node], taken: set[str]
    ) -> list[Block]:
        """What stands in a branch and in no block within it, if anything."""
        layers = tuple(str(node.target) for node in chain)
        kind = "branch" if taken & {*layers} else self._kind(end, chain, side)
        if kind == "branch":
            named = [n for n in chain if n.op == "call_module" and n not in self._stems]
            names = dict.fromkeys(str(node.target) for node in named if self._convolves(node))
            layers = tuple(n for n in names if n not in taken and self._has_matrix(n))
        return [Block(kind, "", layers)] if layers else []

    def _kind(self, end: fx.Node, chain: Sequence[fx.Node], side: Collection[fx.Node]) -> str:
        shape = "".join(self._shape(node) for node in chain)
        moved = shape == "1g1" and any(self._moves(node) for node in side)
        if shape not in _SHAPES or moved or not self._in_a_row(end, chain, {*side}):
            return "branch"
        norm = shape == "kk" and self._norm_first(chain, side)
        return "preactivation" if norm else _SHAPES[shape]

    def _shape(self, node: fx.Node) -> str:
        """One letter for a convolution that is called as a module, "?" for other layers."""
        conv = self.twin.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, CONVOLUTIONS) or node in self._stems:
            return "?"
        wide = max(conv.kernel_size) > 1
        if conv.groups == 1:
            return "k" if wide else "1"
        return "g" if wide and conv.in_channels == conv.out_channels else "?"

    def _in_a_row(self, end: fx.Node, chain: Sequence[fx.Node], side: set[fx.Node]) -> bool:
        """Whether each layer is called once and reads the one before it alone."""
        before = [set(), *({node} for node in chain)]
        return len({node.target for node in chain}) == len(chain) and all(
            makers(node, side, self._main) == expected
            for node, expected in zip([*chain, end], before, strict=True)
        )

    def _norm_first(self, chain: Sequence[fx.Node], side: Collection[fx.Node]) -> bool:
        """Whether a norm precedes the first layer that belongs to the block.

        In front of the fork it may as well belong to the stem: then the block has a norm between
        its layers, as behind a layer of the stem, and none behind them.
        """
        node = chain[0]
        while not self._is_norm(node):
            before = sources(node)
            if len(before) != 1 or before[0] in self.layers:
                return False
            node = before[0]
        first, last = (self.place[one] for one in chain)
        norms = [self.place[one] for one in side if self._is_norm(one)]
        between, behind = any(first < n < last for n in norms), any(n > last for n in norms)
        return node in side or (between and not behind)

    def _moves(self, node: fx.Node) -> bool:
        """Whether channels may come out in another order; gates may do so before they scale."""
        if node.op == "call_module":
            moving = isinstance(self.twin.get_submodule(str(node.target)), _MOVERS)
        else:
            moving = operation(node) in MOVING
        return moving and node not in self._gates

    def _is_norm(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self.twin.get_submodule(str(node.target)), _NORMS)
        return (operation(node) or "").endswith("_norm")

    def _has_matrix(self, name: str) -> bool:
        """Whether one matrix can stand for a layer's weight."""
        conv = self.twin.get_submodule(name)
        return isinstance(conv, CONVOLUTIONS) and conv.groups == 1

    def _depthwise(self, node: fx.Node) -> bool:
        return node.op == "call_module" and goes_whole(self.twin.get_submodule(str(node.target)))

    def _passes(self, node: fx.Node) -> bool:
        return node not in self.layers and not asks(node)

    def _names(self, nodes: set[fx.Node]) -> frozenset[str]:
        return frozenset(str(node.target) for node in self.layers & nodes)

    def _convolves(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return not isinstance(self.twin.get_submodule(str(node.target)), nn.Linear)
        return NAMES.get(node.target) != "linear"

    def _weighs(self, node: fx.Node) -> bool:
        """Whether a step is a convolution or a linear layer, as a module or a function."""
        if node.op == "call_module":
            return isinstance(self.twin.get_submodule(str(node.target)), CONSUMERS)
        name = NAMES.get(node.target, "") if node.op == "call_function" else ""
        return name in FUNCTIONS or name.startswith("conv_transpose")


_SHAPES = {"kk": "basic", "1k1": "bottleneck", "1g1": "grouped"}
_JOINING = frozenset({"cat", "concat", "concatenate"})
_NORMS = (*BATCH_NORMS, *INSTANCE_NORMS, *NORMS_OF_GROUPS, nn.LayerNorm)
_MOVERS = (nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.Flatten, nn.Unflatten)


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
