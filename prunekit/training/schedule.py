"""Schedules: epochs, batches, optimizer, learning rates and number format of a training phase."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import torch
from torch import nn
from torch.optim import LBFGS, Optimizer

from prunekit.errors import ConfigError
from prunekit.reasons import reason_of
from prunekit.schema import Checked, Count, NotNegative, OneOf, PartShare, Positive, Whole
from prunekit.validate import number

MEMORY_FORMAT = torch.channels_last  # of images and of convolutions' weights, in training
HALF_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # used with autocast
_PROBES = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}


class Decay(Protocol):
    """A rule for the learning rate; it has no state, so a resumed run follows it exactly."""

    def factor(self, epoch: float, epochs: int) -> float:
        """Return the factor on the optimizer's rate after `epoch` of `epochs` epochs."""


@dataclass(frozen=True)
class Constant:
    """A constant rate."""

    def factor(self, epoch: float, epochs: int) -> float:
        """Return 1."""
        return 1.0


@dataclass(frozen=True)
class Steps(Checked):
    """A rate that is multiplied by `by` at every milestone.

    A milestone is an epoch, or below 1 a fraction of training.
    """

    milestones: Annotated[Sequence[Positive], "epochs, or fractions of training below 1"]
    by: Annotated[Positive, "factor on the rate at each milestone"] = 0.1

    def factor(self, epoch: float, epochs: int) -> float:
        """Return `by` to the power of the number of milestones passed."""
        marks = (mark if mark >= 1 else mark * epochs for mark in self.milestones)
        return self.by ** sum(epoch >= mark for mark in marks)


@dataclass(frozen=True)
class Cosine(Checked):
    """A rate that follows half a cosine from 1 to `final`, after a linear rise during `warmup`."""

    final: Annotated[NotNegative, "final rate, as a factor on the schedule's"] = 0.0
    warmup: Annotated[PartShare, "fraction of training in which the rate rises"] = 0.0

    def factor(self, epoch: float, epochs: int) -> float:
        """Return the factor; it starts at a hundredth, because solvers divide by the rate."""
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
    `precision` is float32, or bfloat16 or float16 with autocast; float16 scales the loss, but not
    the gradient that the optimizer and the penalty use. Every step accumulates the gradient of
    `accumulate` batches as that of one large batch, except that batch norm uses each batch by
    itself. Bad values raise ConfigError.
    """

    epochs: Annotated[Whole, "passes over the training images"]
    batch: Annotated[Count, "images in one batch"]
    optimizer: Annotated[Callable[..., Optimizer], "class of torch.optim; lr is the initial rate"]
    decay: Annotated[Decay, "how the rate changes: Constant, Steps or Cosine"] = field(
        default_factory=Constant
    )
    clip: Annotated[Positive | None, "largest norm of the loss gradient; null: any"] = None
    label_smoothing: Annotated[PartShare, "share of each label that goes to all classes"] = 0.0
    precision: Annotated[
        str, OneOf(("float32", *HALF_PRECISIONS)), "number format of the computation"
    ] = "float32"
    accumulate: Annotated[Count, "batches in one step of the optimizer"] = 1

    def rates(self, steps: int) -> tuple[list[float], float]:
        """Return the rates of all steps, `steps` of each epoch, and the momentum (0: none)."""
        group = self.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]
        places = (step / steps for step in range(self.epochs * steps))
        rates = [float(group["lr"]) * self.decay.factor(place, self.epochs) for place in places]
        return rates, float(group.get("momentum") or 0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not callable(getattr(self.decay, "factor", None)):
            raise ConfigError(f"decay={self.decay!r} is no plan; use Constant, Steps or Cosine")
        self._check_optimizer()

    def _check_optimizer(self) -> None:
        """Build the optimizer for one number, to find bad settings before data is read."""
        for key, value in getattr(self.optimizer, "keywords", {}).items():
            if isinstance(value, float):
                number(f"optimizer.{key}", value)
        try:
            optimizer: Any = self.optimizer([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError) as error:
            raise ConfigError(_refusal(self.optimizer, reason_of(error))) from error
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"optimizer={self.optimizer!r} makes no PyTorch optimizer; give a class of "
                "torch.optim with _partial_: true"
            )
        if isinstance(optimizer, LBFGS):
            raise ConfigError("optimizer=LBFGS evaluates the loss by itself; use SGD or Adam")


def _refusal(optimizer: Any, reason: str) -> str:
    """Return a message that names the argument without which the optimizer can be made."""
    arguments = getattr(optimizer, "keywords", {})
    made = getattr(optimizer, "func", optimizer)
    owner = getattr(made, "__name__", made)
    for key, value in arguments.items():
        others = {other: kept for other, kept in arguments.items() if other != key}
        with suppress(TypeError, ValueError):
            made([nn.Parameter(torch.zeros(1))], **others)
            return f"optimizer.{key}={value!r} is refused by {owner}: {reason}; give another value"
    listed = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    return f"optimizer={owner} refuses {listed or 'to be made'}: {reason}; give other values"


def precision_warning(precision: str, device_type: str) -> str | None:
    """Return a warning where a CPU has no convolutions of this precision and emulates them.

    ResNet-20 takes eleven times as long in bfloat16 as in float32 on a CPU with AVX2 only. Return
    None where torch cannot tell.
    """
    if device_type != "cpu" or precision not in _PROBES:
        return None
    probe = getattr(torch.ops.mkldnn, _PROBES[precision], None)
    if probe is None or probe():
        return None
    return (
        f"precision={precision}: this CPU has no convolutions of that kind, so that training "
        "takes several times as long as with precision=float32"
    )


def number_format(precision: str, device_type: str) -> str:
    """Return the formats that training computes in, such as "float32, channels_last".

    On a GPU, torch rounds the inputs of float32 convolutions to tf32 (10 bits of mantissa instead
    of 23) unless that is switched off.
    """
    tf32 = device_type == "cuda" and precision == "float32" and torch.backends.cudnn.allow_tf32
    return f"{'tf32' if tf32 else precision}, {str(MEMORY_FORMAT).removeprefix('torch.')}"
