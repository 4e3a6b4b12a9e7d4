"""Checkpoints: a training run's whole state after an epoch, written so that it is never torn."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunekit.atomic_write import assure, set_aside
from prunekit.errors import ArtifactError, DamageError
from prunekit.torch_io import read_torch, write_torch

log = logging.getLogger(__name__)
_OLD = {"done", "history", "model", "optimizer", "solver"}  # what earlier versions wrote as well
_KEYS = _OLD | {"scaler", "identity"}


@dataclass(frozen=True)
class Checkpoint:
    """The file that keeps the progress of a training run, and the `identity` of that run.

    The identity is any text that is equal for equal runs: only what was saved under the same one
    is continued.
    """

    path: Path
    identity: str

    def phase(self, name: str) -> Checkpoint:
        """That of one phase of the run: `last-<name>.pt` beside `last.pt`."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        return Checkpoint(path, f"{self.identity} {name}")

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file at once; when the disk is full, the old one stays: ArtifactError.

        `state` holds tensors, numbers, text, lists and dicts only.
        """
        write_torch(self.path, {**state, "identity": self.identity})

    def load(self, device: torch.device | str) -> dict[str, Any] | None:
        """What was saved, tensors on `device`; None where there is nothing to continue from.

        A damaged file, and one that belongs to another run, are set aside under another name, and
        a warning says so. Raises ArtifactError for a file that could run code or was written by an
        earlier version of prunekit, which did not note whose it is.
        """
        assure(self.path)
        if not self.path.exists():
            return None
        try:
            state = read_torch(self.path, device, mend="delete it to start over")
        except DamageError:
            return self._without("is damaged", "damaged")
        keys = {*state} if isinstance(state, dict) else set()
        if keys >= _OLD and "identity" not in keys:
            raise ArtifactError(
                f"{self.path} was written by an earlier version of prunekit, which did not note "
                "what it belongs to; delete it to start over"
            )
        if keys != _KEYS:
            return self._without("is no checkpoint of training", "foreign")
        if state.pop("identity") != self.identity:
            return self._without("belongs to another run", "foreign")
        return state

    def mismatched(self, error: object) -> ArtifactError:
        """The error for a file whose content does not fit the network, optimizer or solver."""
        reason = " ".join(str(error).split())[:200]
        return ArtifactError(
            f"cannot continue from {self.path}: it belongs to another training run: {reason}; "
            "delete it to start over"
        )

    def _without(self, fault: str, ending: str) -> None:
        aside = set_aside(self.path, ending)
        log.warning(
            "%s %s and was set aside as %s; training starts anew",
            *(os.path.relpath(self.path), fault, aside.name),
        )
