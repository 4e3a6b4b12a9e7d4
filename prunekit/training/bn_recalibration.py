"""Batch-norm statistics made anew, for a network that is no longer the one they were taken in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.console import track
from prunekit.data import Batches
from prunekit.errors import DataError
from prunekit.modes import evaluating
from prunekit.training.evaluate import placed

_BATCH = 128


def keeps_statistics(model: nn.Module) -> bool:
    """Whether there is a batch norm with running statistics in it."""
    return bool(_norms(model))


@torch.no_grad()
def recompute_statistics(
    model: nn.Module, batches: Batches, count: int, device: torch.device | str = "cpu"
) -> None:
    """Take running means and variances from `count` of the examples, in place.

    All batches count the same; weights stay as they are, and dropout is off. Nothing happens
    without batch norm; raises DataError where there are no examples.
    """
    norms = _norms(model)
    if not norms:
        return
    if not batches.size:
        raise DataError("there are no examples to take batch-norm statistics from; set dataset=...")
    total = -(-min(count, batches.size) // _BATCH)
    with evaluating(model), _averaging(norms):
        for inputs, _ in track(batches.sample(count, _BATCH), "statistics", total):
            if len(inputs) > 1 or total == 1:  # one example may be too few for batch norm
                model(placed(inputs, device))


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Inside it, norms average over all batches: that is what no momentum means to torch."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def _norms(model: nn.Module) -> list[_BatchNorm]:
    found = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in found if norm.track_running_stats]
