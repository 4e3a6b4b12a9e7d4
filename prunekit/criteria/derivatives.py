"""Criteria that run training examples through the network: APoZ and Taylor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
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
    by_group,
    examples,
    seen_groups,
    training_data,
    unit_sums,
)
from prunekit.criteria.weights import filter_rows
from prunekit.graph.layers import layer_named, weighs
from prunekit.modes import evaluating_unchanged
from prunekit.schema import Count, Whole

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


_NO_CALL = "comes from layers that the forward calls; use for instance criterion=l1_norm"


@CRITERIA.register("taylor")
@dataclass(frozen=True)
class Taylor(OnExamples):
    """The first-order change of the loss when a unit goes (Molchanov et al. 2017, eq. 8).

    For each example: abs(mean over positions of dC/dz * z), z the output of the producing layer,
    C the cross-entropy; averaged over `samples` training examples and scaled to
    Euclidean norm one within each group, so that groups compare. Units made by several layers
    vanish in all of them at once, so their terms are added before the absolute value.
    """

    comparable: ClassVar[bool] = True

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """One pass over the examples; the weights' gradients stay as they are.

        Groups with a unit whose layers the forward never calls (it may read their weights itself)
        have no score; ConfigError if none has.
        """
        gates, total, count = _Gates(), torch.zeros(graph.count, dtype=torch.float64), 0
        with ExitStack() as stack, torch.enable_grad():
            stack.enter_context(evaluating_unchanged(model))
            stack.enter_context(gates.placed(model, graph))
            for x, y in examples(training_data(data, "Taylor").train, self.samples, device):
                loss = functional.cross_entropy(model(x), y, reduction="sum")
                total += gates.effects(loss, graph, len(x)).abs().sum(0)
                count += len(x)
        scores = seen_groups(graph, total / max(count, 1), gates.reached(graph), _NO_CALL)
        return {name: score / score.norm().clamp_min(1e-300) for name, score in scores.items()}


@dataclass(frozen=True, eq=False)
class _Gates:
    """Ones that multiply layer outputs: their gradients are sums of dC/dz * z over positions.

    A gate leaves the forward pass as it is, and unlike z it survives an in-place ReLU behind it.
    """

    met: list[tuple[str, Tensor, int]] = field(default_factory=list)
    called: set[str] = field(default_factory=set)

    @contextmanager
    def placed(self, model: nn.Module, graph: ChannelGraph) -> Iterator[None]:
        """While inside, every layer that makes units gets a gate at each call."""
        with ExitStack() as stack:
            for name in _makers(model, graph):
                handle = model.get_submodule(name).register_forward_hook(self._gate(name))
                stack.callback(handle.remove)
            yield

    def effects(self, loss: Tensor, graph: ChannelGraph, batch: int) -> Tensor:
        """Effects per example and unit id, (batch, graph.count); forgets the gates met so far."""
        grads = torch.autograd.grad(loss, [gate for _, gate, _ in self.met], allow_unused=True)
        total = torch.zeros(graph.count, batch, dtype=torch.float64)
        for (name, _, positions), grad in zip(self.met, grads, strict=True):
            if grad is not None:
                mean = grad.double().reshape(batch, -1).cpu() / positions
                total.index_add_(0, graph.outs[name].cpu(), mean.T)
        self.met.clear()
        return total.T

    def reached(self, graph: ChannelGraph) -> Tensor:
        """How many layers with a gate were called, per unit id."""
        ones = {name: torch.ones(len(graph.outs[name])) for name in self.called}
        return unit_sums(graph, ones)

    def _gate(self, name: str) -> Callable[..., Tensor]:
        def hook(module: nn.Module, inputs: object, out: Tensor) -> Tensor:
            channel = out.dim() - 1 if isinstance(module, nn.Linear) else 1
            shape = [n if axis in (0, channel) else 1 for axis, n in enumerate(out.shape)]
            gate = out.new_ones(shape, requires_grad=True)
            self.called.add(name)
            self.met.append((name, gate, out.numel() // gate.numel()))
            return out * gate

        return hook


def _makers(model: nn.Module, graph: ChannelGraph) -> list[str]:
    """The producers that make their units from others.

    A depthwise convolution only passes on the units it gets: its term would count them twice.
    """
    names = dict.fromkeys(name for group in graph.groups for name in group.producers)
    modules = {name: model.get_submodule(name) for name in names}
    return [n for n, m in modules.items() if not 1 < getattr(m, "groups", 1) == m.in_channels]


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
        ):  # the others derive only once
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
