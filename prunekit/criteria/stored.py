"""Scores in a file, which sparsify writes and prune reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from torch import Tensor, nn

from prunekit.criteria.base import CRITERIA, Criterion, Scores
from prunekit.errors import ArtifactError, ConfigError
from prunekit.torch_io import read_torch, write_torch

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph

FORMAT = "prunekit-scores-1"


@CRITERIA.register("stored")
@dataclass(frozen=True)
class Stored(Criterion):
    """The scores in a file, such as the row norms that sparsify saves.

    `path` is the file, or a directory with `scores.pt` or `sparsify/scores.pt` in it. None stands
    for the file beside the source model, which the prune stage fills in. The file is only read when
    scores are needed, since an earlier stage may still have to write it.
    """

    rescorable: ClassVar[bool] = False
    path: Annotated[
        str | Path | None, "a file of scores, or its folder; null: beside the source model"
    ] = None

    @property
    def resolved(self) -> bool:
        """Return whether the path is set."""
        return self.path is not None

    def resolve_beside(self, model: Path | None) -> Stored:
        """Return the criterion with the `scores.pt` beside the model, unless `path` is set."""
        if self.path is not None or model is None:
            return self
        return replace(self, path=model.parent / "scores.pt")

    def files(self) -> Mapping[str, Path]:
        """Return the file of scores, or nothing while it does not exist."""
        files = [] if self.path is None else _existing_files(Path(self.path))
        return {"scores": files[0]} if files else {}

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Read the scores; raises ArtifactError when they do not fit the network's groups."""
        if self.path is None:
            raise ConfigError("criterion.path is not set; give the scores.pt of a sparsify stage")
        scores = load_scores(self.path)
        widths = {group.name: len(group.units) for group in graph.groups}
        for name, score in scores.items():
            if widths.get(name) != len(score):
                raise ArtifactError(
                    f"{self.path} has {len(score)} scores for {name}, which has "
                    f"{widths.get(name, 0)} units here; it belongs to another network, run "
                    "sparsify for this one"
                )
        return scores


def save_scores(path: str | Path, scores: Mapping[str, Tensor]) -> None:
    """Write scores to a file atomically; raises ArtifactError for numbers that are not finite."""
    tensors = {name: score.detach().cpu().clone() for name, score in scores.items()}
    write_torch(Path(path), {"format": FORMAT, "scores": _validate(Path(path), tensors)})


def load_scores(path: str | Path) -> Scores:
    """Read what `save_scores` wrote; raises ArtifactError for any other file."""
    file = _find(Path(path))
    content = read_torch(file, mend="run sparsify again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{file} is no file of scores ({FORMAT}); give the one of sparsify")
    return _validate(file, content.get("scores"))


def _existing_files(path: Path) -> list[Path]:
    candidates = (path, path / "scores.pt", path / "sparsify" / "scores.pt")
    return [file for file in candidates if file.is_file()]


def _find(path: Path) -> Path:
    for file in _existing_files(path):
        return file
    raise ArtifactError(f"{path} has no scores; run sparsify first, or choose another criterion")


def _validate(file: Path, scores: object) -> Scores:
    """Return the scores; raises ArtifactError unless they are finite vectors by name."""
    if not isinstance(scores, dict) or not all(isinstance(s, Tensor) for s in scores.values()):
        raise ArtifactError(f"{file} does not hold one tensor of scores per group; make it again")
    for name, score in scores.items():
        if score.dim() != 1:
            raise ArtifactError(
                f"{file}: the scores of {name} have shape {tuple(score.shape)}, not one per unit"
            )
        if not bool(score.isfinite().all()):
            raise ArtifactError(f"{file}: the scores of {name} are not finite; train again")
    return scores
