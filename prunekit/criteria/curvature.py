"""The second-order change of the loss when a unit goes, from the diagonal of the Hessian."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from prunekit.criteria.activations import OnExamples, examples, training_data
from prunekit.criteria.base import CRITERIA, Scores, by_group, unit_sums
from prunekit.criteria.weights import filter_rows
from prunekit.graph.layers import layer_named, weighs
from prunekit.modes import evaluating_unchanged
from prunekit.schema import Count, Whole

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


@CRITERIA.register("hessian")
@dataclass(frozen=True)
class HessianDiagonal(OnExamples):
    """Half the sum of h * w^2 over a unit's parameters w (LeCun et al. 1990, eq. 5).

    h is the diagonal of the Hessian of the mean cross-entropy over `samples` training examples, in
    evaluation mode, estimated by `probes` random sign vectors v per batch as the mean of v * Hv
    (Hutchinson). A unit's parameters are those along the output channels of every layer that
    carries it: filters, biases, norm scales and shifts. Scores compare between layers as they are.
    """

    comparable: ClassVar[bool] = True
    probes: Annotated[Count, "random vectors per batch of 32; more of them estimate better"] = 1
    seed: Annotated[Whole, "seed of the vectors"] = 0

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Twice differentiates the network; frozen parameters count like all others."""
        batches = examples(training_data(data, "HessianDiagonal").train, self.samples, device)
        source = torch.Generator().manual_seed(self.seed)
        with (
            evaluating_unchanged(model),
            sdpa_kernel(SDPBackend.MATH),
        ):  # others derive once
            saliency = self._saliency(model, batches, source)
        return by_group(graph, unit_sums(graph, _per_channel(model, graph, saliency)))

    def _saliency(
        self, model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], source: torch.Generator
    ) -> dict[str, Tensor]:
        """Half of h * w^2 for every parameter, by name."""
        leaves = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
        weights = [*leaves.values()]
        total, count = [torch.zeros_like(w, dtype=torch.float64) for w in weights], 0
        for x, y in batches:
            loss = functional.cross_entropy(functional_call(model, leaves, x), y, reduction="sum")
            probes = (_signs(weights, source) for _ in range(self.probes))
            for sum_, part in zip(total, hessian_diagonal(loss, weights, probes), strict=True):
                sum_ += part / self.probes
            count += len(x)
        pairs = zip(leaves.items(), total, strict=True)
        return {name: 0.5 * h / max(count, 1) * w.detach().square() for (name, w), h in pairs}


def hessian_diagonal(
    loss: Tensor, weights: Sequence[Tensor], probes: Iterable[Sequence[Tensor]]
) -> list[Tensor]:
    """The sum of v * Hv over the `probes` v; over random signs its mean is the diagonal of H.

    Over the columns of a matrix of signs with orthogonal rows the mean is exact.
    """
    grads = torch.autograd.grad(loss, weights, create_graph=True, materialize_grads=True)
    total = [torch.zeros_like(weight) for weight in weights]
    for signs in probes:
        along = sum((g * v).sum() for g, v in zip(grads, signs, strict=True))
        products = torch.autograd.grad(along, weights, retain_graph=True, materialize_grads=True)
        for sum_, v, product in zip(total, signs, products, strict=True):
            sum_ += v * product
    return total


def _signs(weights: Sequence[Tensor], source: torch.Generator) -> list[Tensor]:
    return [
        torch.randint(0, 2, weight.shape, generator=source).to(weight) * 2 - 1 for weight in weights
    ]


def _per_channel(
    model: nn.Module, graph: ChannelGraph, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The values of a layer's parameters added up per output channel; tied ones count once."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[str, Tensor] = {}
    for layer in graph.outs:
        module, width = layer_named(model, layer), len(graph.outs[layer])
        own = [names.pop(id(p)) for p in module.parameters() if id(p) in names]
        sums = [_rows(module, values[name]) for name in own]
        fitting = [rows.sum(1) for rows in sums if len(rows) == width]
        if fitting:
            found[layer] = torch.stack(fitting).sum(0)
    return found


def _rows(module: nn.Module, value: Tensor) -> Tensor:
    """One row per output channel, from numbers shaped like the weights, a bias or a scale."""
    if weighs(module) and value.shape == module.weight.shape:
        return filter_rows(module, value).double()
    return value.reshape(len(value), -1) if value.dim() else value.reshape(1, 1)
