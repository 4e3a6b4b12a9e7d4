"""Criteria that run training examples through the network: APoZ and Taylor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from prunekit.criteria.base import CRITERIA, Criterion, Scores, seen_groups, unit_sums
from prunekit.criteria.relu_outputs import relu_means
from prunekit.errors import ConfigError
from prunekit.modes import consulting
from prunekit.schema import Count

if TYPE_CHECKING:
    from prunekit.data import Batches, Data
    from prunekit.graph import ChannelGraph

_BATCH = 32  # the result does not depend on it
_NO_CALL = "comes from layers that the forward calls; use for instance criterion=l1_norm"


Samples = Annotated[Count, "training examples that are read, not augmented"]


@dataclass(frozen=True)
class OnExamples(Criterion):
    """A criterion that reads `samples` training examples, not augmented."""

    samples: Samples = 1000


@CRITERIA.register("apoz")
@dataclass(frozen=True)
class APoZ(OnExamples):
    """The share of a unit's activations that are not zero after ReLU (Hu et al. 2016).

    APoZ itself is the share of zeros; the score is one minus it. Measured before pooling on
    `samples` training examples, not augmented, in evaluation mode. ReLUs are caught whether
    they are modules, functions or methods; a unit that meets several counts them all.
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Groups with a unit that meets no ReLU have no score; ConfigError if none has."""
        batches = examples(training_data(data, "APoZ").train, self.samples, device)
        return relu_means(model, graph, (x for x, _ in batches), _nonzero)


def _nonzero(out: Tensor) -> tuple[Tensor, float]:
    """How many activations of every channel are not zero, and out of how many."""
    return (out != 0).transpose(0, 1).flatten(1).sum(1), out.numel() / out.shape[1]


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
            stack.enter_context(consulting(model))
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


def examples(
    batches: Batches, samples: int, device: str, batch: int = _BATCH
) -> Iterator[tuple[Tensor, Tensor]]:
    """A fixed random mixture of `samples` examples, not augmented, on `device`."""
    for x, y in batches.sample(samples, batch):
        yield x.to(device), y.to(device)


def training_data(data: Data | None, criterion: str) -> Data:
    """The data that a criterion asked for; ConfigError when there is none."""
    if data is None:
        raise ConfigError(f"{criterion} scores units on training examples; give it a data set")
    return data
