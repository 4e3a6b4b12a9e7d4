"""The conditions of forward passes: modes, flags of the forward, and sizes of inputs."""

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
_FINEST = 512  # multiples of one number


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions under which a forward pass is recorded.

    `numbers` says that it computes numbers and not only shapes, `sizes` that sizes are tracked.
    `under` names how the pass differs from the usual one, for messages.
    """

    example: Arguments
    numbers: bool = False
    sizes: bool = True
    training: bool = False
    grad: bool = False
    under: str = ""


@dataclass(frozen=True, eq=False)
class ForwardPass:
    """A recording of a copy of the network, and its conditions, with which it can be repeated.

    `network` is the copy if it can be used again: it has shapes only, and its parameters are
    unchanged. `queried` is what else the forward depends on.
    """

    network: nn.Module | None
    recording: Recording
    conditions: Conditions
    queried: Collection[str]
    error: Exception | None = None

    @property
    def works(self) -> bool:
        """True if the pass ended without an error."""
        return self.recording.failed is None


def flipped_flags(model: nn.Module, example: Arguments) -> Iterator[tuple[str, Arguments]]:
    """Yield the example with each boolean flag that it leaves out flipped.

    Each comes with a description of the flag.
    """
    with suppress(ValueError, TypeError):  # forwards without a signature
        signature = inspect.signature(model.forward)
        names = signature.bind(*example.args, **example.kwargs).arguments
        for name, parameter in signature.parameters.items():
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if named and isinstance(parameter.default, bool) and name not in names:
                flag = {name: not parameter.default}
                under = f"{name}={flag[name]} (give {name} in the example to keep to one side)"
                yield under, Arguments(example.args, {**example.kwargs, **flag})


def with_two_examples(example: Arguments) -> Arguments:
    """Return an example of batch size two in place of one."""
    direct = {id(leaf) for leaf in (*example.args, *example.kwargs.values())}

    def both(tensor: Tensor) -> Tensor:
        batched = id(tensor) in direct and tensor.shape[:1] == (1,)
        return torch.cat([tensor, tensor]) if batched else tensor

    return example.map_tensors(both)


@dataclass(frozen=True, eq=False)
class ImageInputs:
    """The spatial sizes of an example, which can be made larger or smaller."""

    example: Arguments
    size: tuple[int, ...]  # of the first input that has some

    @classmethod
    def of(cls, example: Arguments) -> ImageInputs | None:
        """Return the sizes of the first input that has some; None if there is none."""
        for tensor in example.tensors:
            dims = _spatial(example, tensor)
            if dims and tensor.is_floating_point():
                return cls(example, tuple(tensor.shape[dim] for dim in dims))
        return None

    @property
    def grain(self) -> int:
        """The largest power of two, up to 32, that divides every size."""
        return next(
            grain
            for grain in (1 << power for power in range(_COARSEST.bit_length() - 1, -1, -1))
            if all(size % grain == 0 for size in self.size)
        )

    def scaled(self, share: float, grain: int | None = None) -> tuple[int, ...]:
        """Return the sizes times a factor, as multiples of the grain if that makes a difference."""
        grain = self.grain if grain is None else grain
        size = tuple(max(grain, round(size * share / grain) * grain) for size in self.size)
        return self.scaled(share, grain // 2) if size == self.size and grain > 1 else size

    def nearby(self, far: bool) -> Iterator[tuple[int, ...]]:
        """Yield sizes up to four times as large, the coarsest multiples first, of them the nearest.

        All dimensions grow by the same factor. With `far`, a few much larger sizes follow.
        """
        grain, yielded = self.grain, {self.size}
        while grain:
            counts = range(1, min(_WIDEST * self.size[0] // grain, _FINEST) + 1)
            for count in sorted(counts, key=lambda n: abs(math.log(n * grain / self.size[0]))):
                share = count * grain / self.size[0]
                size = tuple(max(grain, round(old * share / grain) * grain) for old in self.size)
                if size not in yielded:
                    yielded.add(size)
                    yield size
            grain //= 2
        for share in (8, 16, 32, 64, 128, 256) if far else ():
            if share * max(self.size) <= _FARTHEST:
                yield self.scaled(share)

    def uneven(self) -> tuple[int, ...]:
        """Return the sizes with the last one halved."""
        return (*self.size[:-1], self.scaled(0.5)[-1])

    def resized(self, size: tuple[int, ...]) -> Arguments:
        """Return the example with these sizes, cut off or repeated."""
        ratios = [new / old for new, old in zip(size, self.size, strict=True)]

        def resize(tensor: Tensor) -> Tensor:
            dims = _spatial(self.example, tensor)
            sizes = tuple(tensor.shape[dim] for dim in dims)
            if not tensor.is_floating_point() and sizes != self.size[-len(sizes) :]:
                return tensor
            for dim, ratio in zip(reversed(dims), reversed(ratios), strict=False):
                old = tensor.shape[dim]
                new = max(1, round(old * ratio)) if old > 1 else old
                places = torch.arange(new, device=tensor.device) % old
                tensor = tensor.index_select(dim, places)
            return tensor

        return self.example.map_tensors(resize)


def _spatial(example: Arguments, tensor: Tensor) -> tuple[int, ...]:
    """Return the spatial dimensions of an input; images in lists have no batch dimension."""
    if tensor.ndim == 3:
        direct = any(tensor is leaf for leaf in (*example.args, *example.kwargs.values()))
        return (2,) if direct and tensor.is_floating_point() else (1, 2)
    return tuple(range(2, tensor.ndim)) if tensor.ndim in (4, 5) else ()


def describe_size(size: tuple[int, ...]) -> str:
    """Return sizes as text, for messages."""
    return f"inputs of {' x '.join(map(str, size))}"
