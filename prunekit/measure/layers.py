"""Where the multiply-adds and the milliseconds of a network go, layer by layer."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example
from prunekit.measure.cost import CostModel
from prunekit.measure.latency import LatencyTest

_RUNS, _WARMUP, _SECONDS = 9, 2, 5.0  # a picture of shares needs no more


def layer_rows(
    models: Mapping[str, nn.Module], example: Example, timing: LatencyTest
) -> list[dict[str, Any]]:
    """One row a network and layer: network, layer, kind, in, out, macs, params, cpu_ms.

    Layers with channels and whatever else is a module without modules in it; those have no counts.
    Milliseconds are the fewest of several passes over the timed batch on the CPU, networks in
    turns, each layer by the clock around it: what a forward computes outside of modules is in none.
    """
    tables = {name: _counted(model, example) for name, model in models.items()}
    clocks = {name: _Clocks(model, tables[name]) for name, model in models.items()}
    brief = replace(
        timing,
        runs=min(timing.runs, _RUNS),
        warmup=min(timing.warmup, _WARMUP),
        seconds=min(timing.seconds, _SECONDS),
    )
    x = Arguments.of(timing.inputs(example))
    brief.race({name: clock.run for name, clock in clocks.items()}, x)
    return [
        {"network": name, **tables[name].get(layer, {"layer": layer, "kind": kind}), "cpu_ms": ms}
        for name, clock in clocks.items()
        for layer, kind, ms in clock.fastest()
    ]


def _counted(model: nn.Module, example: Example) -> dict[str, dict[str, Any]]:
    """Rows of counts by the name of the layer."""
    given = Arguments.of(example).to(next(model.parameters()).device)
    graph = ChannelGraph.trace(model, given)
    table = CostModel(model, graph).layer_table()
    return {row["name"]: {"layer": row.pop("name"), **row} for row in map(dict, table)}


class _Clocks:
    """A copy of a network on the CPU with a clock around each of its layers."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Any]) -> None:
        self._model = copy.deepcopy(model).cpu().eval()
        self._passes: list[dict[str, float]] = []
        self._kinds: dict[str, str] = {}
        for name, module in self._model.named_modules():
            leaf = name and not any(module.children())
            if name in layers or (leaf and not _inside(name, layers)):
                self._kinds[name] = type(module).__name__
                self._watch(name, module)

    def run(self, x: Arguments) -> None:
        """One pass, noted."""
        self._passes.append(defaultdict(float))
        x.call(self._model)

    def fastest(self) -> list[tuple[str, str, float]]:
        """Layers that were called, with their kind and milliseconds: others only add to them."""
        return [
            (name, self._kinds[name], round(min(one[name] for one in self._passes), 5))
            for name in self._passes[0]
        ]

    def _watch(self, name: str, module: nn.Module) -> None:
        began: list[float] = []

        def start(*_: Any) -> None:
            began.append(time.perf_counter())

        def stop(*_: Any) -> None:
            self._passes[-1][name] += (time.perf_counter() - began.pop()) * 1e3

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)


def _inside(name: str, layers: Mapping[str, Any]) -> bool:
    """Whether it is a part of one of the layers, whose clock counts it already."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in layers for depth in range(1, len(parts)))
