"""Networks of ultralytics, transformers and torchvision, pruned from their own call.

    python -m scripts.bench.foreign_networks [--networks yolov8n ...] [--csv outputs/foreign.csv]

Each runs in a process of its own: half of all channels by L2 norm, then the second form of the
check of exactness, `tests/oracle.py`. What is in the file is not measured again. A network whose
library is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
import warnings
from pathlib import Path

import torch
from torch.nn.modules.conv import _ConvNd

from prunekit.console import say, table
from prunekit.graph import ChannelGraph
from prunekit.runs.files import write_csv
from scripts.bench.foreign import NETWORKS, images
from scripts.bench.lines import ROOT, apart, read

COLUMNS = (
    *("network", "outcome", "left", "cut", "layers", "seconds"),
    *("eval", "train", "resized", "heard", "notes"),
)
Row = dict[str, str]


def main() -> int:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=[*NETWORKS], metavar="NAME")
    parser.add_argument("--csv", type=Path, default=ROOT / "outputs" / "foreign.csv")
    parser.add_argument("--seconds", type=float, default=240, help="limit for one network")
    parser.add_argument("--again", action="store_true", help="measure those that failed again")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        say(json.dumps(row_of(options.one)))
        return 0
    rows = {row["network"]: row for row in read(options.csv)}
    for name in options.networks:
        if importlib.util.find_spec(NETWORKS[name].library) is None:
            say(f"{name}: {NETWORKS[name].library} is not installed")
            continue
        row = rows.get(name)
        if row is None or (options.again and row["outcome"] != "ok"):
            rows[name] = measured(name, options.seconds)
            write_csv(options.csv, [*rows.values()])
    shown = [rows[name] for name in options.networks if name in rows]
    heads = [column for column in COLUMNS if column != "notes"]
    table("half of all channels", heads, [[row[head] for head in heads] for row in shown])
    return 0


def measured(name: str, seconds: float) -> Row:
    """Return the row of one network, from a process of its own."""
    printed, trouble = apart("foreign_networks", ["--one", name], seconds)
    rows = [line for line in printed.splitlines() if line.startswith('{"network"')]
    row = json.loads(rows[-1]) if rows else {"network": name, "outcome": trouble}
    return {column: str(row.get(column, "")) for column in COLUMNS}


def row_of(name: str) -> dict[str, object]:
    """Return every figure of one network."""
    from scripts.bench.covered import LAYERS, count, cut, cut_layers

    sys.path.insert(0, str(ROOT / "tests"))
    import oracle

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    subject = NETWORKS[name]
    row: dict[str, object] = {"network": name, "outcome": "ok"}
    try:
        dense = oracle.distinct(subject.build()).eval()
        example = subject.call(images(subject.side))
        start = time.perf_counter()
        graph = ChannelGraph.trace(dense, example)
        narrow = oracle.copied(dense)
        cut(dense, narrow, graph)
        row["seconds"] = round(time.perf_counter() - start, 2)
        row["left"] = f"{count(narrow) / count(dense):.1%}"
        row["layers"] = sum(isinstance(one, (*LAYERS, _ConvNd)) for one in dense.modules())
        row["cut"] = cut_layers(dense, narrow)
        row["notes"] = " | ".join(graph.notes)
        other = subject.side * 3 // 2
        resize = (
            (lambda x: torch.rand(*x.shape[:-2], other, other).to(x)) if subject.resizes else None
        )
        gaps = oracle.gaps(dense, narrow, example, resize)
        figures = {key: getattr(gaps, key) for key in ("eval", "train", "resized", "heard")}
        row |= {key: "-" if gap is None else f"{gap:.1e}" for key, gap in figures.items()}
        if gaps.worst > 1e-6:
            row["outcome"] = "differs"
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        row["outcome"] = reason[:200]
    return row


if __name__ == "__main__":
    sys.exit(main())
