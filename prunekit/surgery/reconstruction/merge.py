"""Merge removed channels into kept ones, from weights alone.

Model folding (Wang et al., ICLR 2025) clusters the filters of every layer with the norm behind them
folded in. One channel takes the place of each cluster: its filter is their mean, and what read any
of them reads it. A mean varies less than its members where these are not equal. By how much is
estimated from the angles between filters, and the norm behind makes up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.graph import ChannelGraph
from prunekit.graph.dataflow import followers
from prunekit.graph.layers import (
    TRANSPOSED,
    WEIGHTED_LAYERS,
    is_batch_norm,
    is_weighted,
    layer_named,
    with_shared_parameters,
)
from prunekit.schema import Count
from prunekit.surgery.layer_hooks import dense_readers
from prunekit.surgery.reconstruction.base import RECONSTRUCTIONS, Reconstruction, Refitted, Sample

_LEAST_SPREAD = 1e-3  # of a mean, relative to its members
Places = dict[int, list[int]]  # the channels of every unit in one layer, in order


@dataclass(frozen=True)
class Merged(Refitted):
    """The result of merging: how many removed units joined others, and in how many clusters."""

    units: int = 0
    clusters: int = 0

    def __str__(self) -> str:
        if not self.units:
            return "nothing to merge: no removed unit has a kept one of its kind"
        return (
            f"{self.units} removed units merged in {self.clusters} clusters, from weights alone; "
            f"{len(self.norms)} norms make up for the spread that is lost"
        )


@RECONSTRUCTIONS.register("merge")
@dataclass(frozen=True)
class Merge(Reconstruction):
    """Merges removed channels into kept ones that are like them, without any data."""

    needs_images: ClassVar[bool] = False
    steps: Annotated[Count, "largest number of steps of k-means, which starts at kept units"] = 20

    def apply(
        self,
        dense: nn.Module,
        narrow: nn.Module,
        graph: ChannelGraph,
        removed: Tensor,
        sample: Sample | None,
    ) -> Refitted:
        """Merge the removed units whose channels are in the same layers as those of a kept one.

        Channels that are equal in all of their parameters merge exactly.
        """
        networks = _Networks(dense, narrow, graph, removed.cpu())
        with torch.no_grad():
            clusters = _Clusters.of(networks, self.steps)
            rewritten = [_rewrite(networks, clusters, name) for name in networks.layers]
        norms = tuple(norm for norm in rewritten if norm is not None)
        joined = int((clusters.slot != torch.arange(graph.count))[networks.removed].sum())
        alone = int(networks.removed.sum()) - joined
        note = f"{alone} removed units have no kept one of their kind, and merged with none"
        notes = (note,) if alone else ()
        return Merged((), (), norms, notes, units=joined, clusters=clusters.count)


class _Networks:
    """Both networks, and the layers of the narrow one that have units."""

    def __init__(
        self, dense: nn.Module, narrow: nn.Module, graph: ChannelGraph, removed: Tensor
    ) -> None:
        self.narrow, self.graph, self.removed = narrow, graph, removed
        left = {*dict(narrow.named_modules()), *graph.functional}
        self.dense: dict[str, Any] = {
            name: layer_named(dense, name) for name in graph.ins if name in left
        }
        self._tied = with_shared_parameters(dense)
        self.layers = [name for name, layer in self.dense.items() if self._has_weights(name, layer)]
        self.readers = {*dense_readers(dense, graph)}
        self._norm_of = followers(dense, graph.recordings)
        self.ins = {name: _places(graph.ins[name]) for name in self.dense}
        self.outs = {name: _places(graph.outs[name]) for name in self.dense}

    def _has_weights(self, name: str, layer: nn.Module) -> bool:
        known = isinstance(layer, WEIGHTED_LAYERS) and "weight" in layer._parameters
        return known and name not in self.graph.functional and name not in self._tied

    def norm(self, name: str) -> str | None:
        """Return the batch norm that alone reads a layer."""
        return self._norm_of.get(name)

    def folded(self, name: str) -> _Folded:
        """Return the filters of a layer of the dense network with the norm behind it."""
        norm = self.norm(name)
        return _Folded.of(self.dense[name], None if norm is None else self.dense[norm])

    def other_norms(self) -> list[str]:
        """Return the batch norms with a scale that do not just follow one layer."""
        following = {*self._norm_of.values()}
        return [
            name
            for name, layer in self.dense.items()
            if is_batch_norm(layer) and name not in following
            if layer.weight is not None and layer.running_mean is not None
        ]

    def kept(self, units: Tensor) -> list[int]:
        """Return the places of the units that the narrow network has."""
        places: list[int] = (~self.removed[units]).nonzero().flatten().tolist()
        return places

    def kinds(self) -> dict[int, tuple[object, ...]]:
        """Return for every unit its layers, with the number and the blocks of its channels."""
        kinds: dict[int, list[object]] = {}
        for name, layer in self.dense.items():
            groups = getattr(layer, "groups", 1) if name in self.readers else 1
            unknown = is_weighted(layer) and name not in self.layers
            for side in (self.ins[name], self.outs[name]):
                size = sum(len(places) for places in side.values()) // groups
                for unit, places in side.items():
                    blocks = tuple(place // size for place in places)
                    alone = unit if unknown else None  # it merges with none
                    kinds.setdefault(unit, []).append((name, blocks, alone))
        return {unit: tuple(parts) for unit, parts in kinds.items() if unit}


def _places(units: Tensor) -> Places:
    places: Places = {}
    for place, unit in enumerate(units.tolist()):
        places.setdefault(unit, []).append(place)
    return places


@dataclass(frozen=True, eq=False)
class _Clusters:
    """The kept unit that stands for each unit id, and the number of clusters of several units."""

    slot: Tensor
    count: int

    @classmethod
    def of(cls, networks: _Networks, steps: int) -> _Clusters:
        """Cluster the units of every kind, beginning with the kept ones."""
        slot = torch.arange(networks.graph.count)
        kinds: dict[tuple[object, ...], list[int]] = {}
        for unit, kind in networks.kinds().items():
            kinds.setdefault(kind, []).append(unit)
        features = _features(networks)
        for units in kinds.values():
            members = torch.tensor(units)
            kept = (~networks.removed[members]).nonzero().flatten()
            if 0 < len(kept) < len(members) and units[0] in features:
                points = torch.stack([torch.cat(features[unit]) for unit in units])
                slot[members] = members[kept[k_means(points, kept, steps)]]
        return cls(slot, int((slot.bincount() > 1).sum()))

    def members(self, unit: int) -> list[int]:
        """Return the units that a kept unit stands for."""
        found: list[int] = (self.slot == unit).nonzero().flatten().tolist()
        return found


def k_means(points: Tensor, first: Tensor, steps: int) -> Tensor:
    """Return the cluster of every point, as a place in `first`, the points at which it starts."""
    centres = points[first]
    labels = torch.full((len(points),), -1)
    for _ in range(steps):
        distances = torch.cdist(points, centres, compute_mode="donot_use_mm_for_euclid_dist")
        nearest = distances.argmin(1)
        if torch.equal(nearest, labels):
            break
        labels = nearest
        sums = torch.zeros_like(centres).index_add_(0, labels, points)
        counts = labels.bincount(minlength=len(first))[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp_min(1), centres)
    return labels


def _features(networks: _Networks) -> Mapping[int, list[Tensor]]:
    """Return for every unit its filters and biases with norms folded in, over all layers."""
    features: dict[int, list[Tensor]] = {}

    def add(name: str, rows: Tensor) -> None:
        for unit, places in networks.outs[name].items():
            features.setdefault(unit, []).append(rows[places].flatten())

    for name in networks.layers:
        folded = networks.folded(name)
        add(name, torch.cat([folded.filters.flatten(1), folded.constant[:, None]], 1))
    for name in networks.other_norms():
        norm = networks.dense[name]
        shift = norm.bias.double().cpu() - _scale(norm) * norm.running_mean.double().cpu()
        add(name, torch.stack([_scale(norm), shift], 1))
    return features


@dataclass(frozen=True, eq=False)
class _Folded:
    """The filters (outs, ins, kernel) of a layer, times the scale of the norm behind it.

    `constant` is what filters of zeros put out behind the norm. `mean` and `variance` are those of
    what the folded filters alone put out, as the norm has them; `shift` is the mean behind it.
    """

    filters: Tensor
    scale: Tensor
    constant: Tensor
    mean: Tensor
    variance: Tensor
    shift: Tensor

    @classmethod
    def of(cls, layer: Any, norm: Any | None) -> _Folded:
        """Fold a batch norm with statistics, or none, into a layer."""
        filters = _filters(layer)
        zero = torch.zeros(len(filters), dtype=torch.float64)
        bias = zero if layer.bias is None else layer.bias.double().cpu()
        if norm is None:
            return cls(filters, zero + 1, bias, zero, zero, zero)
        scale = _scale(norm)
        shift = zero if norm.bias is None else norm.bias.double().cpu()
        mean = scale * (norm.running_mean.double().cpu() - bias)
        variance = scale.square() * norm.running_var.double().cpu()
        return cls(filters * scale[:, None, None], scale, shift - mean, mean, variance, shift)

    def spread_of_mean(self, places: list[int]) -> Tensor:
        """Return the variance of the mean of channels, whose angles are those of their filters."""
        deviations = self.variance[places].sqrt()
        directions = functional.normalize(self.filters[places].flatten(1))
        covariance = (directions @ directions.T) * deviations[:, None] * deviations
        return covariance.mean().maximum(_LEAST_SPREAD * self.variance[places].mean())


def _scale(norm: Any) -> Tensor:
    """Return what a batch norm multiplies channels by in evaluation mode."""
    deviation: Tensor = (norm.running_var.double() + norm.eps).sqrt()
    return (1 / deviation if norm.weight is None else norm.weight.double() / deviation).cpu()


def _filters(layer: Any) -> Tensor:
    """Return weights as (outs, ins, kernel), all inputs of the layer unless it is depthwise."""
    weight, groups = layer.weight.detach().double().cpu(), getattr(layer, "groups", 1)
    weight = weight.reshape(*weight.shape[:2], -1)
    if isinstance(layer, TRANSPOSED):
        blocks = [part.transpose(0, 1) for part in weight.chunk(groups)]
    else:
        blocks = [*weight.chunk(groups)]
    outs, ins, kernel = blocks[0].shape
    if ins == 1:
        return torch.cat(blocks)
    full: Tensor = weight.new_zeros(groups, outs, groups, ins, kernel)
    for number, block in enumerate(blocks):
        full[number, :, number] = block
    flat: Tensor = full.reshape(groups * outs, groups * ins, kernel)
    return flat


def _write_filters(layer: Any, filters: Tensor) -> None:
    """Write what `_filters` returns into a layer."""
    groups = getattr(layer, "groups", 1)
    if groups > 1 and filters.shape[1] > 1:
        outs, ins = len(filters) // groups, filters.shape[1] // groups
        split = filters.reshape(groups, outs, groups, ins, -1)
        filters = torch.cat([split[number, :, number] for number in range(groups)])
    if isinstance(layer, TRANSPOSED):
        filters = torch.cat([part.transpose(0, 1) for part in filters.chunk(groups)])
    layer.weight.copy_(filters.reshape(layer.weight.shape))


def _rewrite(networks: _Networks, clusters: _Clusters, name: str) -> str | None:
    """Write merged filters into a layer; return the norm that makes up for lost spread, if any."""
    layer = networks.dense[name]
    narrow: Any = networks.narrow.get_submodule(name)
    kept, joined = networks.kept(networks.graph.outs[name]), _joined(networks, clusters, name)
    columns = _columns(networks, clusters, name)
    reads = any(unit and clusters.slot[unit] != unit for unit in networks.ins[name])
    if not joined and not (columns is not None and reads):
        return None
    filters, folded = _filters(layer), networks.folded(name)
    if columns is not None:
        sources, targets, width = columns
        added = filters.new_zeros(len(filters), width, filters.shape[2])
        filters = added.index_add_(1, targets, filters[:, sources])
    rows, means = filters[kept], folded.scale[:, None, None] * filters
    bias = torch.zeros(len(filters)).double() if layer.bias is None else layer.bias.double().cpu()
    biases, norm = bias[kept], networks.norm(name)
    for row, places in joined.items():
        rows[row] = means[places].mean(0)
        biases[row] = bias[places].mean() if norm is None else 0.0
    _write_filters(narrow, rows)
    if narrow.bias is not None:
        narrow.bias.copy_(biases)
    if norm is not None:
        _write_norm(networks, norm, folded, kept, joined)
    return norm if joined else None


def _write_norm(
    networks: _Networks, name: str, folded: _Folded, kept: list[int], joined: Mapping[int, Any]
) -> None:
    """Give merged channels a norm that leaves them the spread that channels had before."""
    dense = networks.dense[name]
    norm: Any = networks.narrow.get_submodule(name)
    norm.running_mean.copy_(dense.running_mean[kept])  # without constants of removed channels
    for row, places in joined.items():
        before, after = folded.variance[places].mean(), folded.spread_of_mean(places)
        gain = (before / after).sqrt() if bool(after > 0) else torch.ones(()).double()
        norm.running_mean[row] = folded.mean[places].mean()
        if norm.weight is None:
            norm.running_var[row] = gain**-2 - norm.eps
            continue
        norm.running_var[row] = after
        norm.weight[row] = gain * (after + norm.eps).sqrt()
        norm.bias[row] = folded.shift[places].mean()


def _joined(networks: _Networks, clusters: _Clusters, name: str) -> dict[int, list[int]]:
    """Return for rows of the narrow layer the dense channels that it stands for, if it merges."""
    outs, joined = networks.outs[name], {}
    rows = {place: row for row, place in enumerate(networks.kept(networks.graph.outs[name]))}
    for unit, places in outs.items():
        members = [] if networks.removed[unit] or not unit else clusters.members(unit)
        if members in ([], [unit]):
            continue
        for number, place in enumerate(places):
            joined[rows[place]] = [outs[member][number] for member in members]
    return joined


def _columns(
    networks: _Networks, clusters: _Clusters, name: str
) -> tuple[Tensor, Tensor, int] | None:
    """Return which inputs of a layer are added to which of the narrow one, and how many it has.

    It is None for layers that compute nothing from several units, such as depthwise convolutions.
    """
    if name not in networks.readers:
        return None
    ins, kept = networks.ins[name], networks.kept(networks.graph.ins[name])
    column = {place: number for number, place in enumerate(kept)}
    sources, targets = [], []
    for unit, places in ins.items():
        goals = ins[int(clusters.slot[unit])]
        for place, goal in zip(places, goals, strict=True):
            if goal in column:  # a unit that merges with none is dropped
                sources.append(place)
                targets.append(column[goal])
    return torch.tensor(sources), torch.tensor(targets), len(kept)
