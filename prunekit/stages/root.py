"""The settings at the root of every config, beside the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from prunekit.schema import Checked, Filled, Text, Whole


@dataclass(frozen=True, kw_only=True)
class Root(Checked):
    """What is asked for beside the groups; each stage reads its part of it."""

    seed: Annotated[Whole, "seed of everything that is drawn"] = 0
    stage: Annotated[Text, "what the command does"]
    pipeline: Annotated[Sequence[Text], Filled("[prune]"), "what `prunekit run` does, in order"]
    source: Annotated[
        Text | None, "a model file, stage or run to start from; null: the stage before, in this run"
    ] = None
    weights: Annotated[Text | None, "a checkpoint that the dense network starts from"] = None
    absorb: Annotated[
        Literal["auto", "maps", True, False],
        "prune: moves on what removed channels emit; auto: unless all score zero",
    ] = "auto"
    channel_selection: Annotated[
        bool, "sparsify, prune: norms that others read get a selection of channels"
    ] = False
    diagnose: Annotated[
        bool, "prune: accuracy without constants, and with statistics recomputed"
    ] = True
    statistics: Annotated[
        Literal["kept", "recomputed"], "prune: those of batch norms; recomputed: on training images"
    ] = "kept"
    over_norms: Annotated[
        bool, "prune: channels under layer norms can go too; not exact, measured"
    ] = False
    keep_zeros: Annotated[bool, "finetune: zero entries stay zero (unstructured sparsity)"] = False
    overwrite: Annotated[bool, "deletes what the stage's directory holds and starts anew"] = False
    objectives: Annotated[
        Sequence[Text], "what a search is told of the last stage; never test images"
    ] = ("val_top1",)
    root: Annotated[Text, "folder of all runs"] = "outputs"
    name: Annotated[Text, "of the run, and of its folder"]
