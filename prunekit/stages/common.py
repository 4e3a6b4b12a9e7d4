"""What several stages do alike: load the source, evaluate, count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunekit.data import Data, images_id
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, nonzero_params
from prunekit.modes import evaluating
from prunekit.runs.report import Metrics
from prunekit.runs.rundir import StageDir
from prunekit.stages.runtime import Runtime
from prunekit.surgery import SavedModel, load_model
from prunekit.training import evaluate


def load_source(place: Path, runtime: Runtime) -> SavedModel:
    """The model to start from, on the device of the runtime."""
    saved = load_model(place, trust=runtime.trust)
    saved.model.to(runtime.device)
    return saved


@torch.inference_mode()
def outputs(model: nn.Module, data: Data) -> int:
    """How many numbers the network says of an image; ConfigError when it cannot take one."""
    example = data.example.to(next(model.parameters()).device)
    try:
        with evaluating(model):
            found = model(example)
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = tuple(data.shape)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        mend = "another model or dataset" if data.classes else "dataset.shape=[...]"
        raise ConfigError(
            f"model={type(model).__name__} cannot take images of shape {shape}: {reason}; choose "
            f"{mend}"
        ) from error
    return found.shape[-1] if isinstance(found, torch.Tensor) else 0


def check_fits(model: nn.Module, data: Data, mend: str = "set model.classes={}") -> None:
    """Raise ConfigError when the network cannot take the images or has another class count."""
    classes = outputs(model, data)
    if data.classes and classes != data.classes:
        raise ConfigError(
            f"model.classes={classes}, but the dataset has {data.classes} classes; "
            f"{mend.format(data.classes)}"
        )


def counts(model: nn.Module, data: Data) -> Metrics:
    """Parameters, non-zero parameters and MACs of the network as it is."""
    graph = ChannelGraph.trace(model, data.example.to(next(model.parameters()).device))
    return {
        "params": sum(param.numel() for param in model.parameters()),
        "nonzero": nonzero_params(model),
        "macs": CostModel(model, graph).macs(),
        "macs_bias": CostModel(model, graph).macs_bias(),
    }


def quality(model: nn.Module, data: Data, runtime: Runtime) -> Metrics:
    """Test and validation accuracy in percent; every choice is made on the validation split.

    And which images these are, so that tables rank no runs tested on different ones. Nothing where
    there are no images.
    """
    if not data.test.size:
        return {}
    test = evaluate(model, data.test, runtime.device)
    held_out = evaluate(model, data.val, runtime.device) if data.val.size else {}
    return {
        "top1": round(test["top1"], 4),
        "top5": round(test["top5"], 4),
        "loss": round(test["loss"], 6),
        "test_images": images_id(data.test),
        **{f"val_{key}": round(value, 6) for key, value in held_out.items()},
    }


def history_writer(stage: StageDir) -> Any:
    """A callback for `fit` that keeps metrics.csv up to date."""

    def write(history: list[dict[str, Any]]) -> None:
        stage.write_history(history)
        stage.note_time()

    return write
