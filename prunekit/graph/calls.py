"""Operations of a recording with the values that they are called on, and their multiply-adds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from prunekit.graph.labels import LabeledTensor, map_only, values_in
from prunekit.graph.layers import TRANSPOSED, is_weighted
from prunekit.graph.recording.nests import tree_map
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import Operation

_LINEAR_OPS = frozenset({"aten.mm", "aten.addmm", "aten.convolution"})


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


def count_macs(call: Call) -> tuple[Any, int]:
    """Return the result of a call that is not followed, on shapes, and its multiply-adds.

    Only convolutions and linear maps count; recurrent layers count as none.
    """
    if call.entry is not None and call.entry.macs is not None:
        return call.meta_result(), call.entry.macs(call)
    if is_weighted(call.module):
        result = call.meta_result()
        return result, _layer_macs(call, result)
    if not _has_weights(call):
        return call.meta_result(), 0
    counter = FlopCounterMode(display=False)
    with counter:
        result = call.execute_on_meta()
    counts = counter.get_flop_counts().get("Global", {})
    return result, sum(n for op, n in counts.items() if str(op) in _LINEAR_OPS) // 2


def _has_weights(call: Call) -> bool:
    weighted = call.name.startswith(("conv", "linear"))
    reads_parameter = any(source.kind is Kind.TENSOR for source in call.step.sources)
    return call.module is None and (weighted or reads_parameter)


def _layer_macs(call: Call, result: Tensor) -> int:
    """Return the multiply-adds of a layer without those that compute its weight."""
    weight: Tensor = call.module.weight
    counted = call.values[0].meta if isinstance(call.module, TRANSPOSED) else result
    dim = counted.ndim - (weight.ndim - 1)
    return weight.numel() * counted.numel() // counted.shape[dim]
