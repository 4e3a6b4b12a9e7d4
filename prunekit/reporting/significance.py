"""Whether one method beats another, or nobody can tell: intervals from paired results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.errors import ArtifactError


@dataclass(frozen=True)
class Comparison:
    """The difference in error between two methods, in percentage points, with an interval."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """Of the first method: better, worse, or undecided where the interval holds zero."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "undecided"


def paired(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    *,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> Comparison:
    """Compare two methods run with the same seeds on the same test images.

    Each array says, per test image, whether the run with that seed was right. The interval is a
    percentile bootstrap that draws seeds and images with replacement, both paired. Raises
    ArtifactError when the arrays do not match.
    """
    if len(first) != len(second) or len({len(run) for run in (*first, *second)}) != 1:
        raise ArtifactError("a paired comparison needs the same seeds and test images twice")
    gaps = np.stack(second).astype(np.float64) - np.stack(first).astype(np.float64)
    rng = np.random.default_rng(seed)
    seeds, images = gaps.shape
    drawn = np.empty(draws)
    for index in range(draws):
        mean = gaps[rng.integers(seeds, size=seeds)].mean(axis=0)
        drawn[index] = rng.choice(mean, images).mean()
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Comparison(100 * float(gaps.mean()), 100 * float(low), 100 * float(high))
