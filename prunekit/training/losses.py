"""Training losses: cross entropy, and knowledge distillation from another network.

Networks with auxiliary heads, such as GoogLeNet and Inception v3 of torchvision, return the outputs
of these in training mode as well (`prunekit.outputs`). As in the paper on GoogLeNet (Szegedy et al.
2015), 0.3 times the cross entropy of every auxiliary head is added to the loss.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.errors import ConfigError
from prunekit.modes import duplicate
from prunekit.outputs import auxiliary_logits, logits_of
from prunekit.schema import Checked, PartShare, Positive, Share
from prunekit.training.failures import cross_entropy

AUXILIARY_WEIGHT = 0.3  # of the cross entropy of an auxiliary head


@dataclass(frozen=True)
class CrossEntropy:
    """The mean cross entropy of a batch, with label smoothing, and that of auxiliary heads."""

    smoothing: float = 0.0

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits."""
        output = model(x)
        logits = logits_of(output)
        loss = cross_entropy(logits, y, self.smoothing)
        for auxiliary in auxiliary_logits(output).values():
            loss = loss + AUXILIARY_WEIGHT * cross_entropy(auxiliary, y, self.smoothing)
        return loss, logits


@dataclass(frozen=True, eq=False)
class Distillation(Checked):
    """(1 - weight) cross entropy + weight T^2 KL(teacher || network), at temperature T.

    The divergence is between the softmax of logits / T, summed over classes, averaged over the
    batch. The teacher is copied when the loss is made; the copy is in evaluation mode, without
    gradients, and follows the images to their device. `smoothing` is the label smoothing of the
    cross entropy, which a loss passed to `fit` has to set itself. With weight 0 the teacher is not
    run. Hinton et al. 2015; weight 0.4 and T = 4 are those of Li et al. 2020.
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
        """Return the loss and the network's logits.

        Raises ConfigError where the teacher's logits have another shape.
        """
        loss, logits = CrossEntropy(self.smoothing)(model, x, y)
        if self.weight == 0:
            return loss, logits
        divergence = self.temperature**2 * self._divergence(logits, self._teacher_logits(x))
        return (1 - self.weight) * loss + self.weight * divergence, logits

    @torch.no_grad()
    def _teacher_logits(self, x: Tensor) -> Tensor:
        first = next(self.teacher.parameters(), x)
        if first.device != x.device:
            self.teacher.to(x.device)
        return logits_of(self.teacher(x))

    def _divergence(self, logits: Tensor, targets: Tensor) -> Tensor:
        if targets.shape != logits.shape:
            raise ConfigError(
                f"the teacher's logits are {tuple(targets.shape)}, the network's "
                f"{tuple(logits.shape)}; give a teacher of the same classes"
            )
        return F.kl_div(
            F.log_softmax(_precise(logits) / self.temperature, dim=1),
            F.log_softmax(_precise(targets) / self.temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )


def _precise(logits: Tensor) -> Tensor:
    """Convert to at least float32: half precision loses the difference between two softmaxes."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
