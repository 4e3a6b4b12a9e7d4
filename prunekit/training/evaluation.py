"""Passes over examples without training: accuracy, predictions, batch-norm statistics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from prunekit.console import track
from prunekit.data import Batches
from prunekit.data.base import draw
from prunekit.data.folder_batches import explain_lost_workers
from prunekit.errors import DataError
from prunekit.modes import evaluating
from prunekit.outputs import logits_of
from prunekit.training.failures import cross_entropy, refuse_bad_inputs
from prunekit.training.schedule import MEMORY_FORMAT

_STATISTICS_BATCH = 128


def evaluate(
    model: nn.Module, batches: Batches, device: torch.device | str, batch: int = 1000
) -> dict[str, float]:
    """Return the mean cross entropy as loss, and top1 and top5 accuracy in percent.

    Raises DataError where there are no examples, or inputs that are not finite.
    """
    logits, labels = predictions(model, batches, device, batch)
    loss = float(cross_entropy(logits, labels))
    if not math.isfinite(loss):
        refuse_bad_inputs(batches, "evaluated")
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return {
        "loss": loss,
        "top1": 100 * float(hits[:, 0].double().mean()),
        "top5": 100 * float(hits.any(dim=1).double().mean()),
    }


def predictions(
    model: nn.Module, batches: Batches, device: torch.device | str, batch: int = 1000
) -> tuple[Tensor, Tensor]:
    """Return logits (examples, classes) in evaluation mode, and labels, in the examples' order."""
    if not batches.size:
        raise DataError("there are no examples to evaluate on; set dataset.val above 0")
    parts = []
    with evaluating(model), torch.inference_mode(), explain_lost_workers():
        total = -(-batches.size // batch)
        for inputs, labels in track(batches.epoch(batch, None), "evaluate", total):
            inputs, labels = to_device(inputs, device), labels.to(device)
            parts.append((logits_of(model(inputs)).float(), labels))
    logits, labels = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return logits, labels


def to_device(inputs: Tensor, device: torch.device | str) -> Tensor:
    """Move inputs to the device; images become channels last, which is faster for convolutions."""
    if inputs.dim() == 4:
        return inputs.to(device, non_blocking=True, memory_format=MEMORY_FORMAT)
    return inputs.to(device, non_blocking=True)


def has_running_statistics(model: nn.Module) -> bool:
    """Return whether the network has a batch norm with running statistics."""
    return bool(_batch_norms(model))


@torch.no_grad()
def recompute_statistics(
    model: nn.Module,
    batches: Batches,
    count: int,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> None:
    """Recompute running means and variances on `count` of the examples, in place.

    The seed chooses the examples. Statistics are averaged over batches. Weights do not change, and
    dropout is off. Without batch norm nothing happens. Raises DataError without examples.
    """
    norms = _batch_norms(model)
    if not norms:
        return
    if not batches.size:
        raise DataError("there are no examples to take batch-norm statistics from; set dataset=...")
    total = -(-min(count, batches.size) // _STATISTICS_BATCH)
    with evaluating(model), _averaging(norms), explain_lost_workers():
        for inputs, _ in track(draw(batches, count, _STATISTICS_BATCH, seed), "statistics", total):
            if len(inputs) > 1 or total == 1:  # a single example may be too few for batch norm
                model(to_device(inputs, device))


@contextmanager
def _averaging(norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let batch norms average over all batches, which torch does where the momentum is None."""
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


def _batch_norms(model: nn.Module) -> list[_BatchNorm]:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [norm for norm in norms if norm.track_running_stats]
