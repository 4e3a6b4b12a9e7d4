"""What criteria read at ReLUs: units are followed from the layers that make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from prunekit.criteria.base import Scores, seen_groups
from prunekit.graph.select import ChannelSelection
from prunekit.modes import consulting

if TYPE_CHECKING:
    from prunekit.graph import ChannelGraph

# of a ReLU's output (examples, channels, ...): a sum per channel, and over how many things it is
Count = Callable[[Tensor], tuple[Tensor, float]]

_NO_RELU = "meets a ReLU on all of its channels; use for instance criterion=taylor or l1_norm"
_RELUS = frozenset({"relu", "relu_", "relu6"})
_KEEP_CHANNELS = _RELUS | {
    "hardtanh",
    *("add", "add_", "sub", "sub_", "mul", "mul_", "div", "div_"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "clone", "contiguous"),
    *(f"{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
    *(f"adaptive_{kind}_pool{n}d" for kind in ("max", "avg") for n in (1, 2, 3)),
}


def relu_means(
    model: nn.Module, graph: ChannelGraph, batches: Iterable[Tensor], count: Count
) -> Scores:
    """The mean of what `count` sees of every unit at ReLUs, in evaluation mode.

    ReLUs are caught whether they are modules, functions or methods; a unit that meets several has
    the mean over all. Groups with a unit that meets none have no score; ConfigError if no group
    has one.
    """
    met = _AtReLUs(graph.count, count)
    with ExitStack() as stack, torch.no_grad():
        stack.enter_context(consulting(model))
        stack.enter_context(_labelled(model, graph, met.labels))
        for x in batches:
            with met:
                model(x)
    return seen_groups(graph, met.total / met.seen.clamp_min(1), met.seen, _NO_RELU)


class _AtReLUs(TorchFunctionMode):
    """Adds up what `count` says of ReLU outputs, per unit, while it follows channels.

    `labels` says which units the channels of a tensor are: hooks set it on what layers return,
    and this mode hands it on through functions that keep channels in place.
    """

    def __init__(self, units: int, count: Count) -> None:
        super().__init__()
        self.labels: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self.count = count
        self.total = torch.zeros(units, dtype=torch.float64)
        self.seen = torch.zeros(units, dtype=torch.float64)

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
                    self._add(out, units)
        return out

    def _units_of(self, inputs: tuple[Any, ...], out: Tensor) -> Tensor | None:
        for value in inputs:
            if isinstance(value, Tensor) and value in self.labels:
                units = self.labels[value]
                if out.dim() > 1 and out.shape[1] == len(units):
                    return units
        return None

    def _add(self, out: Tensor, units: Tensor) -> None:
        found, things = self.count(out)
        self.total.index_add_(0, units, found.double().cpu())
        self.seen.index_add_(0, units, torch.full((len(units),), things).double())


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
