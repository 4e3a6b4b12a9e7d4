"""Checkpoints: a training run's whole state after an epoch, written so that it is never torn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunekit.errors import ArtifactError
from prunekit.torchfile import read_torch, write_torch

_KEYS = {"done", "history", "model", "optimizer", "solver"}
_NEWER = {"scaler"}  # absent in older files, which were made without one


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Replace the file at once; when the disk is full, the old one stays and ArtifactError says so.

    `state` holds tensors, numbers, text, lists and dicts only.
    """
    write_torch(path, state)


def load_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any]:
    """What `save_checkpoint` wrote, tensors on `device`; runs no code from the file."""
    state = read_torch(path, device, mend="delete it to start over")
    if not isinstance(state, dict) or set(state) - _NEWER != _KEYS:
        raise _foreign(path, "it is no training checkpoint")
    return {"scaler": {}, **state}


def mismatched(path: Path, error: object) -> ArtifactError:
    """The error for a checkpoint of another network, optimizer or solver."""
    reason = " ".join(str(error).split())
    return _foreign(path, f"it belongs to another training run: {reason[:200]}")


def _foreign(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"cannot continue from {path}: {reason}; delete it to start over")
