"""Similarity tables of the layers of a network, from one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.console import track
from prunekit.data import Batches
from prunekit.errors import ConfigError, listed
from prunekit.methods.gram_lasso.features import (
    Calibration,
    Maps,
    Responses,
    channel_maps,
    input_maps,
    listening,
)
from prunekit.methods.gram_lasso.grams import Columns, Grams, Vectors
from prunekit.modes import consulting
from prunekit.schema import Checked, Count, Range

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


_DEAD = 1e-6  # of the median norm
_MIB = 2**20


@dataclass(frozen=True, eq=False)
class Tables:
    """Inner products of the unit vectors of a layer's channels, double, on the CPU.

    With K the vectors of M input channels as columns and L those of N output channels: `inputs` =
    K'K (M, M), `cross` = K'L (M, N), `outputs` = L'L (N, N), `energy` its diagonal. For Gram
    matrices these are values of centred kernel alignment. Channels whose vector is zero, or a
    millionth of the median, are dead: their rows and columns are zero. `input_units` is the unit
    of every input channel, 0 where it is fixed. `similarity` (N, N) is what output channels are
    tied together by: `outputs`, if nothing else was asked for.
    """

    inputs: Tensor
    cross: Tensor
    outputs: Tensor
    energy: Tensor
    dead_inputs: Tensor
    dead_outputs: Tensor
    input_units: Tensor
    similarity: Tensor


@torch.no_grad()
def tables_of(
    columns: Columns,
    inputs: Maps,
    outputs: Maps,
    labels: Tensor | None = None,
    memory: float = 256,
) -> Tables:
    """The tables of maps before and after a layer, on the device that holds them.

    Beyond maps and tables at most about `memory` MiB are taken at a time. `labels` are the
    examples' classes, for columns that ask for them.
    """
    room = int(memory * _MIB)
    labels = torch.zeros(inputs.examples, dtype=torch.long) if labels is None else labels.cpu()
    left, right = (columns.vectors(maps, labels, room // 8) for maps in (inputs, outputs))
    gram, cross, response = _inner_products(left, right, room * 3 // 8)
    dead_inputs, dead_outputs = _normalise(gram, cross, response)
    gram, cross, response = gram.cpu(), cross.cpu(), response.cpu()
    return Tables(
        inputs=gram,
        cross=cross,
        outputs=response,
        energy=response.diagonal().clone(),
        dead_inputs=dead_inputs.cpu(),
        dead_outputs=dead_outputs.cpu(),
        input_units=torch.zeros(len(gram), dtype=torch.long),
        similarity=response,
    )


def _inner_products(left: Vectors, right: Vectors, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Products within panels in the maps' precision, their sums in double."""
    sums: list[Tensor] = []
    for rows in _panels(left.steps, room // (left.step_bytes + right.step_bytes)):
        x, y = left.panel(rows), right.panel(rows)
        if not sums:
            sums = [_zeros(a, b) for a, b in ((x, x), (x, y), (y, y))]
        for total, (a, b) in zip(sums, ((x, x), (x, y), (y, y)), strict=True):
            total += a @ b.T
        del x, y, a, b
    gram, cross, response = sums
    return gram, cross, response


def _zeros(a: Tensor, b: Tensor) -> Tensor:
    return torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)


def _panels(steps: int, most: int) -> Iterator[range]:
    """All steps, `most` at a time, in four panels at least: those of triangles get narrower."""
    size = max(1, min(most, -(-steps // 4)))
    return (range(first, min(first + size, steps)) for first in range(0, steps, size))


def _normalise(gram: Tensor, cross: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    """Divide by norms, in place; dead channels become zero and are returned as masks."""
    dead_inputs, left = _factors(gram)
    dead_outputs, right = _factors(response)
    for table, rows, columns in (
        (gram, left, left),
        (cross, left, right),
        (response, right, right),
    ):
        table.mul_(rows[:, None]).mul_(columns).clamp_(-1, 1)
    for table, dead in ((gram, dead_inputs), (response, dead_outputs)):
        table.add_(table.T.clone()).mul_(0.5)
        table.diagonal().copy_(~dead)
    return dead_inputs, dead_outputs


def _factors(table: Tensor) -> tuple[Tensor, Tensor]:
    """Which channels are dead, and what the others are multiplied with."""
    norms = table.diagonal().clamp_min(0).sqrt()
    dead = (norms <= _DEAD * norms.median()) | (norms == 0)
    return dead, torch.where(dead, 0.0, 1 / norms)


@dataclass(frozen=True)
class ClassProfiles(Checked):
    """Ties filters together by their class profiles, in place of their Gram matrices.

    A profile is the mean output over positions and over the examples of each class, from as many
    examples as `calibration` says, `batch` at a time. Two profiles are as similar as they are
    correlated, so the sign counts. The regression itself stays as it is.
    """

    calibration: Annotated[Calibration, "which images"] = field(
        default_factory=lambda: Calibration(count=2000)
    )
    batch: Annotated[Count, "images in one batch"] = 100

    @torch.no_grad()
    def of(
        self,
        model: nn.Module,
        batches: Batches,
        device: torch.device | str,
        layers: Collection[str],
    ) -> dict[str, Tensor]:
        """Layer -> (filters, filters), double, on the CPU; zeros for filters without a profile."""
        indices = self.calibration.indices(batches)
        present, classes = batches.labels.cpu()[indices].unique(return_inverse=True)
        if len(present) < 3:
            raise ConfigError(
                f"class profiles need examples of three classes and there are {len(present)}; use "
                "other data, or leave similarity out"
            )
        sums = _Sums()
        with consulting(model):
            picked = batches.pick(indices, self.batch)
            parts = zip(picked, classes.split(self.batch), strict=True)
            for (inputs, _), labels in track(
                parts, "class profiles", -(-len(indices) // self.batch)
            ):
                sums.labels = F.one_hot(labels, len(present)).double()
                with listening(model, layers, sums):
                    model(inputs.to(device))
        counts = classes.bincount().double()
        return {name: correlations(total / counts) for name, total in sums.totals.items()}


class _Sums:
    """Mean outputs over positions, summed over the examples of each class, (filters, classes)."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.labels = torch.zeros(0, 0)

    def __call__(self, name: str, layer: nn.Module, before: Tensor, after: Tensor) -> None:
        means = channel_maps(layer, after).values.mean(2, dtype=torch.float64).cpu()
        self.totals[name] = self.totals.get(name, 0) + means @ self.labels


def correlations(profiles: Tensor) -> Tensor:
    """Pearson correlations of rows; zero for rows that are constant, up to rounding."""
    centred = profiles - profiles.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    flat = norms <= 1e-12 * profiles.norm(dim=1)
    unit = torch.where(flat[:, None], 0.0, centred / norms[:, None])
    found = (unit @ unit.T).clamp_(-1, 1)
    found.diagonal().copy_(~flat)
    return found


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
