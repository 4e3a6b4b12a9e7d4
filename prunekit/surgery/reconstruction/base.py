"""The interface of reconstructions, and what they report."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments
from prunekit.registry import Registry
from prunekit.schema import Checked
from prunekit.surgery.edits import Edit
from prunekit.surgery.equivalence import Gap

# at most so many inputs, in batches of this size, the same ones at every call
Sample = Callable[[int, int], Iterator[Arguments]]


@dataclass(frozen=True)
class RefittedLayer:
    """A refitted layer: its mean squared error before and after, relative to its target's variance.

    The error is that of its output on `rows` sampled positions, with `unknowns` weights per output.
    """

    layer: str
    before: float
    after: float
    rows: int
    unknowns: int


@dataclass(frozen=True)
class Refitted:
    """The result of refitting: edits that made room for biases, layers and norms, and notes.

    `norms` got the statistics of what they read now; they put out in evaluation what they did.
    `examples` is the number of inputs that were used. `moved` says how far the outputs of the
    network moved on the batch that cuts are checked on, None where they were not compared.
    """

    edits: tuple[Edit, ...]
    layers: tuple[RefittedLayer, ...]
    norms: tuple[str, ...]
    notes: tuple[str, ...] = ()
    examples: int = 0
    moved: Gap | None = None
    seconds: float = field(default=0.0, compare=False)

    @property
    def error_before(self) -> float:
        """The mean error of the layers before, relative to the variance of their targets."""
        return _mean(layer.before for layer in self.layers)

    @property
    def error_after(self) -> float:
        """The mean error of the layers afterwards."""
        return _mean(layer.after for layer in self.layers)

    def __str__(self) -> str:
        if not self.layers:
            return "nothing to refit: no layer reads other values than before"
        moved = "" if self.moved is None else f"; outputs moved by {self.moved.relative:.2%}"
        return (
            f"{len(self.layers)} layers refitted on {self.examples} inputs: the error of their "
            f"outputs fell from {self.error_before:.1%} to {self.error_after:.1%} of the variance "
            f"in the mean{moved} (reconstruct=none leaves layers as they are)"
        )


def _mean(values: Iterable[float]) -> float:
    numbers = [*values]
    return sum(numbers) / max(len(numbers), 1)


class Reconstruction(Checked, ABC):
    """Changes the weights of a narrow network so that it puts out what the dense one did.

    Without `needs_images` it also works where there are none, and `sample` is None.
    """

    needs_images: ClassVar[bool] = True

    @abstractmethod
    def apply(
        self,
        dense: nn.Module,
        narrow: nn.Module,
        graph: ChannelGraph,
        removed: Tensor,
        sample: Sample | None,
    ) -> Refitted:
        """Change `narrow` in place; `dense` stays as it is.

        `graph` is that of the dense network, `removed` the units that `narrow` lacks. Raises
        DataError where `sample` gives no inputs, and where something is not finite.
        """


RECONSTRUCTIONS: Registry[Reconstruction] = Registry("reconstruct")


def reconstruction_of(
    reconstruct: Reconstruction | str | None, auto_refits: bool
) -> Reconstruction | None:
    """Return a reconstruction by name; None for none, and for "auto" unless `auto_refits`."""
    if reconstruct is None or reconstruct == "none":
        return None
    if reconstruct == "auto":
        return RECONSTRUCTIONS.resolve("least_squares", Reconstruction) if auto_refits else None
    return RECONSTRUCTIONS.resolve(reconstruct, Reconstruction)
