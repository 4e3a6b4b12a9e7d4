"""The section of one run: its networks, stages, notes and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from prunekit.reporting.columns import compare
from prunekit.reporting.embedding import draw
from prunekit.reporting.layer_profiles import layer_costs, scores
from prunekit.reporting.page.figures import painted
from prunekit.reporting.page.markup import Markup, element, grid
from prunekit.reporting.page.overview import picture
from prunekit.reporting.page.run_files import Run
from prunekit.reporting.plots import convergence, filters, widths

_TRAINED = ("pretrain", "sparsify", "finetune")


def detail(run: Run, opened: bool) -> Markup:
    """One run, folded unless `opened`; a part appears where there is data for it."""
    pictures = [made for made in _pictures(run) if made]
    return element(
        "details",
        element("summary", run.name),
        *_networks(run),
        *_notes(run),
        element("div", *pictures, class_="pictures"),
        open="open" if opened else None,
    )


def _networks(run: Run) -> Iterator[Markup]:
    frame = run.comparison
    if frame is not None:
        headings, lines = compare(frame.to_dict("records"))
        yield grid(headings, lines, (False, *(True for _ in headings[1:])))


def _notes(run: Run) -> Iterator[Markup]:
    """What the stages had to say."""
    said = [(name, note) for name, report in run.reports.items() for note in report.notes]
    if said:
        yield element(
            "ul",
            *(element("li", element("b", f"{name}: "), str(note)) for name, note in said),
            class_="notes",
        )


def _pictures(run: Run) -> Iterator[Markup | None]:
    """Every picture there is data for; neighbours fit side by side."""
    show = partial(picture, whose=run.name)
    if run.plan:
        before = {name: group["of"] for name, group in run.plan.items()}
        after = {name: group["kept"] for name, group in run.plan.items()}
        yield show(partial(widths, before, after), "Channels before and after")
    if run.scores:
        yield show(partial(scores, run.scores, run.kept), "Norms of units after sparsifying")
    histories = {stage: run.history(stage) for stage in _TRAINED}
    known = {stage: frame for stage, frame in histories.items() if frame is not None}
    if known:
        yield show(partial(convergence, known), "Sparsity, loss and error by epoch")
    if run.layers is not None:
        yield show(partial(layer_costs, run.layers), "Where multiply-adds and milliseconds go")
    if (pair := run.filters) is not None:
        yield show(partial(filters, *pair), "Filters of the first layer", painted)
    if (points := run.embedding) is not None:
        says = "Test images as the network sees them (t-SNE)"
        yield show(partial(draw, {"": points}), says, painted)
