"""Similarity of filters by what they do to classes: an option of ours, not published."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prunekit.console import track
from prunekit.data import Batches
from prunekit.errors import ConfigError
from prunekit.methods.gram_lasso.calibration import Calibration, listening
from prunekit.methods.gram_lasso.features import channel_maps
from prunekit.modes import consulting
from prunekit.schema import Checked, Count


@dataclass(frozen=True)
class ClassProfiles(Checked):
    """Ties filters together by their class profiles, in place of their Gram matrices.

    A profile is the mean output over positions and over the examples of each class, from as many
    examples as `calibration` says, `batch` at a time. Two profiles are as similar as they are
    correlated, so the sign counts. The regression itself stays as it is.
    """

    calibration: Annotated[Calibration, "which images"] = field(
        default_factory=lambda: Calibration(count=2000)
    )
    batch: Annotated[Count, "images in one batch"] = 100

    @torch.no_grad()
    def of(
        self,
        model: nn.Module,
        batches: Batches,
        device: torch.device | str,
        layers: Collection[str],
    ) -> dict[str, Tensor]:
        """Layer -> (filters, filters), double, on the CPU; zeros for filters without a profile."""
        indices = self.calibration.indices(batches)
        present, classes = batches.labels.cpu()[indices].unique(return_inverse=True)
        if len(present) < 3:
            raise ConfigError(
                f"class profiles need examples of three classes and there are {len(present)}; use "
                "other data, or leave similarity out"
            )
        sums = _Sums()
        with consulting(model):
            picked = batches.pick(indices, self.batch)
            parts = zip(picked, classes.split(self.batch), strict=True)
            for (inputs, _), labels in track(
                parts, "class profiles", -(-len(indices) // self.batch)
            ):
                sums.labels = F.one_hot(labels, len(present)).double()
                with listening(model, layers, sums):
                    model(inputs.to(device))
        counts = classes.bincount().double()
        return {name: correlations(total / counts) for name, total in sums.totals.items()}


class _Sums:
    """Mean outputs over positions, summed over the examples of each class, (filters, classes)."""

    def __init__(self) -> None:
        self.totals: dict[str, Tensor] = {}
        self.labels = torch.zeros(0, 0)

    def __call__(self, name: str, layer: nn.Module, before: Tensor, after: Tensor) -> None:
        means = channel_maps(layer, after).values.mean(2, dtype=torch.float64).cpu()
        self.totals[name] = self.totals.get(name, 0) + means @ self.labels


def correlations(profiles: Tensor) -> Tensor:
    """Pearson correlations of rows; zero for rows that are constant, up to rounding."""
    centred = profiles - profiles.mean(1, keepdim=True)
    norms = centred.norm(dim=1)
    flat = norms <= 1e-12 * profiles.norm(dim=1)
    unit = torch.where(flat[:, None], 0.0, centred / norms[:, None])
    found = (unit @ unit.T).clamp_(-1, 1)
    found.diagonal().copy_(~flat)
    return found
