"""The settings that belong to no group, and those of the machine that a command runs on."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch

from prunekit.errors import ConfigError
from prunekit.schema import Checked, Filled, Text, Whole, settings_of
from prunekit.validate import choice

Seed = Annotated[Whole, "seed of all random numbers"]
Source = Annotated[
    Text | None, "model file, stage or run to start from; null: the previous stage of this run"
]
Absorb = Annotated[
    Literal["auto", "maps", True, False],
    "prune: add constants of removed channels to the next bias; auto: known ones if all score zero",
]
ChannelSelections = Annotated[
    bool, "sparsify, prune: every norm layer gets its own selection of shared channels"
]
Diagnose = Annotated[
    bool, "prune: also measure without the constants, and with recomputed statistics"
]
NormStatistics = Annotated[
    Literal["kept", "recomputed"],
    "prune: batch-norm statistics; recomputed: from training images",
]
OverNorms = Annotated[
    bool, "prune: allow channels under layer norms to be removed; the result is not exact"
]
KeepZeroEntries = Annotated[bool, "finetune: zero weights stay zero (unstructured sparsity)"]


@dataclass(frozen=True, kw_only=True)
class Root(Checked):
    """The settings at the root of every config, beside the groups; each stage reads some."""

    seed: Seed = 0
    stage: Annotated[Text, "stage or command that is run"]
    pipeline: Annotated[Sequence[Text], Filled("[prune]"), "stages of `prunekit run`"]
    source: Source = None
    weights: Annotated[Text | None, "checkpoint that the dense network starts from"] = None
    absorb: Absorb = "auto"
    channel_selection: ChannelSelections = False
    diagnose: Diagnose = True
    statistics: NormStatistics = "kept"
    over_norms: OverNorms = False
    keep_zeros: KeepZeroEntries = False
    overwrite: Annotated[bool, "run stages with other settings again; equal ones are kept"] = False
    objectives: Annotated[
        Sequence[Text], "metrics of the last stage that a search optimises; none of test images"
    ] = ("val_top1",)
    root: Annotated[Text, "folder of all runs"] = "outputs"
    name: Annotated[Text, "name of the run and of its folder"]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Root:
        """Return the part of all settings that stands at the root; raises ConfigError."""
        values = {setting.name: settings[setting.name] for setting in settings_of(cls)}
        texts = {k: str(values[k]) for k in ("root", "name", "source") if values[k] is not None}
        return cls(**{**values, **texts})  # a run may be called 0, which YAML reads as a number


@dataclass(frozen=True)
class Runtime(Checked):
    """The device and threads of a run, which are never part of its identity.

    `device` is a torch device or `auto`. With `threads` 0, torch chooses the number. `trust` lists
    dotted paths of your own model classes that model files may name.
    """

    device: Annotated[Text, "auto, cpu, cuda, or one GPU: cuda:1"] = "auto"
    threads: Annotated[Whole, "CPU threads; 0: torch decides"] = 0
    trust: Annotated[
        Sequence[Text], "dotted paths of your own model classes that model files may name"
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
        """Set threads and all random states; flush denormals, which slow CPUs."""
        if self.threads:
            torch.set_num_threads(self.threads)
        torch.set_flush_denormal(True)
        random.seed(seed)
        torch.manual_seed(seed)
