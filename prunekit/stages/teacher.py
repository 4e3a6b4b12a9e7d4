"""Which network teaches in fine-tuning, and how much it counts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from torch import nn

from prunekit.runs.provenance import dense_file
from prunekit.runs.rundir import model_file
from prunekit.schema import Checked, Positive, Share
from prunekit.training import Distillation


@dataclass(frozen=True)
class Distill(Checked):
    """How much the tuned network follows the logits of a teacher, and which one that is.

    `teacher` is a model file, a stage or a run; None is the dense network that the tuned one came
    from, source by source.
    """

    weight: Annotated[Share, "of the teacher in the loss"] = 0.4
    temperature: Annotated[Positive, "that both logits are divided by"] = 4.0
    teacher: Annotated[
        str | None, "a model file, stage or run; null: the dense network this one came from"
    ] = None

    def file(self, source: Path) -> Path:
        """The teacher's model file, for a network that starts from `source`; ArtifactError."""
        if self.teacher is None:
            return dense_file(source)
        return model_file(self.teacher, "distill.teacher")

    def check(self, run: Path) -> None:
        """Raise ArtifactError for a teacher that is not there and that this run cannot leave."""
        if self.teacher is None:
            return
        place = Path(self.teacher).resolve()
        if run.resolve() not in (place, *place.parents):
            model_file(self.teacher, "distill.teacher")

    def loss(self, teacher: nn.Module, smoothing: float) -> Distillation:
        """The loss of fine-tuning; `smoothing` is that of the schedule's labels."""
        return Distillation(teacher, self.weight, self.temperature, smoothing)
