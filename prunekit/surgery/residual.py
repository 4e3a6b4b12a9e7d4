"""Residual blocks whose branch a cut would empty, found in the traced network."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import fx, nn

from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph, symbolic
from prunekit.graph.calls import Call
from prunekit.graph.channels import Example, shapes_of
from prunekit.graph.shared import asks
from prunekit.surgery.skip import ADDED, FUNCTIONS, SkipBlock


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


def empty_blocks(
    model: nn.Module, graph: ChannelGraph, drop: torch.Tensor, example: Example
) -> tuple[EmptyBlock, ...]:
    """The smallest residual blocks whose branches hold every layer that `drop` would empty.

    A block is a module with one tensor in and one out, that is a chain of modules and activations
    but for the addition of the branch. SurgeryError for a layer that is in no such branch.
    """
    emptied = graph.emptied(drop)
    if not emptied:
        return ()
    twin = symbolic.shapes_only(model)
    with torch.no_grad():
        traced = symbolic.graphs(twin, shapes_of(example))[0]
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


def _around(traced: fx.Graph, name: str, emptied: Collection[str]) -> EmptyBlock | None:
    """The smallest block that loses this layer."""
    outer = name.rpartition(".")[0]
    while outer:
        block = _Called(traced, outer).without(emptied)
        if block is not None and block.loses(name):
            return block
        outer = outer.rpartition(".")[0]
    return None


class _Called:
    """The one call of a module in a traced network."""

    def __init__(self, traced: fx.Graph, name: str) -> None:
        self.traced, self.name = traced, name
        self.nodes = {n: None for n in traced.nodes if n.op != "get_attr" and name in _paths(n)}

    def without(self, emptied: Collection[str]) -> EmptyBlock | None:
        """The block without its one dead summand; None where it is not of that kind."""
        entries, exits = self._sources(self.nodes), self._exits()
        if len(_calls(self.nodes, self.name)) != 1 or len(entries) != 1 or len(exits) != 1:
            return None
        (entry,), (node,) = entries, exits
        alive, steps, dead = self._alive(entry, emptied), [], None
        while node is not entry:
            summands = self._summands(node)
            if summands:
                gone = [one for one in summands if one not in alive]
                if len(gone) != 1 or dead is not None:
                    return None
                dead = gone[0]
                step, node = ADDED, next(one for one in summands if one is not dead)
            else:
                step, node = self._step(node)
            if step is None or node is None:
                return None
            steps.append(step)
        return self._block(dead, tuple(reversed(steps))) if dead is not None else None

    def _block(self, dead: fx.Node, steps: tuple[str, ...]) -> EmptyBlock | None:
        while self._child(dead) is None and _operation(dead) in _PASSING:
            (dead,) = self._sources({dead: None})
        child, maker = self._child(dead), _maker(dead)
        alone = [len(_calls(self.traced.nodes, one or "")) == 1 for one in (child, maker)]
        if child is None or maker is None or not all(alone):
            return None
        block = EmptyBlock(self.name, steps, child, maker)
        others = (n for n in self.traced.nodes if n not in self.nodes)
        used = any(block.loses(layer) for node in others for layer in _layers(node))
        return None if used else block

    def _alive(self, entry: fx.Node, emptied: Collection[str]) -> set[fx.Node]:
        """What still depends on the input."""
        alive = {entry}
        for node in self.nodes:
            empty = any(layer in emptied for layer in _layers(node))
            if not empty and not asks(node) and any(n in alive for n in node.all_input_nodes):
                alive.add(node)
        return alive

    def _step(self, node: fx.Node) -> tuple[str | None, fx.Node | None]:
        """A module directly in the block or an activation, and what goes into it."""
        child = self._child(node)
        whole = {node: None}
        if child is not None:
            key = next(key for key, path in _stack(node) if path == child)
            whole = {n: None for n in self.nodes if any(key == other for other, _ in _stack(n))}
        sources = self._sources(whole)
        if len(sources) != 1:
            return None, None
        step = child.removeprefix(f"{self.name}.") if child is not None else _function(node)
        return (None if step is None or "." in step else step), sources[0]

    def _summands(self, node: fx.Node) -> tuple[fx.Node, ...]:
        """The two tensors that are added, by the block itself."""
        nodes = tuple(arg for arg in node.args if isinstance(arg, fx.Node))
        plain = self._child(node) is None and not node.kwargs and len(nodes) == len(node.args) == 2
        return nodes if plain and _operation(node) == "add" else ()

    def _child(self, node: fx.Node) -> str | None:
        """The module that the block called to get there; None if it was the block itself."""
        paths = [*_paths(node)]
        if self.name not in paths:
            return None
        at = paths.index(self.name) + 1
        return paths[at] if at < len(paths) else None

    def _sources(self, nodes: Collection[fx.Node]) -> list[fx.Node]:
        """The tensors from elsewhere that these steps read, without parameters."""
        read = dict.fromkeys(source for node in nodes for source in node.all_input_nodes)
        return [n for n in read if n not in nodes and n.op != "get_attr" and not asks(n)]

    def _exits(self) -> list[fx.Node]:
        return [n for n in self.nodes if any(user not in self.nodes for user in n.users)]


_PASSING = frozenset({"dropout", "stochastic_depth"})  # zeros and constants stay what they are


def _stack(node: fx.Node) -> list[tuple[str, str]]:
    """The calls in whose forward a step is made, outermost first: a key each, and the module."""
    return [(key, path) for key, (path, _) in node.meta.get("nn_module_stack", {}).items()]


def _paths(node: fx.Node) -> Iterator[str]:
    return (path for _, path in _stack(node))


def _calls(nodes: Collection[fx.Node], name: str) -> set[str]:
    return {key for node in nodes for key, path in _stack(node) if path == name}


def _operation(node: fx.Node) -> str | None:
    return Call(node, node.target, (), {}).name if node.op.startswith("call_") else None


def _function(node: fx.Node) -> str | None:
    """An activation with nothing but defaults, as a step."""
    name = f"{_operation(node)}()"
    plain = len(node.args) == 1 and set(node.kwargs) <= {"inplace"}
    return name if plain and node.op != "call_module" and name in FUNCTIONS else None


def _layers(node: fx.Node) -> list[str]:
    """The layer that a step calls, or those whose parameters it reads, and these parameters."""
    if node.op == "call_module":
        return [str(node.target)]
    read = [str(source.target) for source in node.all_input_nodes if source.op == "get_attr"]
    return [*read, *(path.rpartition(".")[0] for path in read)]


def _maker(node: fx.Node) -> str | None:
    """The convolution, norm, ... that made a tensor, through what changes no channels."""
    while node.op == "call_function" and _operation(node) in _PASSING:
        node = node.all_input_nodes[0]
    return str(node.target) if node.op == "call_module" else next(iter(_layers(node)[1:]), None)
