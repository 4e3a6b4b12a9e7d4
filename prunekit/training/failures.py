"""Errors of torch during a pass over batches, as one line that says how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.data import Batches
from prunekit.errors import DataError, TrainingError

_SEARCH_BATCH = 256  # examples that are read at once in search of one that is not finite


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross entropy; DataError for labels that the network has no output for."""
    try:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    except IndexError as error:  # only on the CPU; the labels of a data set are checked before
        classes = logits.shape[1] if logits.dim() > 1 else 0
        raise DataError(
            f"labels reach from {int(labels.min())} to {int(labels.max())}, but the network has "
            f"{classes} outputs; number the classes from 0, or give the network more outputs"
        ) from error


@contextmanager
def explain_single_examples(label: str) -> Iterator[None]:
    """Raise TrainingError where a batch norm gets one value per channel, which has no variance."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TrainingError(
            f"{label}: a batch norm cannot train on a batch of one example whose maps are 1 x 1; "
            "set the batch of the schedule above 1, and leave no batch of one in data of your own"
        ) from error


def refuse_bad_inputs(batches: Batches, part: str) -> None:
    """Raise DataError that names the first input with a value that is not finite, if any.

    This reads all examples; it is called where a loss is not finite, to find out whether that is
    the fault of the data.
    """
    first = 0
    for inputs, _ in batches.epoch(_SEARCH_BATCH, None):
        finite = torch.isfinite(inputs).flatten(1).all(dim=1)
        if not bool(finite.all()):
            index = first + int((~finite).nonzero()[0])
            raise DataError(
                f"{part} input {index} holds nan or infinite values; mend or remove that example"
            )
        first += len(inputs)
