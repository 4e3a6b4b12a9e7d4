"""The settings at the root of every config, beside the groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from prunekit.schema import Checked, Filled, Text, Whole, settings_of

Seed = Annotated[Whole, "seed of everything that is drawn"]
Source = Annotated[
    Text | None, "a model file, stage or run to start from; null: the stage before, in this run"
]
Absorb = Annotated[
    Literal["auto", "maps", True, False],
    "prune: moves on what removed channels emit; auto: unless all score zero",
]
ChannelSelections = Annotated[
    bool, "sparsify, prune: norms that others read get a selection of channels"
]
Diagnose = Annotated[bool, "prune: accuracy without constants, and with statistics recomputed"]
NormStatistics = Annotated[
    Literal["kept", "recomputed"], "prune: those of batch norms; recomputed: on training images"
]
OverNorms = Annotated[bool, "prune: channels under layer norms can go too; not exact, measured"]
KeepZeroEntries = Annotated[bool, "finetune: zero entries stay zero (unstructured sparsity)"]


@dataclass(frozen=True, kw_only=True)
class Root(Checked):
    """What is asked for beside the groups; each stage reads its part of it."""

    seed: Seed = 0
    stage: Annotated[Text, "what the command does"]
    pipeline: Annotated[Sequence[Text], Filled("[prune]"), "what `prunekit run` does, in order"]
    source: Source = None
    weights: Annotated[Text | None, "a checkpoint that the dense network starts from"] = None
    absorb: Absorb = "auto"
    channel_selection: ChannelSelections = False
    diagnose: Diagnose = True
    statistics: NormStatistics = "kept"
    over_norms: OverNorms = False
    keep_zeros: KeepZeroEntries = False
    overwrite: Annotated[bool, "makes stages with other settings anew; equal ones stay"] = False
    objectives: Annotated[
        Sequence[Text], "what a search is told of the last stage; never test images"
    ] = ("val_top1",)
    root: Annotated[Text, "folder of all runs"] = "outputs"
    name: Annotated[Text, "of the run, and of its folder"]

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Root:
        """Read it from all settings; raises ConfigError."""
        told = {one.name: settings[one.name] for one in settings_of(cls)}
        places = {k: str(told[k]) for k in ("root", "name", "source") if told[k] is not None}
        return cls(**{**told, **places})  # a run may be called 0
