"""Criteria from derivatives of the loss on training examples: Taylor and the Hessian diagonal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunekit.criteria.base import (
    CRITERIA,
    OnExamples,
    Scores,
    examples,
    require_data,
    scores_of_complete_groups,
    split_by_group,
    sum_by_unit,
)
from prunekit.criteria.removal_effects import RemovalEffects
from prunekit.criteria.weights import filter_rows
from prunekit.graph.layers import is_weighted, layer_named
from prunekit.modes import evaluating_unchanged
from prunekit.outputs import logits_of
from prunekit.schema import Count, Whole

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

_NO_CALL = "comes from layers that the forward calls; use for instance criterion=l1_norm"


@CRITERIA.register("taylor")
@dataclass(frozen=True)
class Taylor(OnExamples):
    """The first-order change of the loss when a unit is removed, as prunekit removes it.

    For each example it is the slope of the cross-entropy along the way from the network as it is to
    the one in which the unit puts out a constant, see `removal_effects`. Behind a batch norm this
    is the sum over positions of dC/dz * (z - shift), where z is the norm's output; without
    `absorb`, and without a norm or a bias, it is that of dC/dz * z as in Molchanov et al. 2017,
    eq. 8. Absolute values are averaged over `samples` training examples and scaled to Euclidean
    norm one within each group, so that groups compare. For a unit that several layers put out, the
    terms are added before the absolute value, since it vanishes in all of them at once.
    """

    comparable: ClassVar[bool] = True
    absorb: Annotated[
        bool | None,
        "if constants of removed units stay in the next layer; null: as in the cut",
    ] = None

    def for_cut(self, absorbs: bool) -> Taylor:
        """Return the criterion for what this cut removes, unless `absorb` says it."""
        return self if self.absorb is not None else replace(self, absorb=absorbs)

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Run over the examples twice, forward, and once backward; gradients are not changed.

        Groups with a unit whose layers the forward pass never calls (it may read their weights
        directly) have no score; raises ConfigError if no group has one.
        """
        effects = RemovalEffects(model, graph, self.absorb is not False)
        total, count = torch.zeros(graph.count, dtype=torch.float64), 0
        with evaluating_unchanged(model):
            for x, y in examples(require_data(data, "Taylor").train, self.samples, device):
                total += effects.of_batch(x, y).abs().sum(0)
                count += len(x)
        mean = total / max(count, 1)
        scores = scores_of_complete_groups(graph, mean, effects.gate_counts(), _NO_CALL)
        return {name: score / score.norm().clamp_min(1e-300) for name, score in scores.items()}


@CRITERIA.register("hessian")
@dataclass(frozen=True)
class HessianDiagonal(OnExamples):
    """Half the sum of h * w^2 over a unit's parameters w (LeCun et al. 1990, eq. 5).

    h is the diagonal of the Hessian of the mean cross-entropy over `samples` training examples, in
    evaluation mode. It is estimated as the mean of v * Hv over `probes` random sign vectors v per
    batch (Hutchinson). A unit's parameters are its filters, biases, norm scales and shifts, in all
    layers that have the unit as an output channel. Scores compare between layers as they are.
    """

    comparable: ClassVar[bool] = True
    probes: Annotated[Count, "random vectors per batch of 32; more of them estimate better"] = 1
    seed: Annotated[Whole, "seed of the vectors"] = 0

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Differentiate the loss twice; parameters that do not require gradients count too."""
        batches = examples(require_data(data, "HessianDiagonal").train, self.samples, device)
        generator = torch.Generator().manual_seed(self.seed)
        # other implementations of attention have no second derivative
        with evaluating_unchanged(model), sdpa_kernel(SDPBackend.MATH):
            saliency = self._saliency(model, batches, generator)
        return split_by_group(graph, sum_by_unit(graph, _sum_by_channel(model, graph, saliency)))

    def _saliency(
        self, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Return half of h * w^2 for every parameter, by name."""
        leaves = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
        weights = [*leaves.values()]
        totals, count = [torch.zeros_like(w, dtype=torch.float64) for w in weights], 0
        for x, y in batches:
            logits = logits_of(functional_call(model, leaves, x))
            loss = functional.cross_entropy(logits, y, reduction="sum")
            probes = (_signs(weights, generator) for _ in range(self.probes))
            for total, part in zip(totals, hessian_diagonal(loss, weights, probes), strict=True):
                total += part / self.probes
            count += len(x)
        pairs = zip(leaves.items(), totals, strict=True)
        return {name: 0.5 * h / max(count, 1) * w.detach().square() for (name, w), h in pairs}


def hessian_diagonal(
    loss: Tensor, weights: Sequence[Tensor], probes: Iterable[Sequence[Tensor]]
) -> list[Tensor]:
    """Return the sum of v * Hv over the `probes` v.

    The mean over random signs v estimates the diagonal of H. It is exact over the columns of a
    matrix of signs with orthogonal rows.
    """
    grads = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    totals = [torch.zeros_like(weight) for weight in weights]
    for signs in probes:
        inner = reduce(torch.add, ((g * v).sum() for g, v in zip(grads, signs, strict=True)))
        products = torch.autograd.grad(inner, weights, retain_graph=True, materialize_grads=True)
        for total, v, product in zip(totals, signs, products, strict=True):
            total += v * product
    return totals


def _signs(weights: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    return [
        torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
        for weight in weights
    ]


def _sum_by_channel(
    model: nn.Module, graph: ChannelGraph, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Sum the values of each layer's parameters per output channel; shared ones count once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    sums: dict[str, Tensor] = {}
    for layer in graph.outs:
        module, width = layer_named(model, layer), len(graph.outs[layer])
        own = [names.pop(id(p)) for p in module.parameters() if id(p) in names]
        matrices = [_channel_rows(module, values[name]) for name in own]
        parts = [rows.sum(1) for rows in matrices if len(rows) == width]
        if parts:
            sums[layer] = torch.stack(parts).sum(0)
    return sums


def _channel_rows(module: nn.Module, value: Tensor) -> Tensor:
    """Return one row per output channel of values shaped like the weights, a bias or a scale."""
    if is_weighted(module) and value.shape == module.weight.shape:
        return filter_rows(module, value).double()
    return value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
