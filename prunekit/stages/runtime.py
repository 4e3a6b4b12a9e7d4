"""The machine's side of a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch

from prunekit.errors import ConfigError
from prunekit.schema import Checked, Text, Whole
from prunekit.validate import choice


@dataclass(frozen=True)
class Runtime(Checked):
    """The machine's side of a run, never part of its identity.

    `device` is a torch device or `auto`; `threads` 0 leaves the choice to torch. `trust` lists
    dotted paths of your own model classes that model files may name.
    """

    device: Annotated[Text, "auto, cpu, cuda, or one GPU: cuda:1"] = "auto"
    threads: Annotated[Whole, "of the CPU; 0: torch decides"] = 0
    trust: Annotated[
        Sequence[Text], "your own model classes that model files may name, as dotted paths"
    ] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if torch.cuda.is_available() else "cpu")
        choice("device", self.kind, ("cpu", "cuda"))
        if self.kind == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device=cuda, but torch sees no GPU; use runtime.device=cpu")

    @property
    def kind(self) -> str:
        """The type of the device: cpu or cuda."""
        return self.device.split(":")[0]

    def apply(self, seed: int) -> None:
        """Set threads and all global random states; denormals are flushed, they slow CPUs."""
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        random.seed(seed)
        torch.manual_seed(seed)
