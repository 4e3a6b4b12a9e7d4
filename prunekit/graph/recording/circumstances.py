"""What else a forward may be called with: flags of its own, and inputs of other sizes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.steps import Recording

_COARSEST = 32  # networks halve their maps about five times
_WIDEST = 4
_FARTHEST = 8192
_FINEST = 512  # multiples of one number that are looked at


@dataclass(frozen=True, eq=False)
class Conditions:
    """Under which a run is recorded.

    `numbers` says that it computes, in place of shapes alone, `sizes` that sizes are followed.
    `under` names what is unlike the usual call, for messages.
    """

    example: Arguments
    numbers: bool = False
    sizes: bool = True
    training: bool = False
    grad: bool = False
    under: str = ""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A run of a copy, and the circumstances it was recorded under, by which it can be repeated.

    `twin` is the copy where it still is one: on shapes alone, and nothing changed its parameters.
    """

    network: nn.Module | None
    recording: Recording
    conditions: Conditions
    queried: Collection[str]  # what else the forward depends on
    error: Exception | None = None

    @property
    def works(self) -> bool:
        """Whether the network took the call."""
        return self.recording.failed is None


def flipped_flags(model: nn.Module, example: Arguments) -> Iterator[tuple[str, Arguments]]:
    """The example with each flag of the forward that it does not give turned over, in words too."""
    with suppress(ValueError, TypeError):  # forwards that cannot be looked at
        signature = inspect.signature(model.forward)
        given = signature.bind(*example.args, **example.kwargs).arguments
        for name, one in signature.parameters.items():
            named = one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)
            if named and isinstance(one.default, bool) and name not in given:
                flag = {name: not one.default}
                under = f"{name}={flag[name]} (give {name} in the example to keep to one side)"
                yield under, Arguments(example.args, {**example.kwargs, **flag})


def with_two_examples(example: Arguments) -> Arguments:
    """An example that holds two in place of one."""
    direct = {id(leaf) for leaf in (*example.args, *example.kwargs.values())}

    def both(tensor: Tensor) -> Tensor:
        batched = id(tensor) in direct and tensor.shape[:1] == (1,)
        return torch.cat([tensor, tensor]) if batched else tensor

    return example.map_tensors(both)


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """The spatial dimensions of an example, by which it can be made larger or smaller."""

    example: Arguments
    size: tuple[int, ...]  # of the first input that has some

    @classmethod
    def of(cls, example: Arguments) -> ImageInputs | None:
        """None where no input has spatial dimensions."""
        for tensor in example.tensors:
            dims = _spatial(example, tensor)
            if dims and tensor.is_floating_point():
                return cls(example, tuple(tensor.shape[dim] for dim in dims))
        return None

    @property
    def grain(self) -> int:
        """The largest power of two, up to 32, that every size is a multiple of."""
        return next(
            grain
            for grain in (2**power for power in range(_COARSEST.bit_length() - 1, -1, -1))
            if all(size % grain == 0 for size in self.size)
        )

    def scaled(self, share: float, grain: int | None = None) -> tuple[int, ...]:
        """The sizes times a number, in multiples of the grain where that leaves a difference."""
        grain = self.grain if grain is None else grain
        found = tuple(max(grain, round(size * share / grain) * grain) for size in self.size)
        return self.scaled(share, grain // 2) if found == self.size and grain > 1 else found

    def nearby(self, far: bool) -> Iterator[tuple[int, ...]]:
        """Sizes up to four times as large, the coarsest multiples first, the nearest of them first.

        All dimensions grow alike. A few much larger ones follow where that is asked for.
        """
        grain, given = self.grain, {self.size}
        while grain:
            counts = range(1, min(_WIDEST * self.size[0] // grain, _FINEST) + 1)
            for count in sorted(counts, key=lambda n: abs(math.log(n * grain / self.size[0]))):
                share = count * grain / self.size[0]
                size = tuple(max(grain, round(one * share / grain) * grain) for one in self.size)
                if size not in given:
                    given.add(size)
                    yield size
            grain //= 2
        for share in (8, 16, 32, 64, 128, 256) if far else ():
            if share * max(self.size) <= _FARTHEST:
                yield self.scaled(share)

    def uneven(self) -> tuple[int, ...]:
        """The sizes with the last one halved."""
        return (*self.size[:-1], self.scaled(0.5)[-1])

    def resized(self, size: tuple[int, ...]) -> Arguments:
        """The example with these sizes: cut off, or repeated."""
        ratios = [new / old for new, old in zip(size, self.size, strict=True)]

        def one(tensor: Tensor) -> Tensor:
            dims = _spatial(self.example, tensor)
            own = tuple(tensor.shape[dim] for dim in dims)
            if not tensor.is_floating_point() and own != self.size[-len(own) :]:
                return tensor
            for dim, ratio in zip(reversed(dims), reversed(ratios), strict=False):
                old = tensor.shape[dim]
                new = max(1, round(old * ratio)) if old > 1 else old
                places = torch.arange(new, device=tensor.device) % old
                tensor = tensor.index_select(dim, places)
            return tensor

        return self.example.map_tensors(one)


def _spatial(example: Arguments, tensor: Tensor) -> tuple[int, ...]:
    """The dimensions of an input behind examples and channels; images in lists are not batched."""
    if tensor.ndim == 3:
        direct = any(tensor is leaf for leaf in (*example.args, *example.kwargs.values()))
        return (2,) if direct and tensor.is_floating_point() else (1, 2)
    return tuple(range(2, tensor.ndim)) if tensor.ndim in (4, 5) else ()


def describe_size(size: tuple[int, ...]) -> str:
    """Sizes for messages."""
    return f"inputs of {' x '.join(map(str, size))}"
