"""Similarity tables of the layers of a network, from one forward pass."""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator
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
    hook_first_calls,
    input_maps,
)
from prunekit.methods.gram_lasso.grams import Columns, Grams, Vectors
from prunekit.modes import evaluating_unchanged
from prunekit.schema import Checked, Count, Range

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

_ZERO = 1e-6  # of the median norm: vectors that are shorter count as zero
_MIB = 2**20

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Tables:
    """Inner products of the unit vectors of a layer's channels, in double precision on the CPU.

    With K the vectors of M input channels as columns and L those of N output channels: `inputs` is
    K'K (M, M), `cross` K'L (M, N), `outputs` L'L (N, N) and `energy` (N,) the diagonal of L'L. For
    Gram matrices these are values of centred kernel alignment. `zero_inputs` and `zero_outputs`
    mark channels whose vector is zero or shorter than a millionth of the median; their rows and
    columns are zero. `input_units` (M,) is the unit of every input channel, 0 if it is frozen.
    `similarity` (N, N) defines the graph or tree over output channels; by default it is `outputs`.
    """

    inputs: Tensor
    cross: Tensor
    outputs: Tensor
    energy: Tensor
    zero_inputs: Tensor
    zero_outputs: Tensor
    input_units: Tensor
    similarity: Tensor


@torch.no_grad()
def compute_tables(
    columns: Columns,
    inputs: Maps,
    outputs: Maps,
    labels: Tensor | None = None,
    memory: float = 256,
) -> Tables:
    """Compute the tables of the maps before and after a layer, on the device that holds the maps.

    Takes about `memory` MiB beyond maps and tables. `labels` are the classes of the examples, for
    columns that need them.
    """
    room = int(memory * _MIB)
    labels = torch.zeros(inputs.examples, dtype=torch.long) if labels is None else labels.cpu()
    left, right = (columns.vectors(maps, labels, room // 8) for maps in (inputs, outputs))
    gram, cross, response = _inner_products(left, right, room * 3 // 8)
    zero_inputs, zero_outputs = _normalise(gram, cross, response)
    gram, cross, response = gram.cpu(), cross.cpu(), response.cpu()
    return Tables(
        inputs=gram,
        cross=cross,
        outputs=response,
        energy=response.diagonal().clone(),
        zero_inputs=zero_inputs.cpu(),
        zero_outputs=zero_outputs.cpu(),
        input_units=torch.zeros(len(gram), dtype=torch.long),
        similarity=response,
    )


def _inner_products(left: Vectors, right: Vectors, room: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return K'K, K'L and L'L: products in the maps' precision within panels, sums in double."""
    sums: list[Tensor] = []
    for steps in _panels(left.steps, room // (left.step_bytes + right.step_bytes)):
        x, y = left.panel(steps), right.panel(steps)
        if not sums:
            sums = [_zeros(a, b) for a, b in ((x, x), (x, y), (y, y))]
        for total, (a, b) in zip(sums, ((x, x), (x, y), (y, y)), strict=True):
            total += a @ b.T
        del x, y, a, b
    gram, cross, response = sums
    return gram, cross, response


def _zeros(a: Tensor, b: Tensor) -> Tensor:
    return torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)


def _panels(steps: int, limit: int) -> Iterator[range]:
    """Split the steps into ranges of at most `limit`, at least four: those of triangles narrow."""
    size = max(1, min(limit, -(-steps // 4)))
    return (range(first, min(first + size, steps)) for first in range(0, steps, size))


def _normalise(gram: Tensor, cross: Tensor, response: Tensor) -> tuple[Tensor, Tensor]:
    """Divide the tables by norms in place; return masks of zero inputs and zero outputs."""
    zero_inputs, left = _inverse_norms(gram)
    zero_outputs, right = _inverse_norms(response)
    for table, rows, columns in (
        (gram, left, left),
        (cross, left, right),
        (response, right, right),
    ):
        table.mul_(rows[:, None]).mul_(columns).clamp_(-1, 1)
    for table, zero in ((gram, zero_inputs), (response, zero_outputs)):
        table.add_(table.T.clone()).mul_(0.5)
        table.diagonal().copy_(~zero)
    return zero_inputs, zero_outputs


def _inverse_norms(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return a mask of channels with zero vectors, and the inverse norms of the others."""
    norms = table.diagonal().clamp_min(0).sqrt()
    zero = (norms <= _ZERO * norms.median()) | (norms == 0)
    return zero, torch.where(zero, 0.0, 1 / norms)


@dataclass(frozen=True)
class ClassProfiles(Checked):
    """Computes similarities of filters from class profiles. This option is ours, not published.

    A profile is the mean output of a filter over positions and over the examples of each class. The
    similarity of two filters is the correlation of their profiles, so its sign counts. Only the
    graph or tree over filters depends on it, not the regression itself.
    """

    calibration: Annotated[Calibration, "sample of training images"] = field(
        default_factory=lambda: Calibration(count=2000)
    )
    batch: Annotated[Count, "images in one batch"] = 100

    @torch.no_grad()
    def compute(
        self,
        model: nn.Module,
        batches: Batches,
        device: torch.device | str,
        layers: Collection[str],
    ) -> dict[str, Tensor]:
        """Return a (filters, filters) matrix by layer, double, on the CPU.

        Filters with a constant profile have zeros. Raises ConfigError for less than three classes.
        """
        indices = self.calibration.indices(batches)
        present, classes = torch.unique(batches.labels.cpu()[indices], return_inverse=True)
        if len(present) < 3:
            raise ConfigError(
                f"class profiles need examples of three classes and there are {len(present)}; use "
                "other data, or leave similarity out"
            )
        sums = _ProfileSums()
        with evaluating_unchanged(model):
            parts = zip(
                batches.pick(indices, self.batch), torch.split(classes, self.batch), strict=True
            )
            for (inputs, _), labels in track(
                parts, "class profiles", -(-len(indices) // self.batch)
            ):
                sums.labels = F.one_hot(labels, len(present)).double()
                with hook_first_calls(model, layers, sums):
                    model(inputs.to(device))
        counts = classes.bincount().double()
        return {name: correlations(total / counts) for name, total in sums.totals.items()}


class _ProfileSums:
    """Sums, over the examples of each class, of mean outputs over positions, (filters, classes)."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.labels = torch.zeros(0, 0)

    def __call__(self, name: str, layer: nn.Module, before: Tensor, after: Tensor) -> None:
        means = channel_maps(layer, after).values.mean(2, dtype=torch.float64).cpu()
        self.totals[name] = self.totals.get(name, 0) + means @ self.labels


def correlations(profiles: Tensor) -> Tensor:
    """Return Pearson correlations of the rows; rows that are constant up to rounding have zeros."""
    centred = profiles - profiles.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    constant = norms <= 1e-12 * profiles.norm(dim=1)
    unit = torch.where(constant[:, None], 0.0, centred / norms[:, None])
    products = (unit @ unit.T).clamp_(-1, 1)
    products.diagonal().copy_(~constant)
    return products


@dataclass(frozen=True)
class Statistics(Checked):
    """Computes how similar the channels of layers are, on a sample of training images.

    `columns` turns channels into vectors: `Grams` with a kernel and a centring, `RawMaps` or
    `ClassBlocks`. `responses` are the output channels, or the whole output (`WholeOutput`).
    `profiles` replaces the similarities of output channels that define the graph or tree.
    """

    columns: Annotated[Columns, "the vector that represents a channel"] = field(
        default_factory=Grams
    )
    calibration: Annotated[Calibration, "sample of training images"] = field(
        default_factory=Calibration
    )
    responses: Annotated[Responses, "output channels, or the whole output"] = field(
        default_factory=Responses
    )
    profiles: Annotated[
        ClassProfiles | None, "similarities of filters by class profiles; null: by columns"
    ] = None
    memory: Annotated[float, Range(at_least=1), "MiB beyond maps and tables"] = 256

    @torch.no_grad()
    def compute(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        data: Data,
        device: torch.device | str,
        layers: Collection[str],
    ) -> dict[str, Tables]:
        """Compute the tables of these convolutions and linear layers, in forward order.

        The maps are the input and the output of the layer's first call, before any norm or
        activation, in evaluation mode on the training set. Layers that are never called are left
        out, and so are those that `columns` cannot compare, with a warning. Raises ConfigError if
        no layer is left.
        """
        inputs, labels = self.calibration.batch(data.train, self.columns.min_examples)
        with closing(_progress(len(layers))) as progress:
            builder = _TableBuilder(self, graph, labels.cpu(), progress)
            with evaluating_unchanged(model), hook_first_calls(model, layers, builder) as calls:
                model(inputs.to(device))
        repeated = [name for name, count in calls.items() if count > 1]
        if repeated:
            log.warning("%s: called more than once; the first call is looked at", listed(repeated))
        self._report_refused(builder)
        return self._with_profiles(builder.tables, model, data, device)

    def _report_refused(self, builder: _TableBuilder) -> None:
        """Warn of layers without tables; raise ConfigError if no layer has any."""
        if not builder.refused:
            return
        name, reason = next(iter(builder.refused.items()))
        what = f"columns={type(self.columns).__name__} cannot compare channels of"
        names = listed([*builder.refused])
        if not builder.tables:
            raise ConfigError(f"{what} {names} ({name}: {reason}); use columns=Grams")
        log.warning("%s %s (%s: %s); they have no tables", what, names, name, reason)

    def _with_profiles(
        self, tables: dict[str, Tables], model: nn.Module, data: Data, device: torch.device | str
    ) -> dict[str, Tables]:
        if self.profiles is None:
            return tables
        similarities = self.profiles.compute(model, data.train, device, tables)
        return {
            name: replace(table, similarity=similarities[name]) for name, table in tables.items()
        }


class _TableBuilder:
    """Builds the tables of each layer when it is called, so that its maps can be freed."""

    def __init__(
        self, settings: Statistics, graph: ChannelGraph, labels: Tensor, progress: Iterator[int]
    ) -> None:
        self.settings, self.graph, self.labels = settings, graph, labels
        self.progress = progress
        self.tables: dict[str, Tables] = {}
        self.refused: dict[str, str] = {}

    def __call__(self, name: str, layer: nn.Module, before: Tensor, after: Tensor) -> None:
        next(self.progress, None)
        settings = self.settings
        inputs, units = input_maps(layer, before, self.graph.ins[name].cpu())
        outputs = channel_maps(layer, after)
        reason = settings.columns.refusal(inputs, outputs)
        if reason is not None:
            self.refused[name] = reason
            return
        outputs = settings.responses(outputs)
        tables = compute_tables(settings.columns, inputs, outputs, self.labels, settings.memory)
        if not bool(tables.energy.isfinite().all() & tables.cross.isfinite().all()):
            raise ConfigError(
                f"what enters or leaves {name} is not finite; look for nan or inf in the weights "
                "of the source model"
            )
        self.tables[name] = replace(tables, input_units=units)


def _progress(count: int) -> Generator[int, None, None]:
    """Show progress, one step at each `next`."""
    yield from track(range(count), "similarity", count)
