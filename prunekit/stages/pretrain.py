"""Train the dense network, or start from given weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.common import check_fits, counts, history_writer, quality
from prunekit.stages.network import built, notes_on
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Read, Stage
from prunekit.stages.weights import Dense
from prunekit.surgery import save_model
from prunekit.training import Schedule, fit


@dataclass(frozen=True)
class Pretrain(Stage):
    """Build the model, load weights where they are given, train, save."""

    name = "pretrain"
    needs_source = False
    dense: Annotated[Dense, Read("model", "weights", make=Dense.of)]
    schedule: Annotated[Schedule, Read("schedule.pretrain")]

    def check(self, run: Path) -> None:
        """The network must be one that can be built, unless it is there already."""
        if not (run / self.name / "report.json").is_file():
            self.dense.check()

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Leave the trained network."""
        start = built(self.dense, runtime)
        model = start.model
        data = self.data(runtime)
        check_fits(model, data)
        fit(
            model,
            data,
            self.schedule,
            seed=self.seed,
            device=runtime.device,
            checkpoint=place.checkpoint,
            label="pretrain",
            on_epoch=history_writer(place),
        )
        save_model(place.path / "model.pt", model, start.arch)
        notes = (*data.notes, *notes_on(self.dense.weights))
        return Outcome({**quality(model, data, runtime), **counts(model, data)}, notes)
