"""The table of operations: everything prunekit knows of an operation of torch is in one entry.

The entries are in `prunekit.graph.ops`, a file for each family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from prunekit.graph.recording.steps import Kind, Step, operation_name

Rule = Callable[[Any, Any], Any]  # of a `Replay` and a `Call`, to the result of the call
Indices = Sequence[int] | Tensor | None
Sizes = Sequence[int] | None


def channels_second(module: nn.Module, rank: int) -> int:
    """Return the dimension behind the batch dimension."""
    return 1


def channels_last(module: nn.Module, rank: int) -> int:
    """Return the last dimension."""
    return rank - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One operation of torch, as a function, a method and a layer.

    `rule` passes labels from the arguments to the result. `functions` are its names in torch,
    `layers` the classes in torch.nn, subclasses included. Layers that hold numbers for every
    channel have `narrow`, `width_attributes`, which name the attributes with their input and output
    channels, and `channel_dim`, which gives the dimension of channels in a tensor of some rank. For
    functions that get such numbers, `argument_names` names the arguments.
    """

    rule: Rule
    functions: Sequence[str] = ()
    layers: Sequence[type[nn.Module]] = ()
    narrow: Callable[[Any, Indices, Indices], None] | None = None
    width_attributes: Sequence[str] = ()
    channel_dim: Callable[[Any, int], int] = channels_second
    argument_names: Sequence[str] = ()
    weighted: bool = False  # a convolution or linear map: its outputs are new channels
    normalizes: bool = False
    batch_norm: bool = False  # normalises over the batch: its running mean can absorb constants
    emits_bias: bool = False  # a removed channel emits its bias, or zeros without one
    same_shape: bool = False  # the result has the shape and type of the first argument
    broadcasts: bool = False  # the result has the shape that the arguments broadcast to
    result_shape: Callable[..., Sizes] | None = None  # from the arguments of a function
    layer_shape: Callable[[Any, Tensor], Sizes] | None = None  # from a layer and its input
    creates: bool = False  # creates a tensor of given sizes
    moves: bool = False  # moves entries
    size_arguments: bool = False  # numbers among the arguments may be computed from sizes
    size_agnostic: bool = False  # moves entries in the same way for any number of them
    concatenates: bool = False
    pools: bool = False
    is_dropout: bool = False
    dropout_rate_position: int | None = None  # of an argument, for operations with dropout inside
    is_relu: bool = False  # a ReLU or one with an upper bound
    layer_class: type[nn.Module] | None = None  # equals the function with default arguments
    opaque: bool = False  # one step even in subclasses with a forward of their own
    product: bool = False  # multiplies matrices, and is not followed
    macs: Callable[[Any], int] | None = None  # of the weights in a call that is not followed
    product_macs: Callable[[Any], int] | None = None  # of all else in such a call

    @property
    def takes_sizes(self) -> bool:
        """True if the result depends on numbers that are computed from sizes."""
        return self.size_arguments or self.moves or self.creates


_FUNCTIONS: dict[str, Operation] = {}
_LAYERS: dict[type[nn.Module], Operation] = {}


def register_operation(
    rule: Rule, functions: str = "", *layers: type[nn.Module], **facts: Any
) -> Operation:
    """Add an entry to the table: its functions, separated by spaces, its layers and its facts."""
    entry = Operation(rule=rule, functions=functions.split(), layers=layers, **facts)
    _FUNCTIONS.update(dict.fromkeys(entry.functions, entry))
    _LAYERS.update(dict.fromkeys(entry.layers, entry))
    _class_operation.cache_clear()
    return entry


def layer_operation(module: nn.Module) -> Operation | None:
    """Return the entry of a layer, or None for other modules."""
    kind: Any = type(module)
    return _class_operation(kind)


@cache
def _class_operation(kind: Any) -> Operation | None:
    return next((_LAYERS[cls] for cls in kind.__mro__ if cls in _LAYERS), None)


def named_operation(name: str | None) -> Operation | None:
    """Return the entry of a function or method by its name in torch, or None."""
    return _FUNCTIONS.get(name or "")


def function_operation(function: Callable[..., Any]) -> Operation | None:
    """Return the entry of a function or method, or None."""
    return named_operation(operation_name(function))


def step_operation(step: Step, network: nn.Module) -> Operation | None:
    """Return the entry of the operation that a step calls, or None."""
    if step.kind is Kind.LAYER:
        return layer_operation(network.get_submodule(step.target))
    return named_operation(step.name)


def all_operations() -> list[Operation]:
    """Return every entry once."""
    entries = (*_FUNCTIONS.values(), *_LAYERS.values())
    return [*{id(entry): entry for entry in entries}.values()]


def named_arguments(
    entry: Operation, args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a function by the names in `argument_names`."""
    return dict(zip(entry.argument_names, args, strict=False)) | kwargs
