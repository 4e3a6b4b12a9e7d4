"""The machine's side of a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prunekit.checks import choice, integer
from prunekit.errors import ConfigError


@dataclass(frozen=True)
class Runtime:
    """The machine's side of a run, never part of its identity.

    `device` is a torch device or `auto`; `threads` 0 leaves the choice to torch. `trust` lists
    dotted paths of your own model classes that model files may name.
    """

    device: str = "auto"
    threads: int = 0
    trust: Sequence[str] = ()

    def __post_init__(self) -> None:
        integer("runtime.threads", self.threads, at_least=0)
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if torch.cuda.is_available() else "cpu")
        kind = str(self.device).split(":")[0]
        choice("runtime.device", kind, ("cpu", "cuda"))
        if kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError("runtime.device=cuda, but torch sees no GPU; use runtime.device=cpu")

    @property
    def kind(self) -> str:
        """The type of the device: cpu or cuda."""
        return str(self.device).split(":")[0]

    def apply(self, seed: int) -> None:
        """Set threads and all global random states; denormals are flushed, they slow CPUs."""
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        random.seed(seed)
        torch.manual_seed(seed)
