"""Running a traced network on labels: once to discover what hangs together, then to make sure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from prunekit.errors import PrunekitError, TraceError
from prunekit.graph.calls import Call
from prunekit.graph.layers import (
    CONSUMERS,
    PER_CHANNEL,
    TRANSPOSED,
    channel_dim,
    fixed_macs,
    rule_of,
    width_of,
)
from prunekit.graph.moves import MOVING
from prunekit.graph.partition import FIXED, Partition
from prunekit.graph.symbolic import describe
from prunekit.graph.values import Value, compress, each, fixed, resize, values_in


class Run(ABC):
    """One pass over the graph; `results` holds what every node produced."""

    def __init__(self, twin: nn.Module, graph: fx.Graph, inputs: Sequence[Tensor]) -> None:
        self.twin = twin
        self.graph = graph
        self.results: dict[fx.Node, Any] = {}
        self._inputs = iter(inputs)

    @abstractmethod
    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Labels that meet share their fate."""

    @abstractmethod
    def freeze(self, labels: Tensor, call: Call, why: str | None) -> None:
        """These labels stay; `why` becomes a note, None says nothing."""

    @abstractmethod
    def layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Pass a layer that makes new channels; returns its output's shape and their labels."""

    @abstractmethod
    def norm(self, call: Call, labels: Tensor) -> None:
        """Pass a layer that holds parameters for every channel."""

    def node(self, node: fx.Node) -> Any:
        """The result of one node."""
        args = fx.node.map_arg(node.args, self.results.__getitem__)
        kwargs = fx.node.map_arg(node.kwargs, self.results.__getitem__)
        if node.op == "placeholder":
            return self._placeholder(node)
        if node.op == "get_attr":
            return fixed(_attribute(self.twin, node.target).to("meta"))
        if node.op == "output":
            return self.output(args[0])
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

    def output(self, result: Any) -> Any:
        """What leaves the network."""
        return result

    def _placeholder(self, node: fx.Node) -> Any:
        given = next(self._inputs, None)
        if given is not None:
            return fixed(given)
        return node.args[0] if node.args else None


class Discovery(Run):
    """The first pass: gives out labels and unites those that meet."""

    def __init__(self, twin: nn.Module, graph: fx.Graph, inputs: Sequence[Tensor]) -> None:
        super().__init__(twin, graph, inputs)
        self.parts = Partition()
        self.ins: dict[str, Tensor] = {}
        self.outs: dict[str, Tensor] = {}
        self.producers: dict[str, Tensor] = {}  # layers that made labels, with these labels
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.uses: dict[str, int] = {}
        self.fixed_macs = 0
        self.calls: dict[fx.Node, Call] = {}
        self.notes: dict[str, None] = {}
        self._exposed: set[int] = set()

    def play(self) -> None:
        """Run the network; raises TraceError where it fails on shapes alone."""
        for node in self.graph.nodes:
            try:
                self.results[node] = self.node(node)
            except PrunekitError:
                raise
            except Exception as error:
                raise TraceError(
                    f"{type(self.twin).__name__} fails on an example of this shape at "
                    f"{describe(node)}: {str(error).splitlines()[0] if str(error) else error!r}"
                ) from error
            self._remember(node)
        self._tie()
        self._name_uncalled()

    def call(self, call: Call) -> Any:
        """Keep the call for the passes to come."""
        self.calls[call.node] = call
        result = super().call(call)
        if str(call.node.target) not in self.uses:
            self.fixed_macs += fixed_macs(call, result)
        return result

    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Merge classes; what meets a fixed channel is fixed from then on."""
        a, b = torch.broadcast_tensors(a, b)
        caught = (a == FIXED) != (b == FIXED)
        if bool(caught.any()):
            names = self.owners(torch.maximum(a, b)[caught])
            some, why = int(caught.sum()), "they meet what cannot be removed"
            self.notes[f"{names}: {some} channels are frozen by {call.title}: {why}"] = None
        self.parts.unite(a, b)

    def freeze(self, labels: Tensor, call: Call, why: str | None) -> None:
        """Merge the classes of `labels` into the fixed one."""
        owners = self.owners(labels)
        if self.parts.freeze(labels) and why:
            self.notes[f"{owners}: channels are frozen by {call.title}: {why}"] = None

    def layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Record what goes in, label what comes out; a second call unites with the first."""
        name, module = str(call.node.target), call.module
        meta = call.on_meta()
        groups = getattr(module, "groups", 1)
        self._pass(self.ins, name, incoming)
        if 1 < groups < len(incoming):  # all convolution groups keep the same channels
            self.parts.unite(incoming.reshape(groups, -1), incoming.reshape(groups, -1)[:1])
        width = meta.shape[channel_dim(module, meta.ndim)]
        if name not in self.outs:
            self.outs[name] = self._outgoing(name, incoming, groups, width)
        counted = call.values[0].meta if isinstance(module, TRANSPOSED) else meta
        channels = counted.shape[channel_dim(module, counted.ndim)]
        self.uses[name] = self.uses.get(name, 0) + counted.numel() // channels
        return meta, self.outs[name]

    def norm(self, call: Call, labels: Tensor) -> None:
        """Record the same labels on both sides."""
        width = width_of(call.module)
        if len(labels) != width:
            raise ValueError(f"it has {width} channels and gets {len(labels)}")
        for table in (self.ins, self.outs):
            self._pass(table, str(call.node.target), labels)

    def output(self, result: Any) -> Any:
        """Nothing that leaves the network can vanish."""
        for value in values_in(result):
            self.parts.freeze(value.labels)
        return result

    def owners(self, labels: Tensor) -> str:
        """The layers that made these labels, for messages."""
        ids = set(labels.flatten().tolist()) - {FIXED}
        found = [
            name
            for name, made in self.producers.items()
            if any(int(made[0]) <= one <= int(made[-1]) for one in ids)
        ]
        return ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")

    def _outgoing(self, name: str, incoming: Tensor, groups: int, width: int) -> Tensor:
        if groups > 1 and groups == len(incoming):  # depthwise: no channel meets another
            return incoming.repeat_interleave(width // groups)
        made = self.parts.fresh(width)
        self.producers[name] = made
        if groups > 1:
            self.parts.unite(made.reshape(groups, -1), made.reshape(groups, -1)[:1])
        return made

    def _pass(self, table: dict[str, Tensor], name: str, labels: Tensor) -> None:
        self.parts.unite(table.setdefault(name, labels), labels)

    def _remember(self, node: fx.Node) -> None:
        result = self.results[node]
        if node.op == "get_attr":
            self._exposed.add(id(_attribute(self.twin, node.target)))
        if node.op == "call_module" and isinstance(result, Value):
            self.shapes[node.target] = tuple(result.meta.shape)
            if node.target not in self.outs and result.meta.ndim > 1:
                dim = next(iter(result.varying), 1)
                if set(result.varying) <= {dim}:
                    self.outs[node.target] = result.along(dim)

    def _tie(self) -> None:
        """Parameters that belong to several layers keep the layers alike."""
        owners: dict[int, list[tuple[str, str]]] = {}
        for name, module in self.twin.named_modules():
            for kind, parameter in module._parameters.items():
                if parameter is not None:
                    owners.setdefault(id(parameter), []).append((name, kind))
        for key, places in owners.items():
            names = [name for name, _ in places]
            if len(places) > 1 or key in self._exposed:
                self._tie_layers(names, key in self._exposed)

    def _tie_layers(self, names: list[str], exposed: bool) -> None:
        sides = [
            tuple(table[name] for table in (self.ins, self.outs) if name in table) for name in names
        ]
        alike = len({tuple(len(side) for side in pair) for pair in sides}) == 1 and sides[0]
        modules = [self.twin.get_submodule(name) for name in names]
        known = all(isinstance(module, (*CONSUMERS, *PER_CHANNEL)) for module in modules)
        if alike and known and not exposed:
            for pair in sides[1:]:
                for one, other in zip(sides[0], pair, strict=True):
                    self.parts.unite(one, other)
            return
        changed = [self.parts.freeze(side) for pair in sides for side in pair]
        if any(changed):
            self.notes[
                f"{', '.join(names)}: channels are frozen: a parameter is also used elsewhere"
            ] = None

    def _name_uncalled(self) -> None:
        for name, module in self.twin.named_modules():
            if isinstance(module, CONSUMERS) and name not in self.shapes:
                self.notes[f"{name}: not called in eval mode, keeps its size"] = None


class Rehearsal(Run):
    """A later pass: runs the network as it would be without some units, and finds what fails.

    Constants in the user's code (sizes, indices, parameters of their own) show up here, because the
    narrowed network then computes on other channels than the labels promise.
    """

    def __init__(self, first: Discovery, inputs: Sequence[Tensor], roots: Tensor, drop: Tensor):
        super().__init__(first.twin, first.graph, inputs)
        self.first = first
        self.roots = roots
        self.drop = drop
        self.failed: list[fx.Node] = []

    def play(self) -> None:
        """Run the network, and note every node whose result is not what it should be."""
        for node in self.graph.nodes:
            promised = each(self.first.results[node], self.shrink, Value)
            try:
                result = self.node(node)
                right = _same(result, promised)
            except Exception:  # whatever a narrowed network stumbles over is a constant in its way
                right = False
            self.results[node] = result if right else promised
            if not right:
                self.failed.append(node)

    def call(self, call: Call) -> Any:
        """Only operations that move entries may depend on sizes that change."""
        if call.values and call.name not in MOVING and _differ(call, self.first.calls[call.node]):
            raise _Mismatch
        return super().call(call)

    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Labels that meet must be the same by now."""
        if not _equal(*torch.broadcast_tensors(a, b)):
            raise _Mismatch

    def freeze(self, labels: Tensor, call: Call, why: str | None) -> None:
        """Nothing is left to freeze."""
        if bool((labels != FIXED).any()):
            raise _Mismatch

    def layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """The layer will have been narrowed to what is kept."""
        name = str(call.node.target)
        self._check(self.first.ins[name], incoming)
        return self.first.results[call.node].meta, self._kept(self.first.outs[name])

    def originals(self, call: Call) -> list[Value]:
        """The values of the same call in the first pass."""
        return self.first.calls[call.node].values

    def norm(self, call: Call, labels: Tensor) -> None:
        """The layer will have been narrowed to what is kept."""
        self._check(self.first.ins[str(call.node.target)], labels)

    def shrink(self, value: Value) -> Value:
        """The value that the narrowed network should compute."""
        labels = compress(self.roots[value.labels])
        meta = value.meta
        for dim, size in enumerate(labels.shape):
            if size > 1:
                others = [d for d in range(labels.ndim) if d != dim]
                gone = self.drop[labels].all(dim=others) if others else self.drop[labels]
                kept = (~gone).nonzero().flatten()
                labels = labels.index_select(dim, kept)
                meta = resize(meta, dim, len(kept))
        return Value(meta, compress(labels))

    def _kept(self, labels: Tensor) -> Tensor:
        labels = self.roots[labels]
        return labels[~self.drop[labels]]

    def _check(self, promised: Tensor, labels: Tensor) -> None:
        if not _equal(self._kept(promised), labels):
            raise _Mismatch


class _Mismatch(Exception):
    """The narrowed network would not compute what the labels promise."""


def culprits(nodes: Iterable[fx.Node], results: dict[fx.Node, Any]) -> list[Value]:
    """The values that nodes work on, also through numbers computed from their shapes."""
    found: list[Value] = []
    queue = [source for node in nodes for source in node.all_input_nodes]
    seen: set[fx.Node] = set()
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        values = values_in(results[node])
        found.extend(values)
        if not values:
            queue.extend(node.all_input_nodes)
    return found


def _differ(call: Call, before: Call) -> bool:
    return repr(call.constants) != repr(before.constants)


def _same(result: Any, promised: Any) -> bool:
    values, others = values_in(result), values_in(promised)
    return len(values) == len(others) and all(
        a.meta.shape == b.meta.shape and _equal(a.labels, b.labels)
        for a, b in zip(values, others, strict=True)
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _method(name: str) -> Callable[..., Any]:
    return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)
