"""Refit the network of a cut, and measure by how much that moved what it puts out."""

from __future__ import annotations

import time
from dataclasses import replace

from torch import nn

from prunekit.errors import ConfigError, DataError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Example
from prunekit.modes import random_states_kept, unchanged, uncompiled
from prunekit.surgery.cut import Cut
from prunekit.surgery.distance import distance_between, outputs_in_eval
from prunekit.surgery.reconstruction.base import Reconstruction, Refitted, Sample


def refit_cut(
    cut: Cut,
    dense: nn.Module,
    graph: ChannelGraph,
    reconstruction: Reconstruction,
    sample: Sample | None,
    batch: Example | None,
) -> Cut:
    """Refit the network of a cut of `dense`, in place, and return the cut with what came of it.

    Where the cut was checked on `batch`, the networks are compared on it before and after.
    """
    with unchanged(dense), uncompiled(), random_states_kept():
        if cut.distance is None or batch is None:
            return cut.with_refit(_timed(cut, dense, graph, reconstruction, sample), None)
        before = outputs_in_eval(cut.model, batch, "the narrow network")
        refitted = _timed(cut, dense, graph, reconstruction, sample)
        after = outputs_in_eval(cut.model, batch, "the refitted network")
        moved = distance_between(after, before).gap if refitted.layers else None
        reference = outputs_in_eval(dense, batch, "the dense network")
        return cut.with_refit(replace(refitted, moved=moved), distance_between(after, reference))


def _timed(
    cut: Cut,
    dense: nn.Module,
    graph: ChannelGraph,
    reconstruction: Reconstruction,
    sample: Sample | None,
) -> Refitted:
    start = time.monotonic()
    try:
        refitted = reconstruction.apply(dense, cut.model, graph, cut.keep.removed, sample)
    except (ConfigError, DataError):  # these say how to go on
        raise
    except Exception as error:  # forwards that run on no other batch, memory that ran out
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SurgeryError(
            f"layers could not be refitted: {first}; reconstruct=none leaves them as they are"
        ) from error
    return replace(refitted, seconds=time.monotonic() - start)
