"""Draw how the network sees test images: t-SNE of its features, classes in colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from prunekit.console import complain
from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.measure import TSNE, Features, features_of, silhouette
from prunekit.reporting.embedding import Embedding, draw
from prunekit.runs.files import write_csv
from prunekit.runs.report import Outcome
from prunekit.runs.rundir import StageDir
from prunekit.stages.common import check_fits, counts, load_source, quality
from prunekit.stages.runtime import Runtime
from prunekit.stages.spec import Stage

_LONG = 3000  # so many images take t-SNE more than ten seconds


@dataclass(frozen=True)
class DrawFeatures(Stage):
    """Write features.csv (x, y, label) and features.png; the network stays as it is."""

    name = "features"
    features: Annotated[TSNE, "how features become points"]

    def work(self, place: StageDir, runtime: Runtime) -> Outcome:
        """Draw test images as the network sees them."""
        plan, data = self.features, self.data(runtime)
        _check_images(data)
        model = load_source(place.source, runtime).model
        check_fits(model, data)
        found = features_of(model, data, plan.images, plan.layer, runtime.device)
        if len(found.labels) > _LONG:
            complain(f"t-SNE of {len(found.labels):,} images, which takes a while")
        points = plan.place(found.values)
        known = quality(model, data, runtime)
        rows = [
            {"x": float(x), "y": float(y), "label": label}
            for (x, y), label in zip(points, found.labels.tolist(), strict=True)
        ]
        write_csv(place.path / "features.csv", rows)
        title = (
            f"{place.run.path.resolve().name}: {place.source.parent.name}, {known['top1']:.2f} %"
        )
        draw({title: Embedding.of(rows)}, place.path / "features.png")
        metrics = {
            **known,
            **counts(model, data),
            "layer": found.layer,
            "images": len(rows),
            "width": found.values.shape[1],
            "silhouette": silhouette(found.values, found.labels),
            "silhouette_embedded": silhouette(points, found.labels),
        }
        return Outcome(metrics, (*data.notes, *_notes(plan, found)))


def _check_images(data: Data) -> None:
    if not data.test.size:
        raise ConfigError(
            "features draws test images and this dataset has none; choose dataset=..."
        )


def _notes(plan: TSNE, found: Features) -> list[str]:
    """Where the picture is of less than was asked for, or of nothing."""
    notes = []
    if len(found.labels) < plan.images:
        notes.append(
            f"the test set has {len(found.labels)} images of features.images={plan.images}"
        )
    if bool((found.values == found.values[0]).all()):
        notes.append(f"all images have the same features ({found.layer}): the points say nothing")
    return notes
