"""The figures of the page: drawn as for a file, then embedded as svg or png."""

from __future__ import annotations

import base64
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from prunekit.errors import ArtifactError
from prunekit.reporting import refitting
from prunekit.reporting.embedding import draw
from prunekit.reporting.page.run_files import Run
from prunekit.reporting.pareto import fronts
from prunekit.reporting.plots import convergence, filters, layer_costs, scores, widths
from prunekit.reporting.tables import to_dicts

if TYPE_CHECKING:
    from pandas import DataFrame

Draw = Callable[[Path], object]

_COLOURS = 96  # of a png: enough for points in a dozen colours with soft edges
_MAX_LINES = 7  # runs that lines in one panel can distinguish
_TRAINING_STAGES = ("pretrain", "sparsify", "finetune")


@dataclass(frozen=True)
class PageFigure:
    """The html of a picture, and its caption."""

    picture: Markup
    caption: str


def tradeoff_figure(part: DataFrame) -> PageFigure | None:
    """Draw accuracy against sizes, if there are several runs of one test set."""
    if len(part) == 1:
        return None
    return _svg(partial(fronts, part, costs=("macs", "params")), "Accuracy against size")


def latency_figures(part: DataFrame) -> list[PageFigure | None]:
    """Draw accuracy against milliseconds, one figure for each way in which they were measured."""
    if len(part) == 1 or "timing" not in part:
        return []
    figures = []
    for timing, group in part.groupby("timing", sort=False):
        group = group.assign(cpu_share=100 / group["speedup"].astype(float))
        times = partial(fronts, group, costs=("cpu_share", "cpu_ms", "gpu_ms"))
        figures.append(_svg(times, f"Accuracy against latency: {timing}"))
    return figures


def convergence_figure(runs: Sequence[Run]) -> PageFigure | None:
    """Draw sparsity and loss by epoch of the first runs that were sparsified, if there are two."""
    histories = {run.name: run.history("sparsify") for run in runs[: 4 * _MAX_LINES]}
    frames = {name: frame for name, frame in histories.items() if frame is not None}
    if len(frames) < 2:
        return None
    first = dict(list(frames.items())[:_MAX_LINES])
    caption = "Sparsity and loss while sparsifying"
    caption += f": the first {_MAX_LINES} runs of the table" if len(runs) > _MAX_LINES else ""
    return _svg(partial(convergence, _shorten(first)), caption)


def embedding_figure(runs: Sequence[Run]) -> PageFigure | None:
    """Draw t-SNE embeddings of the first runs side by side, if there are two."""
    embeddings = {run.name: run.embedding for run in runs[: 2 * _MAX_LINES]}
    panels = {name: points for name, points in embeddings.items() if points is not None}
    if len(panels) < 2:
        return None
    return _png(partial(draw, panels), "t-SNE of test images", width=1000)


def run_figures(run: Run) -> Iterator[PageFigure | None]:
    """Draw every figure of one run for which there is data; None if it cannot be drawn."""
    svg, png = partial(_svg, run=run.name), partial(_png, run=run.name)
    if run.plan:
        before = {name: group["of"] for name, group in run.plan.items()}
        after = {name: group["kept"] for name, group in run.plan.items()}
        yield svg(partial(widths, before, after), "Channels before and after")
    if run.refitted is not None:
        errors = partial(refitting.draw, to_dicts(run.refitted))
        yield svg(errors, "Errors of layers behind the cut, before and after they were refitted")
    if run.scores:
        yield svg(partial(scores, run.scores, run.kept), "Norms of units after sparsifying")
    histories = {stage: run.history(stage) for stage in _TRAINING_STAGES}
    frames = {stage: frame for stage, frame in histories.items() if frame is not None}
    if frames:
        yield svg(partial(convergence, frames), "Sparsity, loss and error by epoch")
    if run.layers is not None:
        yield svg(partial(layer_costs, run.layers), "Where multiply-adds and milliseconds go")
    if (weights := run.filters) is not None:
        yield png(partial(filters, *weights), "Filters of the first layer")
    if (points := run.embedding) is not None:
        yield png(partial(draw, {"": points}), "Test images as the network sees them (t-SNE)")


def _svg(draw: Draw, caption: str, run: str = "") -> PageFigure | None:
    """Return a figure as svg with text as text; None if there is nothing to draw."""
    import matplotlib

    description = f"{caption}, {run}" if run else caption
    # the salt gives every figure of the page its own ids
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": description}):
        content = _drawn(draw, "svg")
    if content is None:
        return None
    return PageFigure(_embedded(content.decode(), description), caption)


def _png(draw: Draw, caption: str, run: str = "", width: int = 640) -> PageFigure | None:
    """Return a figure as png in few colours, for thousands of points; None if there are none."""
    from PIL import Image

    content = _drawn(draw, "png")
    if content is None:
        return None
    image = Image.open(io.BytesIO(content)).convert("RGB")
    if image.width > width:
        size = (width, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    small = io.BytesIO()
    image.quantize(_COLOURS).save(small, "png", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
    description = f"{caption}, {run}" if run else caption
    element = Markup('<img src="{}" alt="{}" width="{}">')
    return PageFigure(element.format(source, description, image.width), caption)


def _drawn(draw: Draw, ending: str) -> bytes | None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"figure.{ending}"
        try:
            draw(file)
        except ArtifactError:
            return None
        return file.read_bytes()


def _embedded(text: str, description: str) -> Markup:
    """Return the svg element without file header, metadata, and ids that nothing refers to."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    opening, rest = text.split(">", 1)
    return Markup(f'{opening} role="img"><title>{escape(description)}</title>{rest}')


def _shorten(frames: Mapping[str, DataFrame]) -> dict[str, DataFrame]:
    """Return the frames with names that lack the common beginning of all."""
    common = os.path.commonprefix(list(frames))  # noqa: RUF071 (letter by letter is meant)
    cut = max(common.rfind(sign) for sign in "/,") + 1
    return {name[cut:]: frame for name, frame in frames.items()}
