"""Speed of similarity tables: VGG-16, growth with channels and examples, what the tables save.

Seconds are the fastest of the rounds; ratios are medians over rounds, both sides in alternation.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from prunekit.data import Data, TensorBatches
from prunekit.graph import ChannelGraph
from prunekit.methods.gram_lasso import Grams, Maps, RawMaps, Statistics, tables_of
from prunekit.models import vgg16
from scripts.bench.ratios import Row, below, ratio, row, seconds
from scripts.bench.training import NORMALIZE

EXAMPLES = 128
CHANNELS, SIDE = 256, 8  # VGG-16's third stage on images of 32 x 32
STEPS = 10  # gradient steps that are timed together
MOST = 30.0  # seconds for every convolution of VGG-16 on 2 cores


def rows(rounds: int) -> Iterator[Row]:
    """Yield every row, seconds first."""
    with torch.no_grad():
        yield whole_network(rounds)
        yield from growth(rounds)
        yield from saved(rounds)
        yield with_and_without(rounds)


def whole_network(rounds: int) -> Row:
    """Time the tables of all convolutions of VGG-16, forward pass included."""
    model, images = vgg16(), torch.randint(0, 256, (EXAMPLES, 3, 32, 32), dtype=torch.uint8)
    batches = TensorBatches(images, torch.arange(EXAMPLES) % 10, NORMALIZE)
    data = Data(batches, batches, batches, 10, (3, 32, 32))
    graph = ChannelGraph.trace(model, data.example)
    layers = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d)]
    work = partial(Statistics().of, model, graph, data, "cpu", layers)
    what = f"tables of VGG-16, {EXAMPLES} examples, Laplacian, seconds"
    return below(what, min(seconds(work) for _ in range(rounds)), MOST)


def growth(rounds: int) -> Iterator[Row]:
    """Yield twice the channels, then twice the examples, each against the size before."""
    for channels in (64, 128, 256):
        yield row(
            f"tables, {2 * channels} / {channels} channels, {EXAMPLES} examples",
            ratio(_tables(2 * channels, EXAMPLES), _tables(channels, EXAMPLES), rounds),
        )
    for examples in (128, 256, 512):
        yield row(
            f"tables, {2 * examples} / {examples} examples, 64 channels",
            ratio(_tables(64, 2 * examples), _tables(64, examples), rounds),
        )


def saved(rounds: int) -> Iterator[Row]:
    """Yield gradient steps on all pairs of examples against steps on the tables."""
    maps = _maps(CHANNELS, EXAMPLES), _maps(CHANNELS, EXAMPLES)
    make = partial(tables_of, Grams(), *maps)
    columns, responses = _explicit(maps[0]), _explicit(maps[1])
    tables = make()
    explicit = partial(_on_pairs, columns, responses)
    quadratic = partial(_on_tables, tables.inputs.float(), tables.cross.float())
    torch.testing.assert_close(explicit(), quadratic(), rtol=0, atol=1e-4)
    yield row("gradient step, pairs of examples / tables", ratio(explicit, quadratic, rounds))
    what = f"making the tables / {STEPS} gradient steps on pairs of examples"
    yield row(what, ratio(make, explicit, rounds))


def with_and_without(rounds: int) -> Row:
    """Compare tables of Gram matrices with tables of the raw maps of the same layer.

    After this the regression is the same, so this is all that Gram matrices save or cost.
    """
    maps = _maps(CHANNELS, EXAMPLES), _maps(CHANNELS, EXAMPLES)
    kinds = (partial(tables_of, statistic, *maps) for statistic in (Grams(), RawMaps()))
    return row(f"tables with / without Gram matrices, {SIDE} x {SIDE} maps", ratio(*kinds, rounds))


def _maps(channels: int, examples: int) -> Maps:
    return Maps.of(torch.randn(channels, examples, SIDE * SIDE))


def _tables(channels: int, examples: int) -> partial:
    return partial(tables_of, Grams(), _maps(channels, examples), _maps(channels, examples))


def _explicit(maps: Maps) -> Tensor:
    """Return the unit vectors of all channels as columns, a row per pair of examples."""
    vectors = Grams().vectors(maps, torch.zeros(maps.examples), 2**26)
    return torch.nn.functional.normalize(vectors.panel(range(maps.examples))).T


def _on_pairs(columns: Tensor, responses: Tensor) -> Tensor:
    beta = torch.zeros(CHANNELS, CHANNELS)
    for _ in range(STEPS):
        beta -= columns.T @ (columns @ beta - responses) / CHANNELS
    return beta


def _on_tables(gram: Tensor, cross: Tensor) -> Tensor:
    beta = torch.zeros(CHANNELS, CHANNELS)
    for _ in range(STEPS):
        beta -= (gram @ beta - cross) / CHANNELS
    return beta
