"""Knowledge distillation: a loss that follows the logits of another network too."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.errors import ConfigError
from prunekit.modes import duplicate
from prunekit.schema import Checked, PartShare, Positive, Share


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross entropy of a batch, with label smoothing."""

    smoothing: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits."""
        logits = model(x)
        return F.cross_entropy(logits, y, label_smoothing=self.smoothing), logits


@dataclass(frozen=True, eq=False)
class Distillation(Checked):
    """(1 - weight) cross entropy + weight T^2 KL(teacher || network), at temperature T.

    The divergence is between the softmax of logits / T, summed over classes, mean of the batch.
    The teacher is a copy of what is given, as it is then: in evaluation mode, without gradients,
    with statistics that never move, on the device of the images. `smoothing` is label smoothing of
    the cross entropy; `fit` leaves that of its schedule to the loss it is given. With weight 0 the
    teacher is not asked. Hinton et al. 2015; weight 0.4 and T = 4 are those of Li et al. 2020.
    """

    teacher: nn.Module
    weight: Share = 0.4
    temperature: Positive = 4.0
    smoothing: PartShare = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        frozen = duplicate(self.teacher).eval().requires_grad_(False)
        object.__setattr__(self, "teacher", frozen.to(memory_format=torch.channels_last))

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss and the logits of the network; ConfigError where the teacher's have no equal."""
        loss, logits = CrossEntropy(self.smoothing)(model, x, y)
        if self.weight == 0:
            return loss, logits
        followed = self.temperature**2 * self._divergence(logits, self._taught(x))
        return (1 - self.weight) * loss + self.weight * followed, logits

    @torch.no_grad()
    def _taught(self, x: Tensor) -> Tensor:
        """The teacher's logits."""
        first = next(self.teacher.parameters(), x)
        if first.device != x.device:
            self.teacher.to(x.device)
        return self.teacher(x)

    def _divergence(self, logits: Tensor, wanted: Tensor) -> Tensor:
        if wanted.shape != logits.shape:
            raise ConfigError(
                f"the teacher's logits are {tuple(wanted.shape)}, the network's "
                f"{tuple(logits.shape)}; give a teacher of the same classes"
            )
        return F.kl_div(
            F.log_softmax(_precise(logits) / self.temperature, dim=1),
            F.log_softmax(_precise(wanted) / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )


def _precise(logits: Tensor) -> Tensor:
    """At least float32: what differs between two softmaxes is lost in half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
