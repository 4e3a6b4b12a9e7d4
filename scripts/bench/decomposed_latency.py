"""Latency of decomposed against pruned networks of as many multiply-adds, timed in turns.

    python -m scripts.bench.decomposed_latency [--networks NAME ...] [--engines eager] [--fresh]

A pruned network has fewer filters; a decomposed one has two convolutions, k x k and 1 x 1, in the
place of one, but in stems and shortcuts: rows of the matrices behind are gone. Both keep the same
share of every layer, chosen by norms of random weights. A line of the table is written as soon as
it is timed, and what stands there is not timed again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from prunekit import models
from prunekit.console import say
from prunekit.console import table as show
from prunekit.errors import ConfigError
from prunekit.export import require_onnx
from prunekit.measure import LatencyTest
from prunekit.methods.hinge import InsertMatrices, Placement, fold
from prunekit.modes import duplicate
from scripts.bench.lines import RESULTS, Row
from scripts.bench.timed import Networks, complete, cut, earlier, macs, parameters
from scripts.reproduce.sheets import markdown, text, write_markdown

NAME = "decomposed_latency"
HEAD = (
    "Milliseconds a batch, median and quartiles over rounds in which all three networks were timed "
    "in turn; the speed-up is the median over rounds of how many times as long dense took. "
    "`layers` are convolutions and linear layers. Random weights; {torch}"
)


@dataclass(frozen=True)
class Subject:
    """A network of random weights, its images and the batches it is timed with."""

    build: Callable[[], nn.Module]
    size: int
    batches: tuple[int, ...]

    @property
    def example(self) -> Tensor:
        """Return one image."""
        return torch.zeros(1, 3, self.size, self.size)


SUBJECTS = {
    "resnet20": Subject(models.resnet20, 32, (1, 64)),
    "resnet56": Subject(models.resnet56, 32, (1, 64)),
    "resnet50": Subject(torchvision.models.resnet50, 224, (1, 24)),
    "vgg16": Subject(torchvision.models.vgg16, 224, (1, 24)),
}
EVERYWHERE = Placement(blocks={}, layers={"*": "rows"})  # but in stems and shortcuts
KINDS = dict.fromkeys(("image", "batch", "threads", "MACs", "params"), int) | {"keep": float}
_LAYERS = (nn.Conv2d, nn.Linear)
ENGINES = {"cpu": ("eager", "onnxruntime"), "cuda": ("eager",)}


def main() -> int:
    """Time what is missing in the table, then show all of it."""
    arguments = _arguments()
    file = arguments.out / f"{NAME}.csv"
    rows = complete(
        file,
        earlier(file, KINDS, arguments.fresh),
        {name: _keys(name, arguments) for name in arguments.networks},
        lambda name: variants(SUBJECTS[name], arguments.keep),
        lambda networks, key: timed(networks, key, arguments),
    )
    _write(arguments.out, rows)
    return 0


def variants(subject: Subject, keep: float) -> Networks:
    """Return the dense network, and two of the given share of its multiply-adds."""
    torch.manual_seed(0)
    dense = subject.build().eval()
    return {
        "dense": dense,
        "pruned": cut(duplicate(dense), subject.example, keep),
        "decomposed": decomposed(duplicate(dense), subject.example, keep),
    }


def decomposed(model: nn.Module, example: Tensor, keep: float) -> nn.Module:
    """Return the network with fewer rows in the matrices behind its convolutions."""
    edit = InsertMatrices.of(model, example, EVERYWHERE)
    edit.apply(model)
    rows = [f"{site.layer}.conv" for site in edit.sites]
    return fold(cut(model, example, keep, rows), example).model


def timed(networks: Networks, key: Row, arguments: argparse.Namespace) -> list[Row]:
    """Return one row a network, all timed in turns."""
    example = SUBJECTS[key["network"]].example
    test = LatencyTest(
        threads=key["threads"],
        batch=key["batch"],
        runs=arguments.rounds,
        warmup=arguments.warmup,
        seconds=arguments.seconds,
    )
    times = test.run(networks, example, device=key["device"], engine=key["engine"])
    costs = {name: macs(network, example) for name, network in networks.items()}
    return [
        {
            **key,
            "variant": name,
            "layers": sum(isinstance(m, _LAYERS) for m in networks[name].modules()),
            "MACs": costs[name],
            "MACs kept": f"{costs[name] / costs['dense']:.4f}",
            "params": parameters(networks[name]),
            "ms": f"{time.median_ms:.3f}",
            "q1": f"{time.q1:.3f}",
            "q3": f"{time.q3:.3f}",
            "rounds": time.runs,
            "speed-up": f"{times['dense'].over(time):.3f}",
        }
        for name, time in times.items()
    ]


def _keys(name: str, arguments: argparse.Namespace) -> list[Row]:
    """Return the settings that a network is timed with."""
    subject = SUBJECTS[name]
    return [
        {
            "network": name,
            "image": subject.size,
            "batch": batch,
            "device": device,
            "engine": engine,
            "keep": arguments.keep,
            "threads": arguments.threads,
        }
        for device in arguments.devices
        for engine in ENGINES[device]
        for batch in subject.batches
        if engine in arguments.engines
    ]


def _write(out: Path, rows: list[Row]) -> None:
    """Show the rows, and write them as markdown."""
    if not rows:
        return
    lines = [[text(cell) for cell in row.values()] for row in rows]
    show("dense, pruned and decomposed", [*rows[0]], lines)
    head = HEAD.format(torch=f"torch {torch.__version__}\n")
    write_markdown(out / f"{NAME}.md", head, markdown([*rows[0]], lines))


def _arguments() -> argparse.Namespace:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=[*SUBJECTS], choices=[*SUBJECTS])
    parser.add_argument("--engines", nargs="+", default=_engines(), choices=ENGINES["cpu"])
    parser.add_argument("--devices", nargs="+", default=devices, choices=devices)
    parser.add_argument("--keep", type=float, default=0.5, help="share of multiply-adds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=90, help="limit for three networks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--fresh", action="store_true", help="time again what is in the file")
    return parser.parse_args()


def _engines() -> list[str]:
    """onnxruntime too, where it is installed."""
    try:
        require_onnx()
    except ConfigError as error:
        say(f"eager alone: {error}")
        return ["eager"]
    return [*ENGINES["cpu"]]


if __name__ == "__main__":
    sys.exit(main())
