"""How well a network does on examples it was not trained on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.console import track
from prunekit.data import Batches
from prunekit.errors import DataError
from prunekit.modes import evaluating
from prunekit.training.precision import LAYOUT


def evaluate(
    model: nn.Module, batches: Batches, device: torch.device | str, batch: int = 1000
) -> dict[str, float]:
    """Mean cross entropy, and the percentage of examples whose label is first or in the first five.

    Raises DataError where there are no examples.
    """
    logits, labels = predictions(model, batches, device, batch)
    ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = ranked == labels[:, None]
    return {
        "loss": float(F.cross_entropy(logits, labels)),
        "top1": 100 * float(hits[:, 0].double().mean()),
        "top5": 100 * float(hits.any(dim=1).double().mean()),
    }


def predictions(
    model: nn.Module, batches: Batches, device: torch.device | str, batch: int = 1000
) -> tuple[Tensor, Tensor]:
    """Logits (examples, classes) in evaluation mode, and labels, in the order of the examples."""
    if not batches.size:
        raise DataError("there are no examples to evaluate on; set dataset.val above 0")
    found = []
    with evaluating(model), torch.inference_mode():
        total = -(-batches.size // batch)
        for inputs, labels in track(batches.epoch(batch, None), "evaluate", total):
            inputs, labels = placed(inputs, device), labels.to(device)
            found.append((model(inputs).float(), labels))
    logits, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
    return logits, labels


def placed(inputs: Tensor, device: torch.device | str) -> Tensor:
    """Inputs on the device; images channels last, which convolutions are faster on."""
    if inputs.dim() == 4:
        return inputs.to(device, non_blocking=True, memory_format=LAYOUT)
    return inputs.to(device, non_blocking=True)
