"""Speed of structured lassos: how long all convolutions of VGG-16 take, layer by layer.

A layer's tables are those of random maps that share patterns of ten classes, under a Laplacian
kernel; what is timed is the walk down the strengths that orders its filters, tables excluded.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from prunekit.methods.gram_lasso import (
    Edges,
    Grams,
    GraphLasso,
    Maps,
    Tables,
    Tree,
    TreeLasso,
    tables_of,
)
from prunekit.methods.gram_lasso.entry import EntryOrder
from prunekit.methods.gram_lasso.regression import FISTA, GraphADMM, Regression, RegressionSolver
from prunekit.penalties import Penalty
from scripts.bench.ratios import Row, below, row, seconds

WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)  # VGG-16
EXAMPLES, CLASSES, ENTRIES = 128, 10, 16
SHARED = 0.6  # of a class pattern beside noise of one
READ = 20  # input channels that an output channel mixes
MOST = 180.0  # seconds for all layers on 2 cores

Structure = Callable[[Tensor], Callable[[float], Penalty]]
Method = tuple[Structure, RegressionSolver]


def rows(rounds: int) -> Iterator[Row]:
    """Yield seconds of every layer and of all, for both structures; once, however many rounds."""
    shapes = list(itertools.pairwise(WIDTHS))
    with torch.no_grad():
        for name, method in methods().items():
            yield from walks(name, method, shapes)


def methods() -> dict[str, Method]:
    """Return the structures of both methods with the default settings, and their solvers."""
    return {"graph": (graph, GraphADMM()), "tree": (tree, FISTA())}


def graph(similarity: Tensor) -> Callable[[float], Penalty]:
    """Return the penalty with three neighbours, weakly coupled."""
    edges = Edges.top(similarity, 3)
    return lambda lam: GraphLasso(lam, edges, kappa=0.03)


def tree(similarity: Tensor) -> Callable[[float], Penalty]:
    """Return the penalty on the dendrogram of average linkage."""
    whole = Tree.linkage(similarity)
    return lambda lam: TreeLasso(lam, whole)


def walks(name: str, method: Method, shapes: list[tuple[int, int]]) -> Iterator[Row]:
    """Yield the seconds of every layer and of all."""
    structure, solver = method
    total = 0.0
    for seed, (inputs, outputs) in enumerate(shapes):
        tables = layer(inputs, outputs, seed)
        took = seconds(partial(_order, tables, structure, solver, str(seed)))
        total += took
        yield row(f"{name}, layer {seed}, {inputs} x {outputs}, seconds", took)
    yield below(f"{name}, all layers, seconds", total, MOST)


def _order(tables: Tables, structure: Structure, solver: RegressionSolver, name: str) -> None:
    problem = Regression(tables.inputs, tables.cross, float(tables.energy.sum()))
    EntryOrder().scores(problem, structure(tables.similarity), solver, name)


def layer(inputs: int, outputs: int, seed: int) -> Tables:
    """Return tables of rectified random maps with class patterns and of sparse mixtures of them."""
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(EXAMPLES) % CLASSES
    patterns = SHARED * torch.randn(inputs, CLASSES, ENTRIES, generator=draw)
    noise = torch.randn(inputs, EXAMPLES, ENTRIES, generator=draw)
    maps = (patterns[:, classes] + noise).clamp_min(0)
    read = torch.rand(outputs, inputs, generator=draw).argsort(dim=1) < READ
    weights = torch.randn(outputs, inputs, generator=draw) * read
    return tables_of(Grams(), Maps.of(maps), Maps.of(torch.tensordot(weights, maps, dims=1)))
