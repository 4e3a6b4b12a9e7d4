"""Physical speed: dense, pruned and pruned to multiples of 8, timed in turns on every engine.

    python scripts/speed.py [--networks resnet50 vgg16] [--engines eager onnxruntime] [--fresh]

Networks of torchvision with random weights, cut by filter norms to half of their multiply-adds,
the same share of every layer; one thread and batches of 24, as the SSR paper times. A line of the
file is written as soon as an engine is done, and an engine with lines there is not timed again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import sys
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from prunekit.console import say, table
from prunekit.criteria import L1Norm
from prunekit.errors import ConfigError, ExportError, one_of
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel, LatencyTest
from prunekit.runs.files import write_csv
from prunekit.selection import MacsTarget
from prunekit.surgery import Narrow

OUT = Path(__file__).resolve().parents[1] / "docs/results/speed_cpu.csv"
SAME = ("network", "engine", "keep", "batch", "threads", "size")  # what makes a line worth keeping
COLUMNS = {
    "network": "network",
    "engine": "engine",
    "variant": "variant",
    "macs": "MACs",
    "macs_share": "MACs kept",
    "ms": "ms",
    "q1": "q1",
    "q3": "q3",
    "rounds": "rounds",
    "speedup": "speed-up",
}

Row = dict[str, str | int | float]


def main() -> int:
    """Time what is missing in the file, then print all of it."""
    arguments = _arguments()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    rows = [] if arguments.fresh else _read(arguments.out)
    for name in arguments.networks:
        wanted = [_key(name, engine, arguments) for engine in arguments.engines]
        missing = [key for key in wanted if key not in [_same(row) for row in rows]]
        if not missing:
            continue
        models = variants(name, arguments)
        for key in missing:
            say(f"{name} on {key['engine']}: {', '.join(models)} ...")
            try:
                rows += timed(models, key, arguments)
            except ExportError as error:
                say(f"  not timed: {error}")
            write_csv(arguments.out, rows)
    cells = [[_shown(row.get(key, "")) for key in COLUMNS] for row in rows]
    table("physical speed", list(COLUMNS.values()), cells)
    return 0


def variants(name: str, arguments: argparse.Namespace) -> dict[str, nn.Module]:
    """The dense network, half of its multiply-adds, and the same in multiples of 8."""
    dense = torchvision.models.get_model(name, weights=None).eval()
    example = torch.zeros(1, 3, arguments.size, arguments.size)
    graph = ChannelGraph.trace(dense, example)
    cost = CostModel(dense, graph)
    scores = L1Norm().scores(dense, graph, None)
    found = {"dense": dense}
    for label, round_to in (("pruned", 1), ("multiples of 8", 8)):
        selection = MacsTarget(keep=arguments.keep, scope="local", round_to=round_to)
        keep = selection.choose(scores, graph, cost)
        drop = keep.removed
        found[label] = copy.deepcopy(dense)
        Narrow.of(graph, drop).apply(found[label])
    return found


def timed(models: dict[str, nn.Module], key: Row, arguments: argparse.Namespace) -> list[Row]:
    """One line a variant, all timed in turns."""
    example = torch.zeros(1, 3, arguments.size, arguments.size)
    test = LatencyTest(
        threads=arguments.threads,
        batch=arguments.batch,
        runs=arguments.rounds,
        warmup=1,
        seconds=arguments.seconds,
    )
    times = test.run(models, example, engine=str(key["engine"]))
    costs = {label: _macs(model, example) for label, model in models.items()}
    return [
        {
            **key,
            "variant": label,
            "macs": costs[label],
            "macs_share": round(costs[label] / costs["dense"], 4),
            "params": sum(param.numel() for param in models[label].parameters()),
            "ms": round(time.median_ms, 3),
            "q1": round(time.q1, 3),
            "q3": round(time.q3, 3),
            "rounds": time.runs,
            "speedup": round(times["dense"].median_ms / time.median_ms, 4),
            "torch": torch.__version__,
        }
        for label, time in times.items()
    ]


def _macs(model: nn.Module, example: Tensor) -> int:
    return CostModel(model, ChannelGraph.trace(model, example)).macs()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vgg16"])
    parser.add_argument("--engines", nargs="+", default=["eager", "onnxruntime"])
    parser.add_argument("--keep", type=float, default=0.5, help="share of multiply-adds")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="of the square images")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=100, help="limit for a network and engine")
    parser.add_argument("--out", type=Path, default=OUT, help="the csv file")
    parser.add_argument("--fresh", action="store_true", help="time again what is in the file")
    arguments = parser.parse_args()
    for name in arguments.networks:
        known = torchvision.models.list_models(module=torchvision.models)
        if name not in known:
            parser.error(f"--networks {name} is none of torchvision; {one_of(name, known)}")
    try:
        LatencyTest(runs=arguments.rounds, batch=arguments.batch, engines=arguments.engines)
    except ConfigError as error:
        parser.error(str(error))
    return arguments


def _key(network: str, engine: str, arguments: argparse.Namespace) -> Row:
    return {
        "network": network,
        "engine": engine,
        "keep": arguments.keep,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "size": arguments.size,
    }


def _same(row: Row) -> Row:
    kinds = (str, str, float, int, int, int)
    return {key: kind(row[key]) for key, kind in zip(SAME, kinds, strict=True)}


def _read(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    with open(path, encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _shown(value: object) -> str:
    text = str(value)
    return f"{int(text):,}" if text.isdigit() else text


if __name__ == "__main__":
    sys.exit(main())
