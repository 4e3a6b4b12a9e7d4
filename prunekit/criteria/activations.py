"""Criteria that run training examples through the network: APoZ and Taylor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.checks import integer
from prunekit.criteria.base import Criterion, Scores, seen_groups, unit_sums
from prunekit.errors import ConfigError
from prunekit.graph.select import ChannelSelection
from prunekit.modes import evaluating

if TYPE_CHECKING:
    from prunekit.data import Batches, Data
    from prunekit.graph import ChannelGraph

_BATCH = 32  # the result does not depend on it
_NO_CALL = "comes from layers that the forward calls; use for instance criterion=l1_norm"
_NO_RELU = "meets a ReLU on all of its channels; use for instance criterion=taylor or l1_norm"
_RELUS = frozenset({"relu", "relu_", "relu6"})
_KEEP_CHANNELS = _RELUS | {
    "hardtanh",
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "clone", "contiguous"),
    *(f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
}


@dataclass(frozen=True)
class OnExamples(Criterion):
    """A criterion that reads `samples` training examples, not augmented."""

    samples: int = 1000

    def __post_init__(self) -> None:
        integer("samples", self.samples, at_least=1)


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
        seen = _NonZero(graph.count)
        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(evaluating(model))
            stack.enter_context(_labelled(model, graph, seen.labels))
            for x, _ in examples(training_data(data, "APoZ").train, self.samples, device):
                with seen:
                    model(x)
        return seen_groups(graph, seen.nonzero / seen.seen.clamp_min(1), seen.seen, _NO_RELU)


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
            stack.enter_context(evaluating(model))
            stack.enter_context(gates.placed(model, graph))
            for x, y in examples(training_data(data, "Taylor").train, self.samples, device):
                loss = functional.cross_entropy(model(x), y, reduction="sum")
                total += gates.effects(loss, graph, len(x)).abs().sum(0)
                count += len(x)
        scores = seen_groups(graph, total / max(count, 1), gates.reached(graph), _NO_CALL)
        return {name: score / score.norm().clamp_min(1e-300) for name, score in scores.items()}


class _NonZero(TorchFunctionMode):
    """Counts what ReLUs let through, per unit, while it follows channels from op to op.

    `labels` says which units the channels of a tensor are: hooks set it on what layers return,
    and this mode hands it on through functions that keep channels in place.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self.labels: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.nonzero = torch.zeros(count, dtype=torch.float64)
        self.seen = torch.zeros(count, dtype=torch.float64)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "fn":  # pooling with optional indices hides behind a dispatcher of this name
            name = "max_pool2d"
        if name in _KEEP_CHANNELS and isinstance(out, Tensor):
            units = self._units_of((*args, *kwargs.values()), out)
            if units is not None:
                self.labels[out] = units
                if name in _RELUS or _is_relu6(name, kwargs):
                    self._count(out, units)
        return out

    def _units_of(self, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
        for value in inputs:
            if isinstance(value, Tensor) and value in self.labels:
                units = self.labels[value]
                if out.dim() > 1 and out.shape[1] == len(units):
                    return units
        return None

    def _count(self, out: Tensor, units: Tensor) -> None:
        positive = (out != 0).transpose(0, 1).flatten(1).sum(1)
        self.nonzero.index_add_(0, units, positive.double().cpu())
        self.seen.index_add_(0, units, torch.full((len(units),), out.numel() / len(units)).double())


def _is_relu6(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a call is what nn.ReLU6 makes of itself, a hardtanh from 0 on."""
    return name == "hardtanh" and kwargs.get("min_val") == 0


@contextmanager
def _labelled(
    model: nn.Module, graph: ChannelGraph, labels: WeakTensorKeyDictionary
) -> Iterator[None]:
    """While inside, label what layers with parameters or buffers return.

    Modules without any, ReLU above all, may be called twice with different channels.
    """

    def note(units: Tensor) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, out: Tensor) -> None:
            labels[out] = units

        return hook

    with ExitStack() as stack:
        for name, units in graph.outs.items():
            module = model.get_submodule(name)
            if _makes(module):
                handle = module.register_forward_hook(note(units.cpu()))
                stack.callback(handle.remove)
        yield


def _makes(module: nn.Module) -> bool:
    """Whether it makes a tensor of its own; a channel selection may hand on what it got."""
    held = [*module.parameters(), *module.buffers()]
    return bool(held) and not isinstance(module, ChannelSelection)


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


def examples(batches: Batches, samples: int, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """A fixed random mixture of `samples` examples, not augmented, on `device`."""
    for x, y in batches.sample(samples, _BATCH):
        yield x.to(device), y.to(device)


def training_data(data: Data | None, criterion: str) -> Data:
    """The data that a criterion asked for; ConfigError when there is none."""
    if data is None:
        raise ConfigError(f"{criterion} scores units on training examples; give it a data set")
    return data
