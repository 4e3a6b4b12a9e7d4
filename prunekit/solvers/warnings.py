"""What is worth a warning before hours of training: a penalty without effect, a step too long."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from prunekit.penalties.base import Penalty
from prunekit.rows import Rows

MOST = 0.5  # share of rows on the flat part that is worth a line


def about_flatness(penalty: Penalty, blocks: Sequence[Rows]) -> str | None:
    """A line where a penalty with a flat part leaves all rows alone, or most of them."""
    start = penalty.flat_from
    if not 0 < start < float("inf"):
        return None
    norms = torch.cat([block.read().double().norm(dim=1).cpu() for block in blocks])
    share = float((norms >= start).double().mean())
    flat = f"{type(penalty).__name__} is flat from {start:g} on"
    if share == 1:
        least = f"{float(norms.min()):g}"
        return (
            f"{flat} and the smallest of {len(norms)} rows is {least}: it does nothing; "
            f"raise {penalty.shape} (in settings regularizer.flat)"
        )
    if share > MOST:
        return f"{flat}, so it does nothing to {share:.0%} of {len(norms)} rows as they are now"
    return None


def about_step(penalty: Penalty, step: float, lower: str) -> str | None:
    """A line where a prox step is beyond what the penalty's concavity allows.

    Penalties that are too concave for every step are exempt: jumps are their nature. `lower` says
    what makes the solver's step shorter.
    """
    limit = penalty.convex_step
    if not 0 < limit < step:
        return None
    return (
        f"the prox step {step:g} is above {limit:g}, where the prox of {type(penalty).__name__} "
        f"begins to jump and rows of a middle size vanish at once; {lower} or raise {penalty.shape}"
    )
