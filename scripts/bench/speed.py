"""Physical speed: dense, pruned and pruned to multiples of 8, timed in turns on every engine.

    python -m scripts.bench.speed [--networks NAME ...] [--engines eager onnxruntime] [--fresh]

Networks of torchvision with random weights, cut by filter norms to half of their multiply-adds,
the same share of every layer; one thread and batches of 24, as the SSR paper times. A line of the
file is written as soon as an engine is done, and an engine with lines there is not timed again.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

import torch
import torchvision

from prunekit.console import table
from prunekit.errors import ConfigError, one_of
from prunekit.measure import LatencyTest
from scripts.bench.lines import RESULTS, Row
from scripts.bench.timed import Networks, complete, cut, earlier, macs, parameters

OUT = RESULTS / "speed_cpu.csv"
KINDS = {"keep": float, "batch": int, "threads": int, "size": int}
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


def main() -> int:
    """Time what is missing in the file, then print all of it."""
    arguments = _arguments()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    rows = complete(
        arguments.out,
        earlier(arguments.out, KINDS, arguments.fresh),
        {
            name: [_key(name, engine, arguments) for engine in arguments.engines]
            for name in arguments.networks
        },
        lambda name: variants(name, arguments),
        lambda models, key: timed(models, key, arguments),
    )
    cells = [[_shown(row.get(key, "")) for key in COLUMNS] for row in rows]
    table("physical speed", list(COLUMNS.values()), cells)
    return 0


def variants(name: str, arguments: argparse.Namespace) -> Networks:
    """Return the dense network, half of its multiply-adds, and the same in multiples of 8."""
    dense = torchvision.models.get_model(name, weights=None).eval()
    example = torch.zeros(1, 3, arguments.size, arguments.size)
    narrow = {
        label: cut(copy.deepcopy(dense), example, arguments.keep, round_to=round_to)
        for label, round_to in (("pruned", 1), ("multiples of 8", 8))
    }
    return {"dense": dense, **narrow}


def timed(models: Networks, key: Row, arguments: argparse.Namespace) -> list[Row]:
    """Return one line a variant, all timed in turns."""
    example = torch.zeros(1, 3, arguments.size, arguments.size)
    test = LatencyTest(
        threads=arguments.threads,
        batch=arguments.batch,
        runs=arguments.rounds,
        warmup=1,
        seconds=arguments.seconds,
    )
    times = test.run(models, example, engine=str(key["engine"]))
    costs = {label: macs(model, example) for label, model in models.items()}
    return [
        {
            **key,
            "variant": label,
            "macs": costs[label],
            "macs_share": round(costs[label] / costs["dense"], 4),
            "params": parameters(models[label]),
            "ms": round(time.median_ms, 3),
            "q1": round(time.q1, 3),
            "q3": round(time.q3, 3),
            "rounds": time.runs,
            "speedup": round(times["dense"].median_ms / time.median_ms, 4),
            "torch": torch.__version__,
        }
        for label, time in times.items()
    ]


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
        names = torchvision.models.list_models(module=torchvision.models)
        if name not in names:
            parser.error(f"--networks {name} is none of torchvision; {one_of(name, names)}")
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


def _shown(value: object) -> str:
    text = str(value)
    return f"{int(text):,}" if text.isdigit() else text


if __name__ == "__main__":
    sys.exit(main())
