"""Measure how far outputs move if the constants of removed channels are dropped or absorbed.

    python -m scripts.bench.constants [--only NAME ...] [--csv FILE]

Networks of torchvision with random weights and random batch-norm statistics lose half of every
group by L1 norm. Distances are the largest difference of outputs to the dense network whose removed
channels still emit their constants, relative to the largest output: without absorption, with it,
and with a bias for every position.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torchvision

from prunekit.criteria import L1Norm
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.selection import PerLayer
from prunekit.surgery.cut import cut
from prunekit.surgery.equivalence import randomise_constants
from scripts.bench.lines import RESULTS, collect

NETWORKS = (
    *("resnet18", "resnet50", "vgg16_bn", "densenet121", "googlenet", "mobilenet_v2"),
    *("efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf"),
)


def main() -> None:
    """Measure, write the file, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", default=NETWORKS)
    parser.add_argument("--csv", type=Path, default=RESULTS / "constants.csv")
    options = parser.parse_args()
    rows = ({"network": name, **measured(name)} for name in options.only)
    collect(options.csv, "constants of removed channels", rows)


def measured(name: str) -> dict[str, Any]:
    """Return the distances of one network, in percent, and the gaps of the check before."""
    torch.manual_seed(0)
    extra = {"init_weights": False} if name == "googlenet" else {}
    model = randomise_constants(getattr(torchvision.models, name)(**extra)).eval()
    batch = torch.randn(4, 3, 64, 64)
    graph = ChannelGraph.trace(model, batch)
    keep = PerLayer(0.5).choose(L1Norm().scores(model, graph, None), graph, CostModel(model, graph))
    plain, mapped = (
        cut(model, graph, keep, batch, absorb=True, per_position=p) for p in (False, True)
    )
    return {
        "dropped": f"{plain.absorbed.change.before:.2%}",
        "absorbed": f"{plain.absorbed.change.after:.2%}",
        "with maps": f"{mapped.absorbed.change.after:.2%}",
        "check eval": f"{plain.agreement.eval.relative:.1e}",
        "check train": f"{plain.agreement.train.relative:.1e}",
    }


if __name__ == "__main__":
    main()
