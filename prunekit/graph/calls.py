"""Operations of a recording with the values that they are called on, and their multiply-adds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from prunekit.graph.labels import LabeledTensor, map_only, values_in
from prunekit.graph.layers import TRANSPOSED, is_weighted
from prunekit.graph.recording.nests import tree_map
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import Operation


@dataclass(frozen=True, eq=False)
class Call:
    """An operation with its arguments and its table entry; labeled tensors stand for tensors.

    `module` is the nn.Module that is called, or whose weights are used, and None for other
    functions. `owner` is the name of the layer whose weights a function gets. `recorded` says that
    the arguments have the shapes of the recording, so that the result is known.
    """

    step: Step
    op: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    entry: Operation | None = None
    module: Any = None
    owner: str | None = None
    recorded: bool = False

    @property
    def layer(self) -> str:
        """The name of the layer that is called, or whose weights are used."""
        return self.owner or str(self.step.target)

    @property
    def name(self) -> str:
        """The name in torch, the same for functions, methods and operators; empty if unknown."""
        return self.step.name or ""

    @property
    def title(self) -> str:
        """The callee and its place in the user's code, for messages."""
        if self.step.kind is Kind.LAYER:
            return f"{self.step.target} ({type(self.module).__name__})"
        return str(self.step)

    @cached_property
    def values(self) -> list[LabeledTensor]:
        """The labeled tensors among the arguments, in order."""
        return values_in(self.args, self.kwargs)

    @property
    def constants(self) -> Any:
        """The arguments with None in place of every labeled tensor."""
        return map_only((self.args, self.kwargs), lambda value: None, LabeledTensor)

    def execute(
        self, pick: Callable[[LabeledTensor], Tensor], op: Callable[..., Any] | None = None
    ) -> Any:
        """Execute the operation, or `op`, with `pick(value)` in place of every labeled tensor."""
        args, kwargs = map_only((self.args, self.kwargs), pick, LabeledTensor)
        return (op or self.op)(*args, **kwargs)

    def meta_result(self) -> Any:
        """Return the result on the meta device, from the recording where it is known."""
        return self.step.result if self.recorded else self.execute_on_meta()

    def execute_on_meta(self) -> Any:
        """Execute the operation on the meta device."""
        return self.execute(lambda value: value.meta)

    def argument(self, position: int, *names: str, default: Any = None) -> Any:
        """Return an argument by position or name, or the setting of that name of the layer."""
        if self.module is not None:
            settings = [getattr(self.module, name) for name in names if hasattr(self.module, name)]
            return settings[0] if settings else default
        if len(self.args) > position:
            return self.args[position]
        return next((self.kwargs[name] for name in names if name in self.kwargs), default)

    def recorded_argument(self, position: int, *names: str) -> Any:
        """Return an argument as recorded: a literal, or the step that computed it."""
        if self.module is not None:
            return self.argument(position, *names)
        if len(self.step.args) > position:
            return self.step.args[position]
        return next((self.step.kwargs[name] for name in names if name in self.step.kwargs), None)


def shapes_equal(a: Any, b: Any) -> bool:
    """Return whether two nests have labeled tensors of equal shapes, and equal other leaves."""
    return bool(tree_map(a, _comparable) == tree_map(b, _comparable))


def _comparable(leaf: Any) -> Any:
    if isinstance(leaf, LabeledTensor):
        return tuple(leaf.meta.shape)
    return id(leaf) if isinstance(leaf, Tensor) else leaf


@dataclass(frozen=True)
class Macs:
    """The multiply-adds of a call that is not followed: with weights, and of activations alone.

    Recurrent layers and bilinear maps are among the latter.
    """

    weights: int = 0
    products: int = 0


def count_macs(call: Call) -> Macs:
    """Return the multiply-adds of a call that is not followed, as torch's counter finds them.

    Those of convolutions, linear maps, recurrent layers and products of matrices count.
    """
    entry = call.entry
    if entry is not None and (entry.macs or entry.product_macs):
        return Macs(*(count(call) if count else 0 for count in (entry.macs, entry.product_macs)))
    if is_weighted(call.module):
        return Macs(weights=_layer_macs(call, call.meta_result()))
    if _has_weights(call):
        return Macs(weights=_counted(call))
    return Macs(products=_counted(call)) if _multiplies(call) else Macs()


def _has_weights(call: Call) -> bool:
    weighted = call.name.startswith(("conv", "linear"))
    reads_parameter = any(source.kind is Kind.TENSOR for source in call.step.sources)
    return call.module is None and (weighted or reads_parameter)


def _multiplies(call: Call) -> bool:
    """Return whether an operation without weights, or a layer without an entry, may multiply."""
    if call.module is None:
        return call.entry is not None and call.entry.product
    return call.entry is None and any(True for _ in call.module.parameters())


def _counted(call: Call) -> int:
    """Return what torch's counter finds on the meta device; nothing where numbers are needed."""
    counter = FlopCounterMode(display=False)
    with counter, suppress(Exception):
        call.execute(lambda value: value.meta, _on_meta(call))
    return counter.get_total_flops() // 2


def _on_meta(call: Call) -> Callable[..., Any]:
    """Return the operation, or a copy of the layer with parameters on the meta device."""
    if call.module is None or all(p.is_meta for p in call.module.parameters()):
        return call.op
    layer: nn.Module = copy.deepcopy(call.module).to("meta")
    return layer


def _layer_macs(call: Call, result: Tensor) -> int:
    """Return the multiply-adds of a layer without those that compute its weight."""
    weight: Tensor = call.module.weight
    counted = call.values[0].meta if isinstance(call.module, TRANSPOSED) else result
    dim = counted.ndim - (weight.ndim - 1)
    return weight.numel() * counted.numel() // counted.shape[dim]
