"""Settings that train on small sets of images for an epoch, and what their runs are."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from prunekit.build import build
from prunekit.stages.identity import identify

TINY = (
    "model.widths=[4,6,12]",
    "schedule.pretrain.epochs=1",
    "schedule.sparsify.epochs=1",
    "schedule.finetune.epochs=1",
)
MNIST = ("dataset=mnist", "dataset.val=20", *TINY)
TOYS = ("dataset.train=64", "dataset.val=16", "dataset.test=16", *TINY)


def reports(root: Path) -> dict[str, bytes]:
    """All reports below a directory, as they are on the disk."""
    found = sorted(root.rglob("report.json"))
    return {str(file.relative_to(root)): file.read_bytes() for file in found}


def identity_of(settings, start):
    """What a stage is that reads just these settings."""
    parts = {key: build(settings[key], key) for key in ("dataset", "selection") if key in settings}
    if "selection" in parts:
        parts["selection"] = parts["selection"].resolve_in(start.run)
    return identify(SimpleNamespace(**parts), settings, start)
