"""How long, with which optimizer and with which rates a network is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from prunekit.errors import ConfigError
from prunekit.schema import Checked, Count, NotNegative, OneOf, PartShare, Positive, Whole


class Decay(Protocol):
    """A learning-rate plan; it remembers nothing, so a resumed run follows it exactly."""

    def factor(self, epoch: float, epochs: int) -> float:
        """What the optimizer's rate is multiplied by after `epoch` of `epochs` epochs."""


@dataclass(frozen=True)
class Constant:
    """The same rate throughout."""

    def factor(self, epoch: float, epochs: int) -> float:
        """Always 1."""
        return 1.0


@dataclass(frozen=True)
class Steps(Checked):
    """Multiply the rate by `by` at every milestone: an epoch, or a fraction of training below 1."""

    milestones: Annotated[Sequence[Positive], "epochs, or fractions of training below 1"]
    by: Annotated[Positive, "what the rate is multiplied by at each"] = 0.1

    def factor(self, epoch: float, epochs: int) -> float:
        """`by` to the power of the number of milestones passed."""
        marks = (mark if mark >= 1 else mark * epochs for mark in self.milestones)
        return self.by ** sum(epoch >= mark for mark in marks)


@dataclass(frozen=True)
class Cosine(Checked):
    """Half a cosine from 1 to `final`, after a linear rise during the fraction `warmup`."""

    final: Annotated[NotNegative, "rate in the end, times the schedule's"] = 0.0
    warmup: Annotated[PartShare, "fraction of training in which the rate rises"] = 0.0

    def factor(self, epoch: float, epochs: int) -> float:
        """The rise starts at a hundredth, because solvers divide by the rate."""
        progress = epoch / epochs
        if progress < self.warmup:
            return 0.01 + 0.99 * progress / self.warmup
        rest = (progress - self.warmup) / (1 - self.warmup)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * rest)) / 2


@dataclass(frozen=True)
class Schedule(Checked):
    """Epochs, batch size, optimizer and rates of one training phase.

    `optimizer` takes parameters and returns a PyTorch optimizer: `functools.partial(SGD, lr=0.1)`,
    in settings a `_target_` with `_partial_: true`. `clip` bounds the norm of the loss gradient.
    `precision` is float32, or bfloat16 or float16 (autocast; float16 with a loss scale that leaves
    gradient and penalty as they are). A step takes `accumulate` batches, whose gradient is that of
    one batch of all their examples; batch norm sees each on its own. Bad values raise ConfigError.
    """

    epochs: Annotated[Whole, "passes over the training images"]
    batch: Annotated[Count, "images in one batch"]
    optimizer: Annotated[Callable[..., Optimizer], "class of torch.optim, lr is the first rate"]
    decay: Annotated[Decay, "how the rate changes: Constant, Steps or Cosine"] = field(
        default_factory=Constant
    )
    clip: Annotated[Positive | None, "largest norm of the loss gradient; null: any"] = None
    label_smoothing: Annotated[PartShare, "share of each label that goes to all classes"] = 0.0
    precision: Annotated[str, OneOf(("float32", *HALVES)), "numbers that are computed in"] = (
        "float32"
    )
    accumulate: Annotated[Count, "batches in one step of the optimizer"] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(getattr(self.decay, "factor", None)):
            raise ConfigError(f"decay={self.decay!r} is no plan; use Constant, Steps or Cosine")
        self._try_optimizer()

    def _try_optimizer(self) -> None:
        """Build the optimizer for one number: bad settings show before any data is read."""
        try:
            made: Any = self.optimizer([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            given = getattr(self.optimizer, "keywords", {})
            shown = ", ".join(f"{key}={value!r}" for key, value in given.items())
            raise ConfigError(
                f"optimizer refuses its settings: {error} ({shown or self.optimizer!r})"
            ) from error
        if not isinstance(made, Optimizer):
            raise ConfigError(
                f"optimizer={self.optimizer!r} makes no PyTorch optimizer; give a class of "
                "torch.optim with _partial_: true"
            )
        if isinstance(made, LBFGS):
            raise ConfigError("optimizer=LBFGS evaluates the loss by itself; use SGD or Adam")


LAYOUT = torch.channels_last  # of images and of the weights of convolutions, in training
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # precisions of autocast
_PROBES = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}


def about_precision(precision: str, kind: str) -> str | None:
    """A line where a CPU has no convolutions of this precision and works around that.

    ResNet-20 takes eleven times as long in bfloat16 as in float32 on a CPU with AVX2 alone. `kind`
    is a device's type. Where torch cannot tell, nothing is said.
    """
    if kind != "cpu" or precision not in _PROBES:
        return None
    probe = getattr(torch.ops.mkldnn, _PROBES[precision], None)
    if probe is None or probe():
        return None
    return (
        f"precision={precision}: this CPU has no convolutions of that kind, so that training "
        "takes several times as long as with precision=float32"
    )


def numbers(precision: str, kind: str) -> str:
    """What training in that precision comes to on a device of that kind: "float32, channels_last".

    On a GPU, torch lets convolutions in float32 round their inputs to tf32 unless that is switched
    off: ten bits of mantissa, not 23.
    """
    rounds = kind == "cuda" and precision == "float32" and torch.backends.cudnn.allow_tf32
    return f"{'tf32' if rounds else precision}, {str(LAYOUT).removeprefix('torch.')}"
