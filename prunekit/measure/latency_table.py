"""Latency of the network that would remain, from layers timed by themselves at a few widths."""

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
from prunekit.graph.layers import CONSUMERS, TRANSPOSED, channel_dim, layer_named, weighs
from prunekit.measure.cost import CostModel
from prunekit.measure.latency import LatencyTest

Track = Callable[[Iterable[Any], str, int], Iterator[Any]]
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
_BLOCK = 16  # kernels work on so many channels at once: in between they are no faster
_RUNS, _WARMUP = 7, 2  # for each entry of a table: the fastest, since others only add to it


@dataclass(frozen=True)
class LatencyComparison:
    """Milliseconds of a narrow network and of the dense one, timed in turns."""

    narrow_ms: float
    dense_ms: float

    @property
    def share(self) -> float:
        """What is left of the dense network's latency."""
        return self.narrow_ms / self.dense_ms


class TimedCost(CostModel):
    """A cost model that also predicts milliseconds per batch on a device.

    The first prediction times the whole network and, by itself, every convolution and linear layer
    at several numbers of inputs and outputs, on the shapes that reach it; layers that are alike
    once. In between, times are interpolated. What the layers do not explain (norms, activations,
    additions, overhead) shrinks with the entries of all activations. `timing` says how to measure,
    `track(items, label, total)` may show progress.
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
        self._found: dict[bytes, LatencyComparison] = {}

    def timed(self, timing: LatencyTest) -> TimedCost:
        """This one, which measures already."""
        return self

    def latency(self, drop: Tensor | None = None) -> float:
        """Milliseconds per batch while nothing else runs; without `drop` as measured."""
        layers, rest = self._scaled
        if drop is None:
            return layers * self._layers(None) + rest
        return layers * self._layers(drop) + rest * self._activations(drop)

    def compare(self, drop: Tensor, narrow: nn.Module) -> LatencyComparison:
        """Time the network that `drop` leaves in turns with the dense one."""
        times = self.timing.run({"dense": self.model, "narrow": narrow}, self._example, self.device)
        dense_ms = times["dense"].median_ms
        found = LatencyComparison(times["narrow"].over(times["dense"]) * dense_ms, dense_ms)
        self._found[_key(drop)] = found
        return found

    def compared(self, drop: Tensor) -> LatencyComparison | None:
        """What `compare` found for these units the last time; None if it was never asked."""
        return self._found.get(_key(drop))

    @cached_property
    def _scaled(self) -> tuple[float, float]:
        """A factor on the times of layers, and the milliseconds that they do not explain.

        Layers may take longer by themselves than together, on GPUs above all.
        """
        tables = self._layers(None)
        times = self.timing.run({"dense": self.model}, self._example, self.device)
        whole = times["dense"].fastest
        return min(1.0, whole / tables) if tables else 1.0, max(0.0, whole - tables)

    def _layers(self, drop: Tensor | None) -> float:
        tables = self._tables
        return sum(
            table.at(row["in"], row["out"]) * count
            for row in self.layer_table(drop)
            for table, count in tables.get(row["name"], ())
        )

    def _activations(self, drop: Tensor) -> float:
        """The share of activation entries that is left."""
        return 1 - float(self._entries[drop.cpu()].sum() / self._entries.sum())

    @cached_property
    def _entries(self) -> Tensor:
        """How many entries of activations belong to every unit id."""
        total = torch.zeros(self._count, dtype=torch.float64)
        for name, units in self._graph.outs.items():
            each = prod(self._graph.shapes[name]) / len(units)
            total.index_add_(0, units, torch.full((len(units),), each, dtype=torch.float64))
        return total

    @cached_property
    def _tables(self) -> dict[str, list[tuple[LayerTimes, int]]]:
        """For every layer a table for each shape of inputs, and how often it gets that."""
        met = _inputs(self.model, self.timing.inputs(self._example), self.device)
        calls = {
            (name, shape): self._layer(name, shape)
            for name, shapes in met.items()
            for shape in shapes
            if name in self._graph.ins
        }
        times = _times({*calls.values()}, self.timing, self.device, self._track)
        found: dict[str, list[tuple[LayerTimes, int]]] = {}
        for (name, shape), layer in calls.items():
            found.setdefault(name, []).append((times[layer], met[name][shape]))
        return found

    def _layer(self, name: str, shape: tuple[int, ...]) -> _Layer:
        free = [bool(side[name].any()) for side in (self._graph.ins, self._graph.outs)]
        return _Layer.of(layer_named(self.model, name), shape, *free)


@dataclass(frozen=True, eq=False)
class LatencySetup:
    """What a network is timed on: inputs like `example`, a device, and who shows progress."""

    example: Example
    device: str = "cpu"
    track: Track | None = None

    def cost(self, model: nn.Module, graph: ChannelGraph, timing: LatencyTest) -> TimedCost:
        """A cost model that measures its table of layers when first asked for milliseconds."""
        return TimedCost(model, graph, self.example, timing, self.device, self.track)


@dataclass(frozen=True)
class LayerTimes:
    """Milliseconds of one layer at some numbers of inputs (rows) and outputs (columns)."""

    ins: tuple[int, ...]
    outs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, cells: Mapping[tuple[int, int], float]) -> LayerTimes:
        """From milliseconds per pair; smoothed, so that they never fall when channels are added.

        A depthwise layer has as many outputs as inputs ask for: its rows are constant.
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
        """Interpolated in both directions; fewer channels than the fewest timed are no faster."""
        (i, a), (j, b) = _between(self.ins, ins), _between(self.outs, outs)
        low = self.ms[i][j] * (1 - b) + (self.ms[i][j + 1] * b if b else 0)
        if not a:
            return low
        high = self.ms[i + 1][j] * (1 - b) + (self.ms[i + 1][j + 1] * b if b else 0)
        return low * (1 - a) + high * a


def _between(grid: tuple[int, ...], value: int) -> tuple[int, float]:
    """The last point that is not above the value, and how far it is to the next one."""
    at = bisect_right(grid, value) - 1
    if at < 0 or at == len(grid) - 1:
        return max(at, 0), 0.0
    return at, (value - grid[at]) / (grid[at + 1] - grid[at])


def _inputs(model: nn.Module, x: Example, device: str) -> dict[str, Counter[tuple[int, ...]]]:
    """Layer -> the shapes of its inputs in one forward, and how often each."""
    twin = copy.deepcopy(model).to(device).eval()
    met: dict[str, Counter[tuple[int, ...]]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
            met.setdefault(name, Counter())[tuple(input_of(args, kwargs).shape)] += 1

        return hook

    for name, module in twin.named_modules():
        if weighs(module):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
    with torch.inference_mode():
        Arguments.of(x).to(device).call(twin)
    return met


@dataclass(frozen=True)
class _Layer:
    """What decides how long a layer takes, and the numbers of channels to time it at.

    Two layers that are alike are equal. `ins` and `outs` have an entry for each of the shares.
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
        cls, module: nn.Module, shape: tuple[int, ...], free_ins: bool, free_outs: bool
    ) -> _Layer:
        """A layer on inputs of this shape; a side that is not free has its full width alone."""
        dim = channel_dim(module, len(shape))
        inner = shape[dim]
        outer = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        groups = getattr(module, "groups", 1)
        depthwise = 1 < groups == inner
        ins = _grid(inner, lcm(_BLOCK, 1 if depthwise else groups), free_ins)
        outs = _grid(outer, lcm(_BLOCK, groups), free_outs)
        if depthwise:
            outs = tuple(outer // inner * width for width in ins)
        kind = next(cls for cls in CONSUMERS if isinstance(module, cls))
        return cls(kind, _settings(module, depthwise), shape, dim, depthwise, ins, outs)

    def cell(self, i: int, j: int) -> tuple[int, int]:
        """Numbers of inputs and outputs for two indices of shares."""
        return self.ins[i], self.outs[i if self.depthwise else j]

    def runner(self, ins: int, outs: int, device: str) -> Callable[[Any], Tensor]:
        """A call of the layer with these widths; what it computes does not matter."""
        groups = {"groups": ins} if self.depthwise else {}
        layer = skip_init(self.kind, ins, outs, **dict(self.settings), **groups)
        for parameter in layer.parameters():
            parameter.data.fill_(0.01)
        layer.to(device)
        x = torch.rand(*self.shape[: self.dim], ins, *self.shape[self.dim + 1 :], device=device)
        return lambda _: layer(x)


def _settings(module: nn.Module, depthwise: bool) -> tuple[tuple[str, Any], ...]:
    """The arguments that make such a layer, without its widths."""
    names: list[str] = []
    if not isinstance(module, nn.Linear):
        names = ["kernel_size", "stride", "padding", "dilation", "padding_mode"]
        names += ["output_padding"] * isinstance(module, TRANSPOSED) + ["groups"] * (not depthwise)
    return (("bias", module.bias is not None), *((name, getattr(module, name)) for name in names))


def _grid(width: int, step: int, free: bool) -> tuple[int, ...]:
    """A width for every share, rounded up to whole steps; only the full one if it stays."""
    shares = _SHARES if free else [1] * len(_SHARES)
    return tuple(min(width, -(-max(1, int(share * width)) // step) * step) for share in shares)


def _times(
    layers: Collection[_Layer], timing: LatencyTest, device: str, track: Track | None
) -> dict[_Layer, LayerTimes]:
    """Time all layers at all pairs of widths.

    Each pair of shares is a round in which layers run one after another, as in a network of such
    widths: weights come from as far away in memory as they would there.
    """
    short = replace(timing, runs=_RUNS, warmup=_WARMUP)
    found: dict[_Layer, dict[tuple[int, int], float]] = {layer: {} for layer in layers}
    pairs = [*product(range(len(_SHARES)), repeat=2)]
    pairs.sort(key=lambda pair: abs(pair[0] - pair[1]))  # a width that stays: with its likes
    for i, j in track(pairs, "timing layers", len(pairs)) if track else pairs:
        cells = {layer: layer.cell(i, j) for layer in layers}
        new = {layer: cell for layer, cell in cells.items() if cell not in found[layer]}
        runners = {layer: layer.runner(*cell, device) for layer, cell in new.items()}
        for layer, times in short.race(runners, torch.empty(0, device=device)).items():
            found[layer][new[layer]] = times.fastest
    return {layer: LayerTimes.of(cells) for layer, cells in found.items()}


def _key(drop: Tensor) -> bytes:
    return drop.cpu().numpy().tobytes()
