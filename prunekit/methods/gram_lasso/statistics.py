"""Similarity tables of many layers from one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.errors import ConfigError, listed
from prunekit.methods.gram_lasso.calibration import Calibration, listening
from prunekit.methods.gram_lasso.class_profiles import ClassProfiles
from prunekit.methods.gram_lasso.features import Responses, channel_maps, input_maps
from prunekit.methods.gram_lasso.gram_tables import Tables, tables_of
from prunekit.methods.gram_lasso.grams import Columns, Grams
from prunekit.modes import consulting
from prunekit.schema import Checked, Range

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Statistics(Checked):
    """How the channels of layers are compared, and on which examples.

    `columns` is what is compared: `Grams` with a kernel and a centring, `RawMaps`, `ClassBlocks`.
    `responses` are the output channels, or the whole output (`WholeOutput`). `profiles` ties output
    channels together in place of what `columns` say. Beyond the maps of a layer and all tables,
    about `memory` MiB are taken at a time.
    """

    columns: Annotated[Columns, "what of a channel is compared"] = field(default_factory=Grams)
    calibration: Annotated[Calibration, "which images"] = field(default_factory=Calibration)
    responses: Annotated[Responses, "output channels, or the whole output"] = field(
        default_factory=Responses
    )
    profiles: Annotated[ClassProfiles | None, "ties output channels together instead"] = None
    memory: Annotated[float, Range(at_least=1), "MiB beyond maps and tables"] = 256

    @torch.no_grad()
    def of(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        data: Data,
        device: torch.device | str,
        layers: Collection[str],
    ) -> dict[str, Tables]:
        """The tables of these convolutions and linear layers, in the order of the forward.

        X is what enters a layer and Y what leaves it, before anything else, in evaluation mode, on
        the training set. Layers that the forward never calls are left out, and so are those whose
        channels `columns` cannot compare; a warning names them. ConfigError where none is left.
        """
        inputs, labels = self.calibration.batch(data.train, self.columns.least)
        with closing(_ticks(len(layers))) as ticks:
            pass_ = _Pass(self, graph, labels.cpu(), ticks)
            with consulting(model), listening(model, layers, pass_) as calls:
                model(inputs.to(device))
        again = [name for name, count in calls.items() if count > 1]
        if again:
            log.warning("%s: called more than once; the first call is looked at", listed(again))
        self._told(pass_)
        return self._tied(pass_.tables, model, data, device)

    def _told(self, pass_: _Pass) -> None:
        """Warn of layers without tables; ConfigError where no layer has any."""
        if not pass_.refused:
            return
        why = "; ".join(f"{name}: {reason}" for name, reason in [*pass_.refused.items()][:1])
        what = f"columns={type(self.columns).__name__} cannot compare channels of"
        names = listed([*pass_.refused])
        if not pass_.tables:
            raise ConfigError(f"{what} {names} ({why}); use columns=Grams")
        log.warning("%s %s (%s); they have no tables", what, names, why)

    def _tied(
        self, tables: dict[str, Tables], model: nn.Module, data: Data, device: torch.device | str
    ) -> dict[str, Tables]:
        if self.profiles is None:
            return tables
        similar = self.profiles.of(model, data.train, device, tables)
        return {name: replace(found, similarity=similar[name]) for name, found in tables.items()}


class _Pass:
    """Makes the tables of each layer that is met, so that its maps can go."""

    def __init__(
        self, settings: Statistics, graph: ChannelGraph, labels: Tensor, ticks: Iterator[int]
    ) -> None:
        self.settings, self.graph, self.labels, self.ticks = settings, graph, labels, ticks
        self.tables: dict[str, Tables] = {}
        self.refused: dict[str, str] = {}

    def __call__(self, name: str, layer: nn.Module, before: Tensor, after: Tensor) -> None:
        next(self.ticks, None)
        settings = self.settings
        inputs, units = input_maps(layer, before, self.graph.ins[name].cpu())
        outputs = channel_maps(layer, after)
        why = settings.columns.refusal(inputs, outputs)
        if why is not None:
            self.refused[name] = why
            return
        outputs = settings.responses(outputs)
        found = tables_of(settings.columns, inputs, outputs, self.labels, settings.memory)
        if not bool(found.energy.isfinite().all() & found.cross.isfinite().all()):
            raise ConfigError(
                f"what enters or leaves {name} is not finite; look for nan or inf in the weights "
                "of the source model"
            )
        self.tables[name] = replace(found, input_units=units)


def _ticks(count: int) -> Iterator[int]:
    """Shows progress, one step at each `next`."""
    return iter(track(range(count), "similarity", count))
