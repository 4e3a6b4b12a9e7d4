"""The strength of a penalty that fits the length of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit.penalties import Penalty
from prunekit.rows import Rows

_MOST_STEPS = 500  # of a run that is imitated; in longer ones, equal steps are taken together
_MOST_ROWS = 256  # of one weight, evenly among all sorted by norm
_CLOSE = 1.02  # ratio of two strengths that count as equal
_LARGEST = 1e12


def fitting_strength(
    penalty: Penalty, blocks: Sequence[Rows], lengths: Sequence[float]
) -> float | None:
    """Return the strength at which the penalty alone would empty half of the rows.

    It acts by prox steps of these lengths, without any loss. What the network needs is held up by
    its loss and stays; the rest goes. For l1 on scales of 0.5 and the schedule of network slimming
    (Liu et al. 2017), this is 7.6e-5 for `Proximal`; 1e-4 is published. The result has two digits;
    it is None where no strength is enough.
    """
    rows = _norms_by_weight(blocks)
    total, travel = sum(map(len, rows.values())), sum(lengths)
    if not total or travel <= 0:
        return None
    steps = _taken_together(lengths)

    def empties(strength: float) -> bool:
        candidate = penalty.with_strength(strength)
        left = (_after(candidate, norms, weight, steps) for weight, norms in rows.items())
        return 2 * sum(int((part == 0).sum()) for part in left) >= total

    largest = min(_LARGEST, penalty.flat_from * (1 - 1e-6))
    high = min(float(torch.cat([*rows.values()]).median()) / travel, largest)
    while not empties(high):
        if high >= largest:
            return None
        high = min(2 * high, largest)
    low = high / 2
    while empties(low):
        low, high = low / 2, low
    while high > _CLOSE * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if empties(middle) else (middle, high)
    return float(f"{high:.2g}")


def _taken_together(lengths: Sequence[float]) -> list[tuple[float, int]]:
    """Return the mean length and the number of steps of consecutive parts of a run."""
    size = -(-len(lengths) // _MOST_STEPS)
    parts = (lengths[start : start + size] for start in range(0, len(lengths), size))
    return [(sum(part) / len(part), len(part)) for part in parts if sum(part) > 0]


def _norms_by_weight(blocks: Sequence[Rows]) -> dict[float, Tensor]:
    """Return norms of rows that are not zero, as columns, by the weights of their blocks."""
    norms: dict[float, list[Tensor]] = {}
    for block in blocks:
        norm = block.read().detach().double().norm(dim=1).cpu()
        if block.weight > 0 and bool(norm.any()):
            norms.setdefault(float(block.weight), []).append(norm[norm > 0])
    return {weight: _spread(torch.cat(parts).sort().values) for weight, parts in norms.items()}


def _spread(values: Tensor) -> Tensor:
    """Return at most `_MOST_ROWS` of sorted values, evenly, as a column."""
    count = min(len(values), _MOST_ROWS)
    places = (torch.arange(count) + 0.5) * len(values) / count
    return values[places.long()][:, None]


def _after(
    penalty: Penalty, rows: Tensor, weight: float, steps: Sequence[tuple[float, int]]
) -> Tensor:
    """Return what is left of norms; steps taken together go as far as the first of them."""
    for length, count in steps:
        rows = (rows - count * (rows - penalty.prox(rows, weight * length))).clamp_min(0)
        if not bool(rows.any()):
            break
    return rows
