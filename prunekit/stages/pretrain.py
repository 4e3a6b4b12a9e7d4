"""Train the dense network, or start from given weights."""

from __future__ import annotations

from prunekit.build import build
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.base import Runtime, Settings
from prunekit.stages.parts import check_fits, counts, history_writer, load_data, quality
from prunekit.surgery import load_weights, save_model
from prunekit.training import fit


def pretrain(settings: Settings, stage: StageDir, runtime: Runtime) -> Outcome:
    """Build the model, load `weights` where given, train, save."""
    model = build(settings["model"], "model").to(runtime.device)
    schedule = build(settings["schedule"]["pretrain"], "schedule.pretrain")
    data = load_data(settings, runtime)
    check_fits(model, data)
    notes = list(data.notes)
    if settings["weights"] is not None:
        load_weights(model, settings["weights"])
        notes.append(
            f"started from {settings['weights']}: those weights may have been trained on the "
            "validation split, so figures on it are optimistic"
        )
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
    save_model(stage.path / "model.pt", model, settings["model"])
    return Outcome({**quality(model, data, runtime), **counts(model, data)}, tuple(notes))
