"""The stage that draws how the network sees test images: t-SNE of its features, by class."""

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
from prunekit.stages.network import check_fits, load_source, measure_accuracy, measure_size
from prunekit.stages.settings import Runtime
from prunekit.stages.stage import Stage

_SLOW = 3000  # images for which t-SNE takes more than ten seconds


@dataclass(frozen=True)
class DrawFeatures(Stage):
    """Writes features.csv (x, y, label) and features.png; the network stays as it is."""

    name = "features"
    features: Annotated[TSNE, "how features become points"]

    def work(self, stage_dir: StageDir, runtime: Runtime) -> Outcome:
        """Compute the features of test images, place them in the plane and draw them."""
        settings, data = self.features, self.data(runtime)
        _check_images(data)
        model = load_source(stage_dir.source, runtime).model
        check_fits(model, data)
        features = features_of(model, data, settings.images, settings.layer, runtime.device)
        count = len(features.labels)
        if count > _SLOW:
            complain(f"t-SNE of {count:,} images, which takes a while")
        points = settings.embed(features.values)
        accuracy = measure_accuracy(model, data, runtime)
        records = [
            {"x": float(x), "y": float(y), "label": label}
            for (x, y), label in zip(points, features.labels.tolist(), strict=True)
        ]
        write_csv(stage_dir.path / "features.csv", records)
        run, stage = stage_dir.run.path.resolve().name, stage_dir.source.parent.name
        title = f"{run}: {stage}, {accuracy['top1']:.2f} %"
        draw({title: Embedding.of(records)}, stage_dir.path / "features.png")
        metrics = {
            **accuracy,
            **measure_size(model, data),
            "layer": features.layer,
            "images": count,
            "width": features.values.shape[1],
            "silhouette": silhouette(features.values, features.labels),
            "silhouette_embedded": silhouette(points, features.labels),
        }
        return Outcome(metrics, (*data.notes, *_notes(settings, features)))


def _check_images(data: Data) -> None:
    if not data.test.size:
        raise ConfigError(
            "features draws test images and this dataset has none; choose dataset=..."
        )


def _notes(settings: TSNE, features: Features) -> list[str]:
    """Return a note where there are fewer images than requested, or all features are equal."""
    notes = []
    if len(features.labels) < settings.images:
        notes.append(
            f"the test set has {len(features.labels)} images of features.images={settings.images}"
        )
    if bool((features.values == features.values[0]).all()):
        notes.append(
            f"all images have the same features ({features.layer}): the points say nothing"
        )
    return notes
