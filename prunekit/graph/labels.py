"""Running a traced network on labels: what all passes over the graph have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.graph.calls import Call
from prunekit.graph.layers import rule_of
from prunekit.graph.values import Value, each, fixed


class Run(ABC):
    """One pass over all graphs of a network; `results` holds what every node produced."""

    def __init__(
        self,
        twin: nn.Module,
        graphs: Sequence[fx.Graph],
        inputs: Sequence[Tensor],
        over_norms: bool,
    ) -> None:
        self.twin = twin
        self.graphs = graphs
        self.inputs = inputs
        self.over_norms = over_norms
        self.nodes = [node for graph in graphs for node in graph.nodes]
        self.results: dict[fx.Node, Any] = {}
        self._given = {
            node: index
            for graph in graphs
            for index, node in enumerate(graph.find_nodes(op="placeholder"))
        }

    @abstractmethod
    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Labels that meet share their fate."""

    @abstractmethod
    def freeze(self, labels: Tensor, call: Call | None, why: str | None) -> None:
        """These labels stay; `why` becomes a note, behind the call's title; None says nothing."""

    @abstractmethod
    def layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Pass a layer that makes new channels; returns its output's shape and their labels."""

    @abstractmethod
    def norm(self, call: Call, labels: Tensor) -> None:
        """Pass a layer that holds parameters for every channel."""

    @abstractmethod
    def attribute(self, node: fx.Node) -> Any:
        """A parameter, buffer or other object that the forward reads by itself."""

    def adopt(self, call: Call) -> Call:
        """Let parameters in the arguments follow the channels they are combined with."""
        return call

    def node(self, node: fx.Node) -> Any:
        """The result of one node."""
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return self.attribute(node)
        args = fx.node.map_arg(node.args, self.results.__getitem__)
        if node.op == "output":
            return self.output(args[0])
        kwargs = fx.node.map_arg(node.kwargs, self.results.__getitem__)
        if node.op == "call_module":
            module = self.twin.get_submodule(node.target)
            return self.call(Call(node, module, tuple(args), dict(kwargs), module))
        op = node.target if node.op == "call_function" else _method(node.target)
        return self.call(Call(node, op, tuple(args), dict(kwargs)))

    def call(self, call: Call) -> Any:
        """The result of an operation; without values among its arguments it is simply executed."""
        if call.values:
            return rule_of(call)(self, call)
        with torch.device("meta"):
            result = call.op(*call.args, **call.kwargs)
        return each(result, lambda tensor: fixed(tensor.to("meta")), Tensor)

    def originals(self, call: Call) -> list[Value]:
        """The values of a call as they are in the full network."""
        return call.values

    def outcome(self, call: Call) -> Any:
        """The result on shapes of an operation that is not followed."""
        return call.on_meta()

    def output(self, result: Any) -> Any:
        """What leaves the network."""
        return result

    def _placeholder(self, node: fx.Node) -> Any:
        index = self._given[node]
        if index < len(self.inputs):
            return fixed(self.inputs[index])
        return node.args[0] if node.args else None


def _method(name: str) -> Callable[..., Any]:
    return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)
