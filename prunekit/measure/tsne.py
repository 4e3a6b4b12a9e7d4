"""Features of images as points in the plane: t-SNE, and how far classes are apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from torch import Tensor

from prunekit.errors import ConfigError
from prunekit.schema import Checked, Positive, Range, Text

if TYPE_CHECKING:
    import numpy as np

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
