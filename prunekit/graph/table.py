"""The table of operations: all that prunekit knows of an operation of torch stands in one entry.

The entries are in `prunekit.graph.ops`, a file for each family.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor, nn

from prunekit.graph.recording.steps import Kind, Step, operation_name

Rule = Callable[[Any, Any], Any]  # of a pass over the recording and a call, to the call's result
Indices = Sequence[int] | Tensor | None
Sizes = Sequence[int] | None


def channels_second(module: nn.Module, rank: int) -> int:
    """Channels behind the batch dimension."""
    return 1


def channels_last(module: nn.Module, rank: int) -> int:
    """Channels in the last dimension."""
    return rank - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Operation:
    """One operation of torch, as a function, a method and a layer alike.

    `rule` says how labels pass. `functions` are its names in torch, `layers` the classes in
    torch.nn; a subclass follows its base. Layers that hold numbers for every channel have a
    `narrow`, `counts`, which names the attributes that say how many channels go in and come out,
    and `dim`, which says where in a tensor of some rank they are. Of functions that are given such
    numbers, `takes` names the arguments.
    """

    rule: Rule
    functions: Sequence[str] = ()
    layers: Sequence[type[nn.Module]] = ()
    narrow: Callable[[Any, Indices, Indices], None] | None = None
    width_attributes: Sequence[str] = ()
    channel_dim: Callable[[Any, int], int] = channels_second
    argument_names: Sequence[str] = ()
    weighted: bool = False  # channels end here and others begin: convolutions and linear maps
    normalizes: bool = False  # it normalises
    batch_norm: bool = False  # over the batch, so that a running mean can take up constants
    emits_bias: bool = False  # a removed channel puts out its bias, or zeros without one
    same_shape: bool = False  # its result has the shape and type of its first argument
    broadcasts: bool = False  # its result has the shape that its arguments broadcast to
    result_shape: Callable[..., Sizes] | None = (
        None  # of the result of a function, by its arguments
    )
    layer_shape: Callable[[Any, Tensor], Sizes] | None = None  # of what a layer makes of its input
    creates: bool = False  # it makes a tensor of sizes that are given
    moves: bool = False  # it moves entries
    size_arguments: bool = False  # numbers among its arguments may have been computed from sizes
    size_agnostic: bool = False  # what it does is the same for any number of entries
    concatenates: bool = False  # it lays tensors side by side
    pools: bool = False  # it makes maps smaller
    is_dropout: bool = False  # it drops at random while training, and does nothing else
    dropout_rate_position: int | None = None  # position among the arguments of a rate of dropout
    is_relu: bool = False  # a ReLU or one with an upper bound
    layer_class: type[nn.Module] | None = None  # the layer that is the function without arguments
    opaque: bool = False  # one step even in subclasses with a forward of their own
    macs: Callable[[Any], int] | None = None  # multiply-adds of a call that is not followed

    @property
    def takes_sizes(self) -> bool:
        """Whether its result depends on more than labels: on numbers computed from sizes."""
        return self.size_arguments or self.moves or self.creates


_FUNCTIONS: dict[str, Operation] = {}
_LAYERS: dict[type[nn.Module], Operation] = {}


def register_operation(
    rule: Rule, functions: str = "", *layers: type[nn.Module], **facts: Any
) -> Operation:
    """Add an entry: its functions in one string, its layers, and what else is known of it."""
    entry = Operation(rule=rule, functions=functions.split(), layers=layers, **facts)
    _FUNCTIONS.update(dict.fromkeys(entry.functions, entry))
    _LAYERS.update(dict.fromkeys(entry.layers, entry))
    _class_operation.cache_clear()
    return entry


def layer_operation(module: nn.Module) -> Operation | None:
    """The entry of a layer; None for modules that are unknown."""
    return _class_operation(type(module))


@cache
def _class_operation(kind: type[nn.Module]) -> Operation | None:
    return next((_LAYERS[cls] for cls in kind.__mro__ if cls in _LAYERS), None)


def named_operation(name: str | None) -> Operation | None:
    """The entry of a function or method, by its name in torch."""
    return _FUNCTIONS.get(name or "")


def function_operation(function: Callable[..., Any]) -> Operation | None:
    """The entry of a function or method."""
    return named_operation(operation_name(function))


def step_operation(step: Step, network: nn.Module) -> Operation | None:
    """The entry of what a step of a recorded run calls."""
    if step.kind is Kind.LAYER:
        return layer_operation(network.get_submodule(step.target))
    return named_operation(step.name)


def all_operations() -> list[Operation]:
    """Every entry once."""
    return [*{id(one): one for one in (*_FUNCTIONS.values(), *_LAYERS.values())}.values()]


def named_arguments(
    entry: Operation, args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of a function by the names in `takes`."""
    return dict(zip(entry.argument_names, args, strict=False)) | kwargs
