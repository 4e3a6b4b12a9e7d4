"""Train the dense network, or start from given weights."""

from __future__ import annotations

from prunekit.build import build
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.network import built, notes_on
from prunekit.stages.parts import check_fits, counts, history_writer, load_data, quality
from prunekit.stages.weights import weights_of
from prunekit.surgery import save_model
from prunekit.training import fit


def pretrain(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Build the model, load `weights` where given, train, save."""
    start = built(settings, runtime)
    model = start.model
    schedule = build(settings["schedule"]["pretrain"], "schedule.pretrain")
    data = load_data(settings, runtime)
    check_fits(model, data)
    notes = [*data.notes, *notes_on(weights_of(settings))]
    fit(
        model,
        data,
        schedule,
        seed=settings["seed"],
        device=runtime.device,
        checkpoint=stage.checkpoint,
        label="pretrain",
        on_epoch=history_writer(stage),
    )
    save_model(stage.path / "model.pt", model, start.arch)
    return Outcome({**quality(model, data, runtime), **counts(model, data)}, tuple(notes))
