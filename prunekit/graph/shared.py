"""Batch norms whose input channels are also read past them: where a channel selection belongs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import fx, nn

from prunekit.graph import symbolic
from prunekit.graph.calls import NAMES
from prunekit.graph.channels import Example, shapes_of
from prunekit.graph.layers import BATCH_NORMS, CONSUMERS, FUNCTIONS, norm_owner
from prunekit.graph.rules import QUESTIONS
from prunekit.graph.select import ChannelSelection


def shared_norms(model: nn.Module, example: Example) -> tuple[str, ...]:
    """The batch norms that read channels which other layers read past them, in order of execution.

    Such are the first norm of a pre-activation block and all norms of dense blocks; a norm behind
    its convolution is none, nor is one behind a `ChannelSelection`. Nothing is computed; raises
    TraceError like `ChannelGraph.trace`.
    """
    twin = symbolic.shapes_only(model)
    with torch.no_grad():
        graphs = symbolic.graphs(twin, shapes_of(example))
    return tuple(dict.fromkeys(name for graph in graphs for name in _shared(twin, graph)))


def _shared(twin: nn.Module, graph: fx.Graph) -> Iterator[str]:
    layers = {node for node in graph.nodes if _is_layer(twin, node)}
    for node in graph.nodes:
        name = _norm(twin, node)
        if name is not None and _read_past(node, _makers(node.all_input_nodes, layers), layers):
            yield name


def _norm(twin: nn.Module, node: fx.Node) -> str | None:
    """The batch norm that a step calls; None for others, and for one that only lends its numbers.

    What stands in front of a module is not seen by functions that are given its parameters.
    """
    if node.op == "call_module":
        return str(node.target) if isinstance(_called(twin, node), BATCH_NORMS) else None
    owner = norm_owner(twin, node)
    if owner is None or not isinstance(twin.get_submodule(owner), BATCH_NORMS):
        return None
    inside = [path for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return owner if inside[-1:] == [owner] else None


def _makers(sources: Collection[fx.Node], layers: Collection[fx.Node]) -> set[fx.Node]:
    """The layers whose channels arrive here, through whatever lies between."""
    found, seen, queue = set(), set(sources), [*sources]
    while queue:
        node = queue.pop()
        if node in layers:
            found.add(node)
            continue
        new = [source for source in node.all_input_nodes if source not in seen]
        seen.update(new)
        queue.extend(new)
    return found


def _read_past(norm: fx.Node, makers: Collection[fx.Node], layers: Collection[fx.Node]) -> bool:
    """Whether a layer, or the caller, gets something of these makers that did not pass the norm."""
    seen, queue = {norm, *makers}, [*makers]
    while queue:
        for user in queue.pop().users:
            if user.op == "output" or user in layers:
                return True
            if user not in seen and not asks(user):
                seen.add(user)
                queue.append(user)
    return False


def _is_layer(twin: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(_called(twin, node), (*CONSUMERS, ChannelSelection))
    return node.op == "call_function" and NAMES.get(node.target) in FUNCTIONS


def asks(node: fx.Node) -> bool:
    """Whether a step asks for a size or a type: nothing of the channels goes on."""
    name = node.target if isinstance(node.target, str) else NAMES.get(node.target)
    return node.op in ("call_function", "call_method") and name in {"getattr", *QUESTIONS}


def _called(twin: nn.Module, node: fx.Node) -> nn.Module:
    return twin.get_submodule(str(node.target))
