"""The arguments of a network: an example, as arguments by position and by name."""

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
    """The arguments of one call, with tensors in any nest of lists, tuples and dicts."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Example) -> Arguments:
        """Return arguments for a tensor, for a tuple or list of arguments, or for a dict by name.

        Raises TraceError for an example without tensors, or with an empty one.
        """
        if isinstance(example, Arguments):
            return example
        if isinstance(example, Mapping):
            arguments = cls((), dict(example))
        elif isinstance(example, tuple | list):
            arguments = cls(tuple(example), {})
        else:
            arguments = cls((example,), {})
        return arguments.validated()

    def validated(self) -> Arguments:
        """Return the arguments; raises TraceError if they cannot be an example."""
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
        """All tensors among the arguments, in order."""
        return leaves_in((self.args, dict(self.kwargs)), Tensor)

    def map_tensors(self, change: Callable[[Tensor], Any]) -> Arguments:
        """Return the arguments with every tensor changed."""

        def change_tensor(leaf: Any) -> Any:
            return change(leaf) if isinstance(leaf, Tensor) else leaf

        return Arguments(
            tree_map(self.args, change_tensor), tree_map(dict(self.kwargs), change_tensor)
        )

    @property
    def single_tensor(self) -> Tensor | None:
        """The only argument, if it is a tensor that is given by position."""
        argument = self.args[0] if len(self.args) == 1 and not self.kwargs else None
        return argument if isinstance(argument, Tensor) else None

    @property
    def device(self) -> torch.device:
        """The device of the first tensor."""
        return self.tensors[0].device

    def to(self, device: str | torch.device) -> Arguments:
        """Return the arguments on a device."""
        return self.map_tensors(lambda tensor: tensor.to(device))

    def call(self, network: Callable[..., Any]) -> Any:
        """Return the result of a network, or another function, for the arguments."""
        return network(*self.args, **self.kwargs)

    def is_batched(self, tensor: Tensor) -> bool:
        """Return whether the first dimension of a tensor is the batch dimension, by its size."""
        first = self.tensors[0].shape[:1]
        return bool(first) and tensor.shape[:1] == first

    def with_batch(self, batch: Tensor) -> Arguments:
        """Return the arguments with a batch in place of their tensor.

        Several tensors are left unchanged.
        """
        return self.map_tensors(lambda _: batch) if len(self.tensors) == 1 else self

    def single_example(self) -> Arguments:
        """Return the arguments with a batch of one, for tensors that are arguments themselves."""
        direct = {id(leaf) for leaf in (*self.args, *self.kwargs.values())}

        def first(tensor: Tensor) -> Tensor:
            return tensor[:1] if id(tensor) in direct and self.is_batched(tensor) else tensor

        return self.map_tensors(first)

    def on_meta(self) -> Arguments:
        """Return the arguments on the meta device."""
        return self.map_tensors(lambda tensor: torch.empty_like(tensor, device="meta"))

    def __str__(self) -> str:
        return ", ".join(str(tuple(tensor.shape)) for tensor in self.tensors)


def input_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the input of a layer: its first argument, or the one named `input`."""
    if args:
        return args[0]
    return kwargs["input"] if "input" in kwargs else next(iter(kwargs.values()), None)


def with_input(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a layer with another input."""
    if args:
        return (value, *args[1:]), dict(kwargs)
    name = "input" if "input" in kwargs else next(iter(kwargs))
    return args, {**kwargs, name: value}
