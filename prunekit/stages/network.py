"""The network that a run starts from: built from settings, with given or random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from prunekit.build import build
from prunekit.data import Data
from prunekit.errors import ConfigError, listed
from prunekit.methods.hinge import InsertMatrices, layers_with_matrix
from prunekit.methods.hinge.placement import Placement
from prunekit.methods.slimming import ChannelSelector, InsertChannelSelectors
from prunekit.models import timm_weights, torchvision_weights
from prunekit.runs.rundir import StageDir
from prunekit.stages.common import check_fits, load_source
from prunekit.stages.root import ChannelSelections
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Parts, Read
from prunekit.stages.weights import Dense
from prunekit.surgery import Edit, SavedModel, load_weights
from prunekit.surgery.weights import load_matching

log = logging.getLogger(__name__)

_LISTED = 3  # remarks on a placement that are shown
_NAMED = {
    "prunekit.models.torchvision_model": torchvision_weights,
    "prunekit.models.timm_model": timm_weights,
}


@dataclass(frozen=True)
class FromNetwork(Parts):
    """What works on an earlier stage's network, or on one that it builds itself."""

    dense: Annotated[Dense, Read("model", "weights", make=Dense.of, start=True)]
    channel_selection: ChannelSelections
    placement: Annotated[Placement, "where sparsity-inducing matrices go"]

    def start(self, place: StageDir, data: Data, runtime: Runtime) -> SavedModel:
        """The network to work on, which fits the data.

        With channel selections and sparsity-inducing matrices where these are asked for.
        """
        saved = load_source(place.source, runtime) if place.sourced else built(self.dense, runtime)
        check_fits(saved.model, data)
        done = with_selections(saved.model, data.example) if self.channel_selection else ()
        done = (*done, *with_matrices(saved.model, data.example, self.placement))
        return replace(saved, edits=(*saved.edits, *done))


def built(dense: Dense, runtime: Runtime) -> SavedModel:
    """The dense network on the device of the runtime, as if it were read from a file.

    ConfigError, ArtifactError or DataError when it cannot be built, or the weights do not fit.
    """
    arch, weights = dense.arch, dense.weights
    named = _NAMED.get(str(arch.get("_target_")))
    if weights is None:
        model = _network(arch)
    elif Path(weights).is_file():
        model = _network(arch)
        load_weights(model, weights)
    elif named is None:
        raise ConfigError(f"weights={weights} does not exist; give the path of a state dict")
    else:
        needed, fetch = named(str(arch["arch"]), weights, arch)
        arch = {**needed, **arch}
        model = _network(arch)
        load_matching(model, fetch(), f"weights={weights}")
    return SavedModel(model.to(runtime.device), arch, (), {})


def with_matrices(model: nn.Module, example: Tensor, placement: Placement) -> tuple[Edit, ...]:
    """Attach matrices where the placement wants them, in place, unless the network has some.

    Returns what was done, and logs which layers got less than was asked for; ConfigError where the
    network lacks what the placement names.
    """
    if layers_with_matrix(model):
        return ()
    found = placement.sites(model, example.to(next(model.parameters()).device))
    if found.notes:
        log.warning(f"placement: {listed(found.notes, _LISTED, '; ')}")
    edit = InsertMatrices(found.sites, found.whole)
    edit.apply(model)
    return (edit,) if edit.sites else ()


def with_selections(model: nn.Module, example: Tensor) -> tuple[Edit, ...]:
    """Put a channel selection in front of every norm whose channels others read too, in place.

    Returns what was done: nothing where all have theirs. ConfigError where there is no such norm.
    """
    edit = InsertChannelSelectors.of(model, example.to(next(model.parameters()).device))
    if not edit.norms and not any(isinstance(one, ChannelSelector) for one in model.modules()):
        raise ConfigError(
            "channel_selection=true, but no channels of a batch norm are read past it, as in "
            "pre-activation and dense networks; set channel_selection=false"
        )
    edit.apply(model)
    return (edit,) if edit.norms else ()


def notes_on(weights: str | None) -> list[str]:
    """What a report must not hide about the weights that a network starts from."""
    if weights is None:
        return []
    return [
        f"started from {weights}: those weights may have been trained on the validation split, so "
        "figures on it are optimistic"
    ]


def _network(arch: Mapping[str, Any]) -> nn.Module:
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
