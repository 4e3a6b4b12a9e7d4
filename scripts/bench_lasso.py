"""Speed of structured lassos: how long all convolutions of VGG-16 take, layer by layer.

    python scripts/bench_lasso.py [--layers 13] [--csv FILE]

A layer's tables are those of random maps that share patterns of ten classes, under a Laplacian
kernel; what is timed is the walk down the strengths that orders its filters, tables excluded.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bench import Row, publish, row
from torch import Tensor

from prunekit.methods.gram_lasso import (
    FISTA,
    Edges,
    Grams,
    GraphADMM,
    GraphLasso,
    Maps,
    Regression,
    RegressionSolver,
    Tables,
    Tree,
    TreeLasso,
    compute_tables,
)
from prunekit.methods.gram_lasso.entry import EntryOrder
from prunekit.penalties import Penalty

WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)  # VGG-16
EXAMPLES, CLASSES, ENTRIES = 128, 10, 16
SHARED = 0.6  # of a class pattern beside noise of one
READ = 20  # input channels that an output channel mixes
MOST = 180.0  # seconds for all layers on 2 cores

Method = tuple[Callable[[Tensor], Callable[[float], Penalty]], RegressionSolver]


def main() -> int:
    """Print every row; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=len(WIDTHS) - 1, help="the first so many")
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.set_grad_enabled(False)
    shapes = list(itertools.pairwise(WIDTHS))[: arguments.layers]
    rows = [line for name, method in methods().items() for line in walks(name, method, shapes)]
    return publish("structured lasso", rows, arguments.csv)


def methods() -> dict[str, Method]:
    """The structure of both papers' methods with the default settings, and its solver."""
    return {"graph": (graph, GraphADMM()), "tree": (tree, FISTA())}


def graph(similarity: Tensor) -> Callable[[float], Penalty]:
    """Three neighbours, weakly coupled."""
    edges = Edges.top(similarity, 3)
    return lambda lam: GraphLasso(lam, edges, kappa=0.03)


def tree(similarity: Tensor) -> Callable[[float], Penalty]:
    """The dendrogram of average linkage."""
    whole = Tree.linkage(similarity)
    return lambda lam: TreeLasso(lam, whole)


def walks(name: str, method: Method, shapes: list[tuple[int, int]]) -> Iterator[Row]:
    """Seconds of every layer and of all."""
    structure, solver = method
    total = 0.0
    for seed, (inputs, outputs) in enumerate(shapes):
        tables = layer(inputs, outputs, seed)
        start = time.perf_counter()
        problem = Regression(tables.inputs, tables.cross, float(tables.energy.sum()))
        EntryOrder().scores(problem, structure(tables.similarity), solver, str(seed))
        seconds = time.perf_counter() - start
        total += seconds
        yield row(f"{name}, layer {seed}, {inputs} x {outputs}, seconds", seconds, "-", True)
    yield row(f"{name}, all layers, seconds", total, f"< {MOST:g}", total < MOST)


def layer(inputs: int, outputs: int, seed: int) -> Tables:
    """Tables of rectified random maps with class patterns, and of sparse mixtures of them."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(EXAMPLES) % CLASSES
    patterns = SHARED * torch.randn(inputs, CLASSES, ENTRIES, generator=draw)
    noise = torch.randn(inputs, EXAMPLES, ENTRIES, generator=draw)
    maps = (patterns[:, classes] + noise).clamp_min(0)
    read = torch.rand(outputs, inputs, generator=draw).argsort(dim=1) < READ
    weights = torch.randn(outputs, inputs, generator=draw) * read
    return compute_tables(Grams(), Maps.of(maps), Maps.of(torch.tensordot(weights, maps, dims=1)))


if __name__ == "__main__":
    sys.exit(main())
