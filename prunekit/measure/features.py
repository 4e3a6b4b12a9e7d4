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
    """Features of images: `values` (images, features), float, and `labels` (images,), long.

    Both are on the CPU. `layer` describes where they were read.
    """

    values: Tensor
    labels: Tensor
    layer: str


def features_of(
    model: nn.Module, data: Data, count: int, layer: str | None = None, device: str = "cpu"
) -> Features:
    """Read the features of at most `count` test images, with classes as balanced as possible.

    Features are the flattened input of the last linear layer, or the output of the module named
    `layer` at its last call. The model runs in evaluation mode, on the same images at every call.
    Raises ConfigError where there is no such layer, or none with a value for every image.
    """
    probe, values, labels = _Probe(model, layer), [], []
    indices = balanced_indices(data.test.labels, count, seed=0)
    batches, total = data.test.pick(indices, _BATCH), -(-len(indices) // _BATCH)
    with evaluating_unchanged(model), torch.no_grad(), probe.attached():
        for x, y in track(batches, "features", total):
            model(x.to(device))
            values.append(probe.read(len(x)))
            labels.append(y.cpu())
    return Features(torch.cat(values), torch.cat(labels), probe.location)


class _Probe:
    """Store the last value at the layer, or at the linear layer that was called last."""

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
        self._last: tuple[str, object] | None = None

    @property
    def location(self) -> str:
        """A description such as `input of fc` or `output of layer3`."""
        name = self.layer or (self._last[0] if self._last else "")
        return f"output of {name}" if self.layer else f"input of {name}"

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Store values while the context is active."""
        handles = [
            module.register_forward_pre_hook(self._input_hook(name), with_kwargs=True)
            if self.layer is None
            else module.register_forward_hook(self._output_hook(name))
            for name, module in self._watched.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def read(self, images: int) -> Tensor:
        """Return a vector for each image of the last batch, as (images, features)."""
        if self._last is None:
            raise ConfigError(
                f"features.layer={self.layer} is never called by the network; name another layer"
                if self.layer
                else "the network calls no linear layer, whose input would be the features; name "
                "a layer whose output to take by features.layer=..."
            )
        value = self._last[1]
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != images:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                f"the {self.location} is {shape} for {images} images, not numbers for each of "
                "them; name another layer by features.layer=..."
            )
        return value.flatten(1).float().cpu()

    def _input_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[object, ...], kwargs: Any) -> None:
            self._last = (name, input_of(args, kwargs))

        return hook

    def _output_hook(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, out: object) -> None:
            # a copy, since the next layer may work in place
            self._last = (name, out.clone() if isinstance(out, Tensor) else out)

        return hook


_LARGEST_SEED = 2**32 - 1  # of numpy's random states


@dataclass(frozen=True)
class TSNE(Checked):
    """Settings of t-SNE on features (van der Maaten & Hinton 2008; scikit-learn).

    `layer` is the module whose output is embedded; None takes the input of the last linear layer.
    At most `images` test images with balanced classes are used. `perplexity` is about the number of
    neighbours of every image. t-SNE runs in one thread, so that a seed always gives the same
    points.
    """

    layer: Annotated[
        Text | None, "layer whose output to embed; null: the input of the last linear layer"
    ] = None
    images: Annotated[int, Range(at_least=2), "number of test images, with balanced classes"] = 1000
    perplexity: Annotated[Positive, "about the number of neighbours of every image"] = 30
    seed: Annotated[int, Range(at_least=0, at_most=_LARGEST_SEED), "seed of t-SNE"] = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check(self.images)

    def check(self, images: int) -> None:
        """Raise ConfigError unless there are enough images for the perplexity."""
        if self.perplexity >= images:
            raise ConfigError(
                f"perplexity={self.perplexity} must be below the number of images, "
                f"{images}; lower it, or raise images or the size of the test set"
            )

    def embed(self, values: Tensor) -> np.ndarray:
        """Return points (images, 2), float32, for features (images, features).

        Raises ConfigError where there are too few images, or values that are not finite.
        """
        from sklearn.manifold import TSNE as Fit
        from threadpoolctl import threadpool_limits

        self.check(len(values))
        if not bool(values.isfinite().all()):
            raise ConfigError(
                "the features are not finite; look for nan or inf in the weights of the source "
                "model"
            )
        # PCA can initialise the points only if at least two features vary
        varying = int((values != values[0]).any(dim=0).sum())
        fit = Fit(
            perplexity=self.perplexity,
            init="pca" if varying >= 2 else "random",
            learning_rate="auto",
            random_state=self.seed,
        )
        with threadpool_limits(limits=1):
            return fit.fit_transform(values.numpy())


def silhouette(points: Tensor | np.ndarray, labels: Tensor) -> float | None:
    """Return the silhouette of the classes, from -1 to 1 (Rousseeuw 1987; Euclidean distances).

    Returns None where there is one class, or no class of two points.
    """
    from sklearn.metrics import silhouette_score

    if not 2 <= len(labels.unique()) < len(labels):
        return None
    return float(silhouette_score(points, labels.numpy()))
