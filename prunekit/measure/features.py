"""What a network says of images inside: the numbers at one layer, for a balanced choice of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.errors import ConfigError, one_of
from prunekit.modes import evaluating

if TYPE_CHECKING:
    from prunekit.data import Data

_BATCH = 100


@dataclass(frozen=True, eq=False)
class Features:
    """`values` (images, features), float, and `labels` (images,), long; both on the CPU.

    `layer` says where they were read, in words.
    """

    values: Tensor
    labels: Tensor
    layer: str


def features_of(
    model: nn.Module, data: Data, count: int, layer: str | None = None, device: str = "cpu"
) -> Features:
    """Features of at most `count` test images, every class as often as the set allows.

    They are what enters the last linear layer, or what the module named `layer` puts out at its
    last call, flattened. Evaluation mode; the images are the same at every call. ConfigError where
    there is no such layer, or none that gives numbers for every image.
    """
    probe = _Probe(model, layer)
    values, labels = torch.empty(0), torch.empty(0, dtype=torch.long)
    total = -(-data.test.size // _BATCH)
    with evaluating(model), torch.no_grad(), probe.listening():
        for x, y in track(data.test.sample(data.test.size, _BATCH), "features", total):
            model(x.to(device))
            found = probe.read(len(x))
            values = torch.cat([values, found]) if len(values) else found
            labels = torch.cat([labels, y.cpu()])
            kept = balanced(labels, count)
            values, labels = values[kept], labels[kept]
            if _settled(labels, count, data.classes):
                break
    return Features(values, labels, probe.place)


def balanced(labels: Tensor, count: int) -> Tensor:
    """The indices, in order, of at most `count` examples: the first of every class, then the second
    ones, and so on until the places are taken.
    """
    turn = torch.empty_like(labels)
    for label in labels.unique():
        members = (labels == label).nonzero().flatten()
        turn[members] = torch.arange(len(members))
    return turn.argsort(stable=True)[:count].sort().values


def _settled(labels: Tensor, count: int, classes: int) -> bool:
    """Whether no later image can make the choice more balanced."""
    sizes = labels.bincount(minlength=classes)
    return len(labels) == count and int(sizes.max() - sizes.min()) <= 1


class _Probe:
    """Remembers what passed the layer last; `place` says in words which layer that is."""

    def __init__(self, model: nn.Module, layer: str | None) -> None:
        modules = {name: module for name, module in model.named_modules() if name}
        if layer is not None and layer not in modules:
            raise ConfigError(
                f"features.layer={layer!r} is no layer of the network; {one_of(layer, modules)}"
            )
        self.layer = layer
        self._watched = (
            {name: module for name, module in modules.items() if isinstance(module, nn.Linear)}
            if layer is None
            else {layer: modules[layer]}
        )
        self._met: tuple[str, object] | None = None

    @property
    def place(self) -> str:
        """`input of fc`, or `output of layer3`."""
        name = self.layer or (self._met[0] if self._met else "")
        return f"output of {name}" if self.layer else f"input of {name}"

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside it, what passes is remembered."""
        handles = [
            module.register_forward_pre_hook(self._before(name))
            if self.layer is None
            else module.register_forward_hook(self._after(name))
            for name, module in self._watched.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def read(self, images: int) -> Tensor:
        """A row of numbers for each image of the batch that passed last."""
        if self._met is None:
            raise ConfigError(
                f"features.layer={self.layer} is never called by the network; name another layer"
                if self.layer
                else "the network calls no linear layer, whose input would be the features; name "
                "a layer whose output to take by features.layer=..."
            )
        value = self._met[1]
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != images:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"the {self.place} is {shape} for {images} images, not numbers for each of them; "
                "name another layer by features.layer=..."
            )
        return value.flatten(1).float().cpu()

    def _before(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[object, ...]) -> None:
            self._met = (name, inputs[0])

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            # a copy: what comes next may work in place
            self._met = (name, out.clone() if isinstance(out, Tensor) else out)

        return hook
