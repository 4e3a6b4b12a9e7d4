"""What a network is called with: an example, as arguments by position and by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import TraceError
from prunekit.graph.recording.nests import leaves_in, tree_map

Example = Any  # a tensor; a tuple of arguments; a mapping of arguments by name


@dataclass(frozen=True, eq=False)
class Arguments:
    """The arguments of one call, in which tensors may lie in lists, tuples and dicts."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Example) -> Arguments:
        """A tensor is the one argument, a tuple or list are several, a mapping has them by name.

        TraceError for what holds no tensor, or an empty one.
        """
        if isinstance(example, Arguments):
            return example
        if isinstance(example, Mapping):
            found = cls((), dict(example))
        elif isinstance(example, tuple | list):
            found = cls(tuple(example), {})
        else:
            found = cls((example,), {})
        return found.validated()

    def validated(self) -> Arguments:
        """The same; TraceError for what cannot be an example."""
        if not self.tensors:
            kinds = ", ".join(type(x).__name__ for x in (*self.args, *self.kwargs.values()))
            raise TraceError(
                f"the example is {kinds or 'nothing'}; it must be a tensor or a tuple of arguments "
                "with tensors, or a dict of arguments by name"
            )
        if not all(tensor.numel() for tensor in self.tensors):
            raise TraceError(f"the example is empty: {self}; give at least one input")
        return self

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among them, in order."""
        return leaves_in((self.args, dict(self.kwargs)), Tensor)

    def map_tensors(self, change: Callable[[Tensor], Any]) -> Arguments:
        """The same with every tensor changed."""

        def one(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        return Arguments(tree_map(self.args, one), tree_map(dict(self.kwargs), one))

    @property
    def single_tensor(self) -> Tensor | None:
        """The one argument, where it is a tensor that is given by position."""
        only = self.args[0] if len(self.args) == 1 and not self.kwargs else None
        return only if isinstance(only, Tensor) else None

    @property
    def device(self) -> torch.device:
        """Where the first tensor is."""
        return self.tensors[0].device

    def to(self, device: str | torch.device) -> Arguments:
        """The same on a device."""
        return self.map_tensors(lambda tensor: tensor.to(device))

    def call(self, network: Callable[..., Any]) -> Any:
        """What a network, or any other function, returns for them."""
        return network(*self.args, **self.kwargs)

    def is_batched(self, tensor: Tensor) -> bool:
        """Whether its first dimension is as long as that of the first tensor: one for examples."""
        first = self.tensors[0].shape[:1]
        return bool(first) and tensor.shape[:1] == first

    def with_batch(self, batch: Tensor) -> Arguments:
        """Those with a batch in place of their one tensor; themselves where there are several."""
        return self.map_tensors(lambda _: batch) if len(self.tensors) == 1 else self

    def single_example(self) -> Arguments:
        """Those of a single example, where all that is batched stands in the arguments directly."""
        direct = {id(leaf) for leaf in (*self.args, *self.kwargs.values())}

        def first(tensor: Tensor) -> Tensor:
            return tensor[:1] if id(tensor) in direct and self.is_batched(tensor) else tensor

        return self.map_tensors(first)

    def on_meta(self) -> Arguments:
        """The same on the meta device."""
        return self.map_tensors(lambda tensor: torch.empty_like(tensor, device="meta"))

    def __str__(self) -> str:
        return ", ".join(str(tuple(tensor.shape)) for tensor in self.tensors)


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a layer is called on: its first argument, or the one named `input`."""
    if args:
        return args[0]
    return kwargs["input"] if "input" in kwargs else next(iter(kwargs.values()), None)


def with_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same call on something else."""
    if args:
        return (value, *args[1:]), dict(kwargs)
    name = "input" if "input" in kwargs else next(iter(kwargs))
    return args, {**kwargs, name: value}
