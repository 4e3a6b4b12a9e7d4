"""Which examples statistics are taken on, and what a network makes of them, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from prunekit.data import Batches
from prunekit.data.base import balanced, sampled
from prunekit.errors import ConfigError, DataError, one_of
from prunekit.graph.layers import CONVOLUTIONS
from prunekit.schema import Checked, Range, Whole

Seen = Callable[[str, nn.Module, Tensor, Tensor], None]
_DECODED = 32  # examples that one process reads at a time
_PER_CLASS = 8  # examples of each class that make balancing worth while


@dataclass(frozen=True)
class Calibration(Checked):
    """`count` examples, drawn with `seed`, unchanged.

    `balance` draws as many of every class; without a word from you that is done where a class gets
    eight examples or more (labels are used for drawing only).
    """

    count: Annotated[int, Range(at_least=2), "training images"] = 128
    seed: Annotated[Whole, "seed of which images are drawn"] = 0
    balance: Annotated[
        bool | None, "the same number of every class; null: where a class gets 8 or more"
    ] = None

    def indices(self, batches: Batches) -> Tensor:
        """Which examples of a set; all, in another order, where it has no more.

        ConfigError where classes cannot be balanced.
        """
        if self.balance is False:
            return sampled(batches.size, self.count, self.seed)
        classes = _classes(batches.labels)
        if self.balance and not 0 < classes <= self.count:
            raise ConfigError(
                f"count={self.count} is a batch smaller than the {classes} classes it is to "
                "balance; raise it, or set balance=false"
                if classes
                else "balance=true needs labels that are whole numbers; set balance=false"
            )
        if self.balance or 0 < classes <= self.count / _PER_CLASS:
            return balanced(batches.labels, self.count, self.seed)
        return sampled(batches.size, self.count, self.seed)

    def batch(self, batches: Batches, least: int) -> tuple[Tensor, Tensor]:
        """Inputs and labels; DataError where the set has fewer than `least` examples."""
        indices = self.indices(batches)
        if len(indices) < least:
            raise DataError(
                f"statistics need at least {least} examples and there are {len(indices)}; give "
                "more data, or raise count"
            )
        inputs, labels = zip(*batches.pick(indices, _DECODED), strict=True)
        return torch.cat(inputs), torch.cat(labels)


def _classes(labels: Tensor) -> int:
    """How many classes labels name; 0 where they name none."""
    whole = labels.dim() == 1 and not (labels.is_floating_point() or labels.is_complex())
    return len(labels.unique()) if whole else 0


@contextmanager
def listening(model: nn.Module, layers: Collection[str], seen: Seen) -> Iterator[dict[str, int]]:
    """Inside it `seen` is told of the first call of each layer: its name, it, input and output.

    Gives the number of calls of each layer. ConfigError where a layer is missing, or neither a
    convolution nor linear.
    """
    calls = dict.fromkeys(layers, 0)

    def hook(name: str) -> Callable[..., None]:
        def told(module: nn.Module, args: tuple[Any, ...], kwargs: Any, out: Tensor) -> None:
            calls[name] += 1
            if calls[name] == 1:
                seen(name, module, args[0] if args else kwargs["input"], out)

        return told

    with ExitStack() as stack:
        for name in calls:
            handle = _layer(model, name).register_forward_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield calls


def _layer(model: nn.Module, name: str) -> nn.Module:
    known = {path: module for path, module in model.named_modules() if _fits(module)}
    if name in known:
        return known[name]
    kind = type(dict(model.named_modules()).get(name)).__name__
    what = "no layer of the network" if kind == "NoneType" else f"a {kind}"
    raise ConfigError(
        f"statistics are taken of convolutions and linear layers, and {name!r} is {what}; "
        + one_of(name, known)
    )


def _fits(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))
