"""The stage that trains the dense network, or loads its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.network import (
    Dense,
    build_network,
    check_fits,
    measure_accuracy,
    measure_size,
    weights_notes,
)
from prunekit.stages.settings import Runtime
from prunekit.stages.stage import FromSettings, Stage, history_writer
from prunekit.surgery import save_model
from prunekit.training import Schedule, fit


@dataclass(frozen=True)
class Pretrain(Stage):
    """Builds the network, loads weights where the settings name some, trains it and saves it."""

    name = "pretrain"
    needs_source = False
    dense: Annotated[Dense, FromSettings("model", "weights", make=Dense.of)]
    schedule: Annotated[Schedule, FromSettings("schedule.pretrain")]

    def check(self, run: Path) -> None:
        """Raise ConfigError where the network cannot be built, unless the stage is finished."""
        if not (run / self.name / "report.json").is_file():
            self.dense.check()

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Train the network and write its model file."""
        saved = build_network(self.dense, runtime)
        model = saved.model
        data = self.data(runtime)
        check_fits(model, data)
        fit(
            model,
            data,
            self.schedule,
            seed=self.seed,
            device=runtime.device,
            checkpoint=stage_dir.checkpoint,
            label="pretrain",
            on_epoch=history_writer(stage_dir),
        )
        save_model(stage_dir.path / "model.pt", model, saved.arch)
        metrics = {**measure_accuracy(model, data, runtime), **measure_size(model, data)}
        return Outcome(metrics, (*data.notes, *weights_notes(self.dense.weights)))
