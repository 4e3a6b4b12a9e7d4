"""How much the outputs of a network change with those of its layers, to first order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph
from prunekit.modes import evaluating_unchanged
from prunekit.outputs import logits_of
from prunekit.surgery.layer_hooks import Change, changing_outputs
from prunekit.surgery.read_moments import Reading


def output_slopes(
    model: nn.Module, graph: ChannelGraph, layers: Collection[str], batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return the mean square slope of the logits for every output channel of some layers.

    It is the mean over examples of the squared change of all logits, summed, per change of the
    channel by the same amount at all positions: errors of a layer are mostly alike over positions,
    and such errors do not average out. The sum over logits is estimated by one random sign for
    each logit and example (Hutchinson). No labels are read.
    """
    totals: dict[str, Tensor] = {}
    generator, examples = torch.Generator().manual_seed(0), 0
    with evaluating_unchanged(model), torch.enable_grad():
        for batch in batches:
            probes: dict[str, list[tuple[Tensor, int]]] = defaultdict(list)
            changes = {name: _probing(probes[name]) for name in layers}
            with changing_outputs(model, graph, changes):
                logits = logits_of(model(batch))
            signs = torch.randint(0, 2, logits.shape, generator=generator) * 2 - 1
            projected = (logits * signs.to(logits)).sum()
            for name, square in _squares(projected, probes):
                totals[name] = totals.get(name, torch.zeros_like(square)) + square
            examples += len(batch)
    return {name: total / max(examples, 1) for name, total in totals.items()}


def _probing(probes: list[tuple[Tensor, int]]) -> Change:
    """Return a change of a layer's output that adds zeros, one per example and channel."""

    def add(out: Tensor, dim: int, bias: Tensor | None) -> Tensor:
        shape = [size if axis in (0, dim) else 1 for axis, size in enumerate(out.shape)]
        probes.append((out.new_zeros(shape, requires_grad=True), dim))
        return out + probes[-1][0]

    return add


def _squares(
    projected: Tensor, probes: Mapping[str, Sequence[tuple[Tensor, int]]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield layers with the squared slopes of their channels, summed over examples and calls."""
    flat = [(name, probe, dim) for name, calls in probes.items() for probe, dim in calls]
    if not flat or not projected.requires_grad:
        return
    slopes = torch.autograd.grad(
        projected, [probe for _, probe, _ in flat], allow_unused=True, materialize_grads=True
    )
    for (name, _, dim), slope in zip(flat, slopes, strict=True):
        channels = slope.double().cpu().movedim(dim, -1)
        yield name, channels.square().reshape(-1, channels.shape[-1]).sum(0)


def in_network_outputs(readings: Sequence[Reading], slopes: Mapping[str, Tensor]) -> list[Reading]:
    """Return readings whose errors are those of the network's outputs, to first order.

    Weights are scaled by the root of the slopes, and errors are not relative to anything.
    """
    weighted, groups = [], defaultdict[str, int](int)
    for reading in readings:
        outs, group = reading.weights.shape[1], groups[reading.layer]
        groups[reading.layer] += 1
        slope = slopes.get(reading.layer)
        if slope is not None:
            part = slope[group * outs : (group + 1) * outs].sqrt()
            weighted.append(replace(reading, weights=reading.weights * part, spread=1.0))
    return weighted
