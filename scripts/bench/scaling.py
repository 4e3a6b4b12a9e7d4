"""Measure CPU seconds per layer of tracing and cutting, and the memory of a large network.

    python -m scripts.bench.scaling [--blocks 10 100 300 1000] [--network regnet_y_128gf]

Networks of equal residual blocks get longer; a layer should cost the same in all of them. Tracing
works on shapes, so it takes little memory beyond the weights, however large the activations.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from prunekit.console import say, table
from prunekit.graph import ChannelGraph
from scripts.bench.covered import cut
from scripts.bench.lines import ROOT
from scripts.bench.subjects import Subject

WIDTH = 16


def main() -> int:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[10, 100, 300, 1000])
    parser.add_argument("--network", default="regnet_y_128gf", help="whose memory is measured")
    parser.add_argument("--memory-only", action="store_true", help="in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_only:
        memory = beyond_weights(options.network)
        say(f"{memory:.2f} GiB to trace {options.network}, beyond its weights")
        return 0
    first, second = (seconds(10)[1] for _ in range(2))
    say(f"{first} s for the first trace in a process, {second} s for the second, of 22 layers")
    rows = [[str(cell) for cell in seconds(blocks)] for blocks in options.blocks]
    table("residual blocks", ["layers", "traced", "pruned", "ms per layer"], rows)
    line = [
        sys.executable,
        "-m",
        "scripts.bench.scaling",
        "--memory-only",
        "--network",
        options.network,
    ]
    return subprocess.run(line, cwd=ROOT, check=False).returncode


def seconds(blocks: int) -> tuple[int, float, float, float]:
    """Return the number of layers, CPU seconds to trace and to cut, and milliseconds per layer.

    Other processes on the machine lengthen CPU seconds less than seconds.
    """
    net = nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1),
        *[BasicBlock(WIDTH, WIDTH) for _ in range(blocks)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, 10),
    ).eval()
    narrow = copy.deepcopy(net)
    start = time.process_time()
    graph = ChannelGraph.trace(net, torch.zeros(1, 3, 32, 32))
    middle = time.process_time()
    cut(net, narrow, graph)
    end = time.process_time()
    layers = 2 * blocks + 2
    per_layer = 1000 * (end - start) / layers
    return layers, round(middle - start, 3), round(end - middle, 3), round(per_layer, 3)


def beyond_weights(name: str) -> float:
    """Return by how many GiB the peak of resident memory grows while a network is traced."""
    subject = Subject.named(name)
    model = subject.build()
    example: Tensor = torch.zeros(1, 3, subject.side, subject.side)
    before = peak()
    ChannelGraph.trace(model, example)
    return peak() - before


def peak() -> float:
    """Return the most resident memory that this process ever had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    sys.exit(main())
