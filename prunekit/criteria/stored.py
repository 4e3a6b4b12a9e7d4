"""Scores in a file: what sparsify learned, kept for prune."""

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
    """The scores in a file, such as the row norms that sparsify saved.

    `path` is the file, or a directory with `scores.pt` or `sparsify/scores.pt` in it; None stands
    for the file beside the source model, which the prune stage fills in. It is read when scores
    are asked for, since the stage before may not have written it yet.
    """

    again: ClassVar[bool] = False
    path: Annotated[
        str | Path | None, "a file of scores, or its folder; null: beside the source model"
    ] = None

    @property
    def complete(self) -> bool:
        """Whether the file has been named."""
        return self.path is not None

    def beside(self, model: Path | None) -> Stored:
        """The scores beside the model file, unless others are given."""
        if self.path is not None or model is None:
            return self
        return replace(self, path=model.parent / "scores.pt")

    def files(self) -> Mapping[str, Path]:
        """The scores; nothing where there are none (yet)."""
        places = [] if self.path is None else _places(Path(self.path))
        return {"scores": places[0]} if places else {}

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """The groups that were penalised; ArtifactError when the network has no such group."""
        if self.path is None:
            raise ConfigError("criterion.path is not set; give the scores.pt of a sparsify stage")
        stored = load_scores(self.path)
        widths = {group.name: len(group.units) for group in graph.groups}
        for name, score in stored.items():
            if widths.get(name) != len(score):
                raise ArtifactError(
                    f"{self.path} has {len(score)} scores for {name}, which has "
                    f"{widths.get(name, 0)} units here; it belongs to another network, run "
                    "sparsify for this one"
                )
        return stored


def save_scores(path: str | Path, scores: Mapping[str, Tensor]) -> None:
    """Write scores to a file at once or not at all; refuses numbers that are not finite."""
    tensors = {name: score.detach().cpu().clone() for name, score in scores.items()}
    _check_values(Path(path), tensors)
    write_torch(Path(path), {"format": FORMAT, "scores": tensors})


def load_scores(path: str | Path) -> Scores:
    """Read what `save_scores` wrote; ArtifactError says what is wrong with any other file."""
    file = _find(Path(path))
    content = read_torch(file, mend="run sparsify again")
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ArtifactError(f"{file} is no file of scores ({FORMAT}); give the one of sparsify")
    scores = content.get("scores")
    _check_values(file, scores)
    return scores


def _places(path: Path) -> list[Path]:
    places = (path, path / "scores.pt", path / "sparsify" / "scores.pt")
    return [place for place in places if place.is_file()]


def _find(path: Path) -> Path:
    for place in _places(path):
        return place
    raise ArtifactError(f"{path} has no scores; run sparsify first, or choose another criterion")


def _check_values(file: Path, scores: object) -> None:
    if not isinstance(scores, dict) or not all(isinstance(s, Tensor) for s in scores.values()):
        raise ArtifactError(f"{file} does not hold one tensor of scores per group; make it again")
    for name, score in scores.items():
        if score.dim() != 1:
            raise ArtifactError(
                f"{file}: the scores of {name} have shape {tuple(score.shape)}, not one per unit"
            )
        if not bool(score.isfinite().all()):
            raise ArtifactError(f"{file}: the scores of {name} are not finite; train again")
