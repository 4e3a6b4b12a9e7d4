"""Confidence intervals for the difference between two methods, from paired results."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from prunekit.errors import ArtifactError

LEVEL = 0.95  # of the intervals, and of verdicts over a whole family of comparisons

Hits = Mapping[int, np.ndarray]
"""One boolean array for each seed: whether each test image was classified correctly."""


@dataclass(frozen=True)
class SeedVariance:
    """The variance of a method's accuracy between seeds, and the degrees of freedom behind it.

    What all methods gain or lose with a seed is not part of it. `freedom` is 0 where no method has
    two seeds in common with another one; then nothing is known about the variance.
    """

    variance: float
    freedom: int

    @classmethod
    def pooled(cls, methods: Iterable[Hits]) -> SeedVariance:
        """Estimate one variance for all methods, from what an additive fit to accuracies leaves.

        The fit has an effect per method and one per seed. Three seeds of one pair of methods leave
        2 degrees of freedom, of ten methods 18.
        """
        cells = [
            (method, seed, float(np.mean(right)))
            for method, hits in enumerate(methods)
            for seed, right in hits.items()
        ]
        if not cells:
            return cls(math.nan, 0)
        columns = [np.array(part) for part in zip(*cells, strict=True)]
        design = np.concatenate(
            [
                columns[0][:, None] == np.unique(columns[0]),
                columns[1][:, None] == np.unique(columns[1]),
            ],
            axis=1,
        ).astype(float)
        fit, _, rank, _ = np.linalg.lstsq(design, columns[2], rcond=None)
        freedom = len(cells) - int(rank)
        left = columns[2] - design @ fit
        return cls(float(left @ left) / freedom if freedom else math.nan, freedom)


@dataclass(frozen=True)
class Comparison:
    """The difference in error between two methods, in percentage points, with an interval.

    `p` is the probability of a difference this large between equal methods; `corrected` is that of
    any so unlikely difference in the family that the comparison belongs to (see `holm`).
    """

    difference: float
    low: float
    high: float
    p: float
    corrected: float
    seeds: int = 0

    @property
    def verdict(self) -> str:
        """The first method is "better" or "worse"; "undecided" if `corrected` is at least 5 %."""
        if not self.corrected < 1 - LEVEL:
            return "undecided"
        return "better" if self.difference < 0 else "worse"


def paired(
    first: Hits, second: Hits, spread: SeedVariance | None = None, *, level: float = LEVEL
) -> Comparison:
    """Compare two methods on the seeds that both were run with, and on the same test images.

    The variance of the difference is that between seeds, plus that between images, minus the part
    that both contain. `spread` is the variance between seeds, best pooled over all methods of a
    table; by default it is that of these two. The interval is that of Student's t with the degrees
    of freedom of both parts together (Welch and Satterthwaite). It is infinite where nothing is
    known about the variance between seeds, as for a single one. Raises ArtifactError if the arrays
    do not match.
    """
    from scipy.stats import t  # imported late: takes half a second

    common = [seed for seed in first if seed in second]
    lengths = {len(hits[seed]) for hits in (first, second) for seed in common}
    if len(lengths) != 1 or lengths == {0}:
        raise ArtifactError("a paired comparison needs the same seeds and test images twice")
    gaps = np.stack([second[s].astype(np.float64) - first[s].astype(np.float64) for s in common])
    spread = spread or SeedVariance.pooled([{s: h[s] for s in common} for h in (first, second)])
    difference = float(gaps.mean())
    if spread.freedom == 0 or gaps.shape[1] < 2:
        return Comparison(100 * difference, -math.inf, math.inf, 1.0, 1.0, len(common))
    error = math.sqrt(_variance(gaps, spread))
    half = float(t.ppf((1 + level) / 2, spread.freedom)) * error
    p = (
        float(2 * t.sf(abs(difference) / error, spread.freedom))
        if error
        else float(difference == 0)
    )
    low, high = difference - half, difference + half
    return Comparison(100 * difference, 100 * low, 100 * high, p, p, len(common))


def _variance(gaps: np.ndarray, spread: SeedVariance) -> float:
    """Return the variance of the mean of gaps (seeds, images)."""
    seeds, images = gaps.shape
    by_seed = 2 * spread.variance / seeds
    means = gaps.mean(axis=0)
    by_image = float(means.var(ddof=1)) / images
    both = 0.0
    if seeds > 1:
        left = gaps - means - gaps.mean(axis=1, keepdims=True) + gaps.mean()
        both = float(np.square(left).sum()) / ((seeds - 1) * (images - 1)) / (seeds * images)
    return max(by_seed, by_image, by_seed + by_image - both)


def holm(family: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons with `corrected` by the method of Holm (1979) for all of them.

    The chance that any of them is decided between equal methods is then at most 5 %.
    """
    order = sorted(range(len(family)), key=lambda index: family[index].p)
    corrected = [1.0] * len(family)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(family) - place) * family[index].p))
        corrected[index] = largest
    return [replace(one, corrected=value) for one, value in zip(family, corrected, strict=True)]
