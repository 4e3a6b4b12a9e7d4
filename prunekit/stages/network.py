"""The networks that stages start from: built or loaded, checked against the images, counted."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from prunekit.build import Settings, build
from prunekit.data import Data, images_id
from prunekit.errors import ArtifactError, ConfigError, listed
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, nonzero_params
from prunekit.methods.hinge import InsertMatrices, layers_with_matrix
from prunekit.methods.hinge.placement import Placement
from prunekit.methods.slimming import ChannelSelector, InsertChannelSelectors
from prunekit.models import timm_weights, torchvision_weights
from prunekit.modes import evaluating
from prunekit.outputs import describe_output, logits_of
from prunekit.reasons import reason_of
from prunekit.runs.report import Metrics
from prunekit.runs.rundir import StageDir
from prunekit.stages.settings import ChannelSelections, Runtime
from prunekit.stages.stage import FromSettings, Parts
from prunekit.surgery import Edit, SavedModel, load_model, load_weights
from prunekit.surgery.files import load_matching
from prunekit.training import evaluate

log = logging.getLogger(__name__)

_NOTES = 3  # notes on a placement that are logged
_PRETRAINED = {  # functions that build a network of another package -> its pretrained weights
    "prunekit.models.torchvision_model": torchvision_weights,
    "prunekit.models.timm_model": timm_weights,
}


@dataclass(frozen=True)
class Dense:
    """The settings that the dense network is built from, and its weights.

    `weights` is a file or the name of pretrained weights; None stands for random weights.
    """

    arch: Mapping[str, Any]
    weights: str | None

    @classmethod
    def of(cls, settings: Settings) -> Dense:
        """Read `model`, `model.weights` and `weights`; raises ConfigError."""
        return cls(architecture(settings), _weights(settings))

    def check(self) -> None:
        """Raise ConfigError for a network that cannot be built; the check takes no memory."""
        try:
            with torch.device("meta"):
                build(self.arch, "model")
        except ConfigError:  # the constructor may need real numbers
            build(self.arch, "model", nn.Module)


def architecture(settings: Settings) -> dict[str, Any]:
    """Return the settings of the model without `weights`, which do not change how it is built."""
    return {key: value for key, value in settings["model"].items() if key != "weights"}


def _weights(settings: Settings) -> str | None:
    """Return the file or name that `weights` or `model.weights` gives; None for random weights."""
    values = [settings.get("weights"), settings["model"].get("weights")]
    names = [str(weights) for weights in values if weights is not None]
    if len(names) > 1:
        raise ConfigError(f"weights={names[0]} and model.weights={names[1]} are both set; give one")
    return names[0] if names else None


@dataclass(frozen=True)
class FromNetwork(Parts):
    """The base of commands that start from an earlier stage's network or build one themselves."""

    dense: Annotated[Dense, FromSettings("model", "weights", make=Dense.of, start=True)]
    channel_selection: ChannelSelections
    placement: Annotated[Placement, "where sparsity-inducing matrices are inserted"]

    def start(self, stage_dir: StageDir, data: Data, runtime: Runtime) -> SavedModel:
        """Return the network to work on, with the selectors and matrices that the settings ask for.

        ConfigError where it does not fit the data.
        """
        saved = (
            load_source(stage_dir.source, runtime)
            if stage_dir.has_source
            else build_network(self.dense, runtime)
        )
        check_fits(saved.model, data)
        edits = insert_selectors(saved.model, data.example) if self.channel_selection else ()
        edits = (*edits, *insert_matrices(saved.model, data.example, self.placement))
        return replace(saved, edits=(*saved.edits, *edits))

    def sketch(self) -> tuple[nn.Module, ChannelGraph] | None:
        """Return the network as it starts, without memory for its weights, and its graph.

        None where it cannot be built in this way. ConfigError where it lacks what the settings of
        selectors and matrices need.
        """
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                model = build(self.dense.arch, "model", nn.Module)
                example = torch.empty(1, *self.dataset.shape)
            if self.channel_selection:
                insert_selectors(model, example)
            _place_matrices(model, example, self.placement)
            return model, ChannelGraph.trace(model, example)
        except ConfigError:
            raise
        except Exception:  # classes of users raise anything; the stage itself says what is wrong
            return None


def build_network(dense: Dense, runtime: Runtime) -> SavedModel:
    """Return the dense network on the device of the runtime, as if it were read from a file.

    ConfigError, ArtifactError or DataError where it cannot be built or the weights do not fit.
    """
    arch, weights = dense.arch, dense.weights
    pretrained = _PRETRAINED.get(str(arch.get("_target_")))
    if weights is None:
        model = _module(arch)
    elif Path(weights).is_file():
        model = _module(arch)
        load_weights(model, weights)
    elif pretrained is None:
        raise ConfigError(f"weights={weights} does not exist; give the path of a state dict")
    else:
        needed, fetch = pretrained(str(arch["arch"]), weights, arch)
        arch = {**needed, **arch}
        model = _module(arch)
        load_matching(model, fetch(), f"weights={weights}")
    if weights is not None:
        _refuse_not_finite(model, f"weights={weights}")
    return SavedModel(model.to(runtime.device), arch, (), {})


def _refuse_not_finite(model: nn.Module, origin: str) -> None:
    """Raise ArtifactError for parameters with nan or infinite numbers, which nothing could use."""
    for name, parameter in model.named_parameters():
        if count := int((~parameter.isfinite()).sum()):
            raise ArtifactError(
                f"{origin}: {name} holds {count:,} values that are nan or infinite; start from "
                "other weights (weights=..., source=...)"
            )


def load_source(file: Path, runtime: Runtime) -> SavedModel:
    """Load a model file onto the device of the runtime; ArtifactError where it cannot be used."""
    saved = load_model(file, trust=runtime.trust)
    _refuse_not_finite(saved.model, os.path.relpath(file))
    saved.model.to(runtime.device)
    return saved


def insert_matrices(model: nn.Module, example: Tensor, placement: Placement) -> tuple[Edit, ...]:
    """Insert matrices where the placement says, in place, unless the network has some.

    Return the edit, and log the layers that got fewer matrices than requested. ConfigError where
    the network has no layers that the placement names.
    """
    if layers_with_matrix(model):
        return ()
    edit, notes = _place_matrices(model, example.to(_device(model)), placement)
    if notes:
        log.warning(f"placement: {listed(notes, _NOTES, '; ')}")
    return (edit,) if edit.sites else ()


def _place_matrices(
    model: nn.Module, example: Tensor, placement: Placement
) -> tuple[InsertMatrices, Sequence[str]]:
    """Insert matrices in place; return the edit, and which layers got fewer than requested."""
    placed = placement.sites(model, example)
    edit = InsertMatrices(placed.sites, placed.whole)
    if edit.sites or edit.whole:
        edit.apply(model)
    return edit, placed.notes


def insert_selectors(model: nn.Module, example: Tensor) -> tuple[Edit, ...]:
    """Insert a channel selector before every batch norm that shares its channels, in place.

    Return the edit, or nothing where all of these have a selector. ConfigError where no batch norm
    shares its channels.
    """
    edit = InsertChannelSelectors.of(model, example.to(_device(model)))
    if not edit.norms and not any(isinstance(m, ChannelSelector) for m in model.modules()):
        raise ConfigError(
            "channel_selection=true, but no channels of a batch norm are read past it, as in "
            "pre-activation and dense networks; set channel_selection=false"
        )
    edit.apply(model)
    return (edit,) if edit.norms else ()


def weights_notes(weights: str | None) -> list[str]:
    """Return what a report must say about the weights that a network starts from."""
    if weights is None:
        return []
    return [
        f"started from {weights}: those weights may have been trained on the validation split, so "
        "figures on it are optimistic"
    ]


@torch.inference_mode()
def count_outputs(model: nn.Module, data: Data) -> int:
    """Return the number of logits per image; ConfigError when the network cannot take one.

    Without classes in the data set, outputs of which none are the logits count as 0.
    """
    try:
        with evaluating(model):
            output = model(data.example.to(_device(model)))
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = tuple(data.shape)
        raise ConfigError(
            f"model={type(model).__name__} cannot take images of shape {shape}: "
            f"{reason_of(error)}; "
            f"{_way_to_fit(model, data)}"
        ) from error
    return _logits_width(model, output, data.classes)


def _way_to_fit(model: nn.Module, data: Data) -> str:
    """Return how a network and images are made to fit; the channels are the first thing to see."""
    choose = f"choose {'another model or dataset' if data.classes else 'dataset.shape=[...]'}"
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    if first is None or len(data.shape) != 3 or first.in_channels == data.shape[0]:
        return choose
    return (
        f"it reads {first.in_channels} channels and the images have {data.shape[0]}: set "
        f"model.in_channels={data.shape[0]} where the model has that setting, or {choose}"
    )


def _logits_width(model: nn.Module, output: object, classes: int) -> int:
    try:
        logits = logits_of(output)
    except ConfigError as error:
        if not classes:
            return 0
        raise ConfigError(f"model={type(model).__name__}: {error}") from error
    if classes and logits.dim() != 2:
        raise ConfigError(
            f"model={type(model).__name__} returns {describe_output(logits)} as its logits, but "
            f"training on classes needs (examples, classes); choose a network that classifies"
        )
    return logits.shape[-1]


def check_fits(model: nn.Module, data: Data, mend: str = "set model.classes={}") -> None:
    """Raise ConfigError when the network cannot take the images or has another class count."""
    classes = count_outputs(model, data)
    if data.classes and classes != data.classes:
        raise ConfigError(
            f"model.classes={classes}, but the dataset has {data.classes} classes; "
            f"{mend.format(data.classes)}"
        )


def measure_size(model: nn.Module, data: Data) -> Metrics:
    """Return the parameters, non-zero parameters and MACs of the network as it is."""
    cost = CostModel(model, ChannelGraph.trace(model, data.example.to(_device(model))))
    return {
        "params": sum(param.numel() for param in model.parameters()),
        "nonzero": nonzero_params(model),
        "macs": cost.macs(),
        "macs_bias": cost.macs_bias(),
    }


def measure_accuracy(model: nn.Module, data: Data, runtime: Runtime) -> Metrics:
    """Return test and validation accuracy in percent, and an id of the test images.

    Choices are made on the validation split. The id keeps tables from ranking runs that were
    tested on different images. Without test images the result is empty.
    """
    if not data.test.size:
        return {}
    test = evaluate(model, data.test, runtime.device)
    validation = evaluate(model, data.val, runtime.device) if data.val.size else {}
    return {
        "top1": round(test["top1"], 4),
        "top5": round(test["top5"], 4),
        "loss": round(test["loss"], 6),
        "test_images": images_id(data.test),
        **{f"val_{key}": round(value, 6) for key, value in validation.items()},
    }


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _module(arch: Mapping[str, Any]) -> nn.Module:
    model = build(arch, "model")
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model describes a {type(model).__name__}, not a Module; give a _target_ that makes "
            "one"
        )
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise ConfigError(
            f"model={type(model).__name__} has lazy layers, whose sizes no file could repeat; "
            "give them their input sizes"
        )
    return model
