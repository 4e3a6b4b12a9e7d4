"""Features of images at one layer of a network, and their t-SNE embedding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from torch import Tensor, nn

from prunekit.console import track
from prunekit.data.base import balanced_indices
from prunekit.errors import ConfigError, one_of
from prunekit.graph.arguments import input_of
from prunekit.modes import evaluating_unchanged
from prunekit.schema import Checked, Positive, Range, Text

if TYPE_CHECKING:
    from prunekit.data import Data
if TYPE_CHECKING:
    import numpy as np


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
    probe, values, labels = _Probe(model, layer), [], []
    chosen = balanced_indices(data.test.labels, count, seed=0)
    batches, total = data.test.pick(chosen, _BATCH), -(-len(chosen) // _BATCH)
    with evaluating_unchanged(model), torch.no_grad(), probe.listening():
        for x, y in track(batches, "features", total):
            model(x.to(device))
            values.append(probe.read(len(x)))
            labels.append(y.cpu())
    return Features(torch.cat(values), torch.cat(labels), probe.place)


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
            module.register_forward_pre_hook(self._before(name), with_kwargs=True)
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
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: Any) -> None:
            self._met = (name, input_of(args, kwargs))

        return hook

    def _after(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            # a copy: what comes next may work in place
            self._met = (name, out.clone() if isinstance(out, Tensor) else out)

        return hook


_LARGEST_SEED = 2**32 - 1  # of numpy's random states


@dataclass(frozen=True)
class TSNE(Checked):
    """Which features t-SNE places, and how (van der Maaten & Hinton 2008, scikit-learn).

    `layer` is the module whose output is taken; None: what enters the last linear layer. At most
    `images` test images, classes balanced. `perplexity` is about the number of neighbours that
    every image should have. One thread, so that the same seed gives the same points.
    """

    layer: Annotated[
        Text | None, "whose output to take; null: what enters the last linear layer"
    ] = None
    images: Annotated[int, Range(at_least=2), "test images, classes balanced"] = 1000
    perplexity: Annotated[Positive, "about how many neighbours every image should have"] = 30
    seed: Annotated[int, Range(at_least=0, at_most=_LARGEST_SEED), "seed of t-SNE"] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.images)

    def check(self, images: int) -> None:
        """Raise ConfigError unless so many images are enough for the perplexity."""
        if self.perplexity >= images:
            raise ConfigError(
                f"perplexity={self.perplexity} must be below the number of images, "
                f"{images}; lower it, or raise images or the size of the test set"
            )

    def place(self, values: Tensor) -> np.ndarray:
        """Points (images, 2), float32, for features (images, features).

        ConfigError where there are too few images, or numbers that are not finite.
        """
        from sklearn.manifold import TSNE as Fit
        from threadpoolctl import threadpool_limits

        self.check(len(values))
        if not bool(values.isfinite().all()):
            raise ConfigError(
                "the features are not finite; look for nan or inf in the weights of the source "
                "model"
            )
        # principal components to start from exist where at least two features vary
        varied = int((values != values[0]).any(dim=0).sum())
        fit = Fit(
            perplexity=self.perplexity,
            init="pca" if varied >= 2 else "random",
            learning_rate="auto",
            random_state=self.seed,
        )
        with threadpool_limits(limits=1):
            return fit.fit_transform(values.numpy())


def silhouette(points: Tensor | np.ndarray, labels: Tensor) -> float | None:
    """How well classes are apart, from -1 to 1 (Rousseeuw 1987), by Euclidean distances.

    None where there is one class, or no class of two points.
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(labels.unique()) < len(labels):
        return None
    return float(silhouette_score(points, labels.numpy()))
