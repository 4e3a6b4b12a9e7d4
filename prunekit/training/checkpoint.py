"""Checkpoints: a training run's whole state after an epoch, written so that it is never torn."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from prunekit.atomic import replacing
from prunekit.errors import ArtifactError

_KEYS = {"done", "history", "model", "optimizer", "solver"}


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the file at once; when the disk is full, the old one stays and ArtifactError says so.

    `state` holds tensors, numbers, text, lists and dicts only.
    """
    with replacing(path) as draft:
        torch.save(state, draft)


def load_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any]:
    """What `save_checkpoint` wrote, tensors on `device`; runs no code from the file."""
    try:
        with warnings.catch_warnings():  # about pickles that are no checkpoint of ours
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError) as error:
        raise _foreign(path, "it is damaged or no checkpoint") from error
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(state, dict) or set(state) != _KEYS:
        raise _foreign(path, "it is no training checkpoint")
    return state


def mismatched(path: Path, error: object) -> ArtifactError:
    """The error for a checkpoint of another network, optimizer or solver."""
    reason = " ".join(str(error).split())
    return _foreign(path, f"it belongs to another training run: {reason[:200]}")


def _foreign(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"cannot continue from {path}: {reason}; delete it to start over")
