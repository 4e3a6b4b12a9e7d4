"""Asked, predicted and measured: a latency budget on networks of torchvision.

    python -m scripts.bench.latency_budget [--only NAME ...] [--keep SHARE ...] [--csv FILE]

Random weights, L1 norms, images of 224, batches of one, one thread. `table` is what the table of
layer times predicts for the network that was chosen, `found` its measurement that ended the search,
`again` one made afterwards, in turns with the dense network.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torchvision

from prunekit.criteria import L1Norm
from prunekit.graph import ChannelGraph
from prunekit.measure import Clock, LatencyTest
from prunekit.methods.hinge import FoldedCost
from prunekit.selection import LatencyTarget, Scored
from prunekit.surgery import Narrow
from scripts.bench.lines import RESULTS, collect

NETWORKS = ("mobilenet_v2", "resnet50", "densenet121", "vgg16")


def main() -> None:
    """Measure, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=NETWORKS)
    parser.add_argument("--keep", nargs="+", type=float, metavar="SHARE", default=(0.75, 0.6, 0.4))
    parser.add_argument("--csv", type=Path, default=RESULTS / "latency_budget.csv")
    options = parser.parse_args()
    rows = (row for name in options.only for row in searched(name, options.keep))
    collect(options.csv, "latency budgets", rows)


def searched(name: str, shares: list[float]) -> Iterator[dict[str, Any]]:
    """Yield a row for every share of a network."""
    torch.manual_seed(0)
    timing = LatencyTest(batch=1, runs=151, warmup=5, seconds=20)
    model = getattr(torchvision.models, name)().eval()
    example = torch.zeros(1, 3, 224, 224)
    graph = ChannelGraph.trace(model, example)
    scores = L1Norm().scores(model, graph, None)
    start = time.perf_counter()
    cost = FoldedCost(model, graph, Clock(example)).timed(timing)
    cost.latency()  # the table is measured at first use
    took = time.perf_counter() - start
    for share in shares:
        selection = LatencyTarget(share, timing=timing, scope="global")
        selected = selection.select(Scored(scores, graph, cost))
        (aim,), drop = selected.aims, selected.keep.removed
        narrow = copy.deepcopy(model)
        Narrow.of(graph, drop).apply(narrow)
        again = cost.compare(drop, narrow)
        yield {
            "network": name,
            "asked": share,
            "table": round(aim.predicted, 3),
            "found": round(aim.reached, 3),
            "again": round(again.share, 3),
            "dense ms": round(again.dense_ms, 1),
            "MACs kept": round(cost.macs(drop) / cost.macs(), 3),
            "table s": round(took, 1),
        }


if __name__ == "__main__":
    main()
