"""Checkpoints: the complete state of a training run after a step, written atomically."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prunekit.atomic_write import assure, set_aside
from prunekit.errors import ArtifactError, DamageError
from prunekit.torch_io import read_torch, write_torch

log = logging.getLogger(__name__)
_OLD_KEYS = {"done", "history", "model", "optimizer", "solver"}  # earlier versions wrote only these
_KEYS = _OLD_KEYS | {"scaler", "identity"}  # those within an epoch have their progress, too


@dataclass(frozen=True)
class Checkpoint:
    """The file with the progress of a training run, and the `identity` of that run.

    The identity is any text that is equal for equal runs; training only continues from a file that
    was saved under the same identity. Within an epoch the state is saved every `interval` seconds.
    """

    path: Path
    identity: str
    interval: float = 300.0

    def phase(self, name: str) -> Checkpoint:
        """Return the checkpoint of one phase of the run: `last-<name>.pt` beside `last.pt`."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        return replace(self, path=path, identity=f"{self.identity} {name}")

    def save(self, state: dict[str, Any]) -> None:
        """Replace the file atomically; raises ArtifactError, and keeps it, when the disk is full.

        `state` may hold tensors, numbers, text, lists and dicts.
        """
        write_torch(self.path, {**state, "identity": self.identity})

    def load(self, device: torch.device | str) -> dict[str, Any] | None:
        """Read the saved state, with tensors on `device`; return None where there is none.

        A file that is damaged or belongs to another run is set aside under another name, with a
        warning. Raises ArtifactError for a file that could run code, and for one of an earlier
        version of prunekit, which has no identity.
        """
        assure(self.path)
        if not self.path.exists():
            return None
        try:
            state = read_torch(self.path, device, mend="delete it to start over")
        except DamageError:
            self._set_aside("is damaged", "damaged")
            return None
        keys = {*state} if isinstance(state, dict) else set()
        if keys >= _OLD_KEYS and "identity" not in keys:
            raise ArtifactError(
                f"{self.path} was written by an earlier version of prunekit, which did not note "
                "what it belongs to; delete it to start over"
            )
        if keys - {"progress"} != _KEYS or not _has_kinds(state):
            self._set_aside("is no checkpoint of training", "foreign")
            return None
        if state.pop("identity") != self.identity:
            self._set_aside("belongs to another run", "foreign")
            return None
        return {"progress": None, **state}

    def mismatched(self, reason: str) -> ArtifactError:
        """Return the error for a state that does not fit the network, optimizer or solver."""
        return ArtifactError(
            f"cannot continue from {self.path}: it belongs to another training run: {reason}; "
            "delete it to start over"
        )

    def _set_aside(self, fault: str, ending: str) -> None:
        path = set_aside(self.path, ending)
        log.warning(
            "%s %s and was set aside as %s; training starts anew",
            *(os.path.relpath(self.path), fault, path.name),
        )


def _has_kinds(state: dict[str, Any]) -> bool:
    """Return whether the metrics of epochs are dicts with names, and `done` is true or false."""
    history = state["history"]
    return (
        isinstance(state["done"], bool)
        and isinstance(history, list)
        and all(
            isinstance(line, dict) and all(isinstance(k, str) for k in line) for line in history
        )
    )
