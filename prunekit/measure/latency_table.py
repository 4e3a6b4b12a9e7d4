"""Predicted latency of a narrow network, from layers that are timed alone at a few widths."""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import lcm, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example, input_of
from prunekit.graph.layers import (
    TRANSPOSED,
    WEIGHTED_LAYERS,
    channel_dim,
    is_weighted,
    layer_named,
    widths,
)
from prunekit.measure.cost import CostModel
from prunekit.measure.latency import LatencyTest

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
_BLOCK = 16  # kernels work on blocks of channels; widths in between are no faster
_RUNS, _WARMUP = 7, 2  # per entry of a table, which is the minimum over these runs


@dataclass(frozen=True)
class LatencyComparison:
    """Milliseconds of a narrow network and of the dense one, timed in turns."""

    narrow_ms: float
    dense_ms: float

    @property
    def share(self) -> float:
        """The ratio of the narrow network's latency to the dense one's."""
        return self.narrow_ms / self.dense_ms


class TimedCost(CostModel):
    """A cost model that also predicts milliseconds per batch on a device.

    The first prediction times the whole network and, alone, every convolution and linear layer at
    several numbers of inputs and outputs, on the shapes that reach it; equal layers are timed once.
    Times are interpolated in between. The remaining time (norms, activations, additions, overhead)
    is scaled with the number of entries of all activations. `timing` holds the settings of the
    measurement, and `track(items, label, total)` may show progress.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        example: Example,
        timing: LatencyTest,
        device: str = "cpu",
        track: Track | None = None,
    ) -> None:
        super().__init__(model, graph)
        self.model, self.timing, self.device = model, timing, device
        self._graph, self._example, self._track = graph, example, track
        self._comparisons: dict[bytes, LatencyComparison] = {}

    def timed(self, timing: LatencyTest) -> TimedCost:
        """Return this model, which measures already."""
        return self

    def latency(self, removed: Tensor | None = None) -> float:
        """Predict milliseconds per batch on an idle machine; None gives the measured dense time."""
        layers, rest = self._scaled
        if removed is None:
            return layers * self._layers(None) + rest
        return layers * self._layers(removed) + rest * self._activations(removed)

    def compare(self, removed: Tensor, narrow: nn.Module) -> LatencyComparison:
        """Time the network without the removed units in turns with the dense one."""
        times = self.timing.run({"dense": self.model, "narrow": narrow}, self._example, self.device)
        dense_ms = times["dense"].median_ms
        narrow_ms = times["narrow"].ratio_to(times["dense"]) * dense_ms
        comparison = LatencyComparison(narrow_ms, dense_ms)
        self._comparisons[_key(removed)] = comparison
        return comparison

    def last_comparison(self, removed: Tensor) -> LatencyComparison | None:
        """Return the last result of `compare` for these units, None if there is none."""
        return self._comparisons.get(_key(removed))

    @cached_property
    def _scaled(self) -> tuple[float, float]:
        """A factor on the times of layers, and the milliseconds that layers do not explain.

        The factor is below 1 where layers take longer alone than together, mostly on GPUs.
        """
        tables = self._layers(None)
        times = self.timing.run({"dense": self.model}, self._example, self.device)
        whole = times["dense"].fastest
        return min(1.0, whole / tables) if tables else 1.0, max(0.0, whole - tables)

    def _layers(self, removed: Tensor | None) -> float:
        tables = self._tables
        return sum(
            table.at(record["in"], record["out"]) * count
            for record in self.layer_table(removed)
            for table, count in tables.get(record["name"], ())
        )

    def _activations(self, removed: Tensor) -> float:
        """Return the share of activation entries that remain."""
        return 1 - float(self._entries[removed.cpu()].sum() / self._entries.sum())

    @cached_property
    def _entries(self) -> Tensor:
        """The number of activation entries of every unit id."""
        total = torch.zeros(self._count, dtype=torch.float64)
        for name, units in self._graph.outs.items():
            entries = prod(self._graph.shapes[name]) / len(units)
            total.index_add_(0, units, torch.full((len(units),), entries, dtype=torch.float64))
        return total

    @cached_property
    def _tables(self) -> dict[str, list[tuple[LayerTimes, int]]]:
        """For every layer, a table for each input shape, and the number of calls with it."""
        shapes_of = _input_shapes(self.model, self.timing.inputs(self._example), self.device)
        calls = {
            (name, shape): self._layer(name, shape)
            for name, shapes in shapes_of.items()
            for shape in shapes
            if name in self._graph.ins
        }
        times = _time_layers({*calls.values()}, self.timing, self.device, self._track)
        tables: dict[str, list[tuple[LayerTimes, int]]] = {}
        for (name, shape), layer in calls.items():
            tables.setdefault(name, []).append((times[layer], shapes_of[name][shape]))
        return tables

    def _layer(self, name: str, shape: tuple[int, ...]) -> _Layer:
        narrow = [bool(side[name].any()) for side in (self._graph.ins, self._graph.outs)]
        return _Layer.of(layer_named(self.model, name), shape, *narrow)


@dataclass(frozen=True, eq=False)
class LatencySetup:
    """The inputs and device that networks are timed on, and a function that shows progress."""

    example: Example
    device: str = "cpu"
    track: Track | None = None

    def cost(self, model: nn.Module, graph: ChannelGraph, timing: LatencyTest) -> TimedCost:
        """Return a cost model that times layers when milliseconds are first requested."""
        return TimedCost(model, graph, self.example, timing, self.device, self.track)


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds `ms[i][j]` of one layer with `ins[i]` inputs and `outs[j]` outputs."""

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, cells: Mapping[tuple[int, int], float]) -> LayerTimes:
        """Build the table from milliseconds per pair (inputs, outputs).

        Times are smoothed to be monotonic in both numbers. A depthwise layer's outputs are
        determined by its inputs, so that its table has one column.
        """
        ins, outs = (tuple(sorted({pair[side] for pair in cells})) for side in (0, 1))
        if len(cells) < len(ins) * len(outs):
            outs, cells = outs[-1:], {(pair[0], outs[-1]): ms for pair, ms in cells.items()}
        ms = torch.tensor([[cells[i, j] for j in outs] for i in ins], dtype=torch.float64)
        for dim in (0, 1):
            above = ms.cummax(dim).values
            below = ms.flip(dim).cummin(dim).values.flip(dim)
            ms = (above + below) / 2
        return cls(ins, outs, tuple(map(tuple, ms.tolist())))

    def at(self, ins: int, outs: int) -> float:
        """Interpolate in both directions; below the fewest timed channels, times are constant."""
        (i, a), (j, b) = _between(self.ins, ins), _between(self.outs, outs)
        low = self.ms[i][j] * (1 - b) + (self.ms[i][j + 1] * b if b else 0)
        if not a:
            return low
        high = self.ms[i + 1][j] * (1 - b) + (self.ms[i + 1][j + 1] * b if b else 0)
        return low * (1 - a) + high * a


def _between(grid: tuple[int, ...], value: int) -> tuple[int, float]:
    """Return the last index whose point is not above the value, and the fraction to the next."""
    index = bisect_right(grid, value) - 1
    if index < 0 or index == len(grid) - 1:
        return max(index, 0), 0.0
    return index, (value - grid[index]) / (grid[index + 1] - grid[index])


def _input_shapes(model: nn.Module, x: Example, device: str) -> dict[str, Counter[tuple[int, ...]]]:
    """Count, for every layer, the shapes of its inputs in one forward pass."""
    twin = copy.deepcopy(model).to(device).eval()
    shapes: dict[str, Counter[tuple[int, ...]]] = {}

    def counter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            shapes.setdefault(name, Counter())[tuple(input_of(args, kwargs).shape)] += 1

        return hook

    for name, module in twin.named_modules():
        if is_weighted(module):
            module.register_forward_pre_hook(counter(name), with_kwargs=True)
    with torch.inference_mode():
        Arguments.of(x).to(device).call(twin)
    return shapes


@dataclass(frozen=True)
class _Layer:
    """The settings that determine a layer's time, and the numbers of channels to time it at.

    Layers with the same settings compare equal. `ins` and `outs` have an entry for each share.
    """

    kind: type[nn.Module]
    settings: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]
    dim: int
    depthwise: bool
    ins: tuple[int, ...]
    outs: tuple[int, ...]

    @classmethod
    def of(
        cls, module: nn.Module, shape: tuple[int, ...], narrow_ins: bool, narrow_outs: bool
    ) -> _Layer:
        """Describe a layer on inputs of this shape; only sides that may be narrowed vary."""
        dim = channel_dim(module, len(shape))
        inner, outer = shape[dim], widths(module)[1]
        groups: int = getattr(module, "groups", 1)
        depthwise = 1 < groups == inner
        ins = _grid(inner, lcm(_BLOCK, 1 if depthwise else groups), narrow_ins)
        outs = _grid(outer, lcm(_BLOCK, groups), narrow_outs)
        if depthwise:
            outs = tuple(outer // inner * width for width in ins)
        kind = next(cls for cls in WEIGHTED_LAYERS if isinstance(module, cls))
        return cls(kind, _settings(module, depthwise), shape, dim, depthwise, ins, outs)

    def cell(self, i: int, j: int) -> tuple[int, int]:
        """Return the numbers of inputs and outputs for two indices of shares."""
        return self.ins[i], self.outs[i if self.depthwise else j]

    def runner(self, ins: int, outs: int, device: str) -> Callable[[Any], Tensor]:
        """Return a call of the layer with these widths and arbitrary weights."""
        groups = {"groups": ins} if self.depthwise else {}
        layer = skip_init(self.kind, ins, outs, **dict(self.settings), **groups)
        for parameter in layer.parameters():
            parameter.data.fill_(0.01)
        layer.to(device)
        x = torch.rand(*self.shape[: self.dim], ins, *self.shape[self.dim + 1 :], device=device)
        return lambda _: layer(x)


def _settings(module: nn.Module, depthwise: bool) -> tuple[tuple[str, Any], ...]:
    """Return the constructor arguments of a layer without its widths."""
    names: list[str] = []
    if not isinstance(module, nn.Linear):
        names = ["kernel_size", "stride", "padding", "dilation", "padding_mode"]
        names += ["output_padding"] * isinstance(module, TRANSPOSED) + ["groups"] * (not depthwise)
    return (("bias", module.bias is not None), *((name, getattr(module, name)) for name in names))


def _grid(width: int, step: int, narrow: bool) -> tuple[int, ...]:
    """Return a width for every share, rounded up to whole steps; always the full one if fixed."""
    shares = _SHARES if narrow else [1] * len(_SHARES)
    return tuple(min(width, -(-max(1, int(share * width)) // step) * step) for share in shares)


def _time_layers(
    layers: Collection[_Layer], timing: LatencyTest, device: str, track: Track | None
) -> dict[_Layer, LayerTimes]:
    """Time all layers at all pairs of widths.

    For each pair of shares, all layers run one after another, as in a network of these widths, so
    that caches hold as little of their weights as they would there.
    """
    short = replace(timing, runs=_RUNS, warmup=_WARMUP)
    tables: dict[_Layer, dict[tuple[int, int], float]] = {layer: {} for layer in layers}
    pairs = [*product(range(len(_SHARES)), repeat=2)]
    pairs.sort(key=lambda pair: abs(pair[0] - pair[1]))  # fixed widths are timed with similar ones
    for i, j in track(pairs, "timing layers", len(pairs)) if track else pairs:
        cells = {layer: layer.cell(i, j) for layer in layers}
        new = {layer: cell for layer, cell in cells.items() if cell not in tables[layer]}
        runners = {layer: layer.runner(*cell, device) for layer, cell in new.items()}
        for layer, times in short.time_callables(runners, torch.empty(0, device=device)).items():
            tables[layer][new[layer]] = times.fastest
    return {layer: LayerTimes.of(cells) for layer, cells in tables.items()}


def _key(removed: Tensor) -> bytes:
    return removed.cpu().numpy().tobytes()
