"""Sections about all runs of a data set, and about the whole page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from prunekit.errors import ArtifactError
from prunekit.runs.columns import printed
from prunekit.runs.embedding import draw
from prunekit.runs.fronts import COSTS, fronts
from prunekit.runs.page.found import Run
from prunekit.runs.page.markup import Markup, element, grid, row
from prunekit.runs.page.pictures import Draw, drawn, painted
from prunekit.runs.plots import convergence

if TYPE_CHECKING:
    from pandas import DataFrame

_TOGETHER = 7  # runs that lines in one panel can tell apart
_COMPARED = 100  # runs whose settings are set side by side
_KEYS = 40  # settings in which they differ, at most
_NAMED = 200  # stages that are left out, by name
_NOT_RECORDED = "command not recorded: made before reports kept it"


def results(part: DataFrame, runs: Sequence[Run]) -> Iterator[Markup]:
    """The table: a line a run, and the command that makes it again under it."""
    names = [run.name for run in runs]
    shown = part.set_index("run", drop=False).loc[names]
    cells = printed(shown)
    looks = ["num" if numeric else None for numeric in cells.numeric]
    head = element("thead", row("th", ("", *cells.headings), (None, *looks)))
    bodies = [
        element(
            "tbody",
            row("td", ("●" if run.on_front else "", *line), ("mark", *looks)),
            _command(run, len(line)),
        )
        for run, line in zip(runs, cells.lines, strict=True)
    ]
    yield element("div", element("table", head, *bodies, class_="sortable"), class_="wide")
    yield element(
        "p",
        "● no other setting here has both a higher accuracy and fewer multiply-adds (means over "
        "seeds). Those first, then by accuracy; a click on a heading sorts by it.",
        class_="note",
    )


def tradeoffs(part: DataFrame) -> Iterator[Markup]:
    """Accuracy against sizes, and against milliseconds for each way in which those were timed."""
    sizes = picture(partial(fronts, part, costs=("macs", "params")), "Accuracy against size")
    if sizes:
        yield element("h3", "Trade-off")
        yield sizes
    timed = part.dropna(subset=["timing"]) if "timing" in part else part.iloc[:0]
    groups = list(timed.groupby("timing", sort=False))
    for timing, group in groups:
        costs = [cost for cost in ("cpu_ms", "gpu_ms") if cost in COSTS]
        made = picture(partial(fronts, group, costs=costs), f"Accuracy against latency: {timing}")
        yield from [made] if made else []
    if len(groups) > 1:
        text = (
            "Latency was measured in different ways, which are not comparable: a figure for each."
        )
        yield element("p", text, class_="note")


def convergence_of(runs: Sequence[Run]) -> Iterator[Markup]:
    """Sparsity and loss by epoch of the first runs that were sparsified."""
    frames = {run.name: run.history("sparsify") for run in runs[: 4 * _TOGETHER]}
    known = {name: frame for name, frame in frames.items() if frame is not None}
    if len(known) < 2:
        return
    first = dict(list(known.items())[:_TOGETHER])
    says = "Sparsity and loss while sparsifying"
    says += f": the first {_TOGETHER} runs of the table" if len(runs) > _TOGETHER else ""
    made = picture(partial(convergence, _shortened(first)), says)
    if made:
        yield element("h3", "Convergence")
        yield made


def embeddings(runs: Sequence[Run]) -> Iterator[Markup]:
    """t-SNE of several runs side by side."""
    found = {run.name: run.embedding for run in runs[: 2 * _TOGETHER]}
    panels = {name: one for name, one in found.items() if one is not None}
    if len(panels) < 2:
        return
    made = picture(partial(draw, panels), "t-SNE of test images", partial(painted, width=1000))
    if made:
        yield element("h3", "Features")
        yield made


def differences(runs: Sequence[Run]) -> Iterator[Markup]:
    """Settings in which runs differ, a line a run."""
    compared = runs[:_COMPARED]
    if len(compared) < 2:
        return
    keys = list(dict.fromkeys(key for run in compared for key in run.settings))
    absent = object()
    differing = [k for k in keys if len({str(r.settings.get(k, absent)) for r in compared}) > 1]
    if not differing:
        return
    yield element("h3", "Settings that differ")
    columns = [run.name for run in compared]
    table = [[k, *(_value(run.settings.get(k)) for run in compared)] for k in differing[:_KEYS]]
    if len(compared) > len(differing):  # turned: what is longer goes down the page
        columns, table = differing[:_KEYS], [list(line) for line in zip(*table, strict=True)][1:]
        table = [[run.name, *line] for run, line in zip(compared, table, strict=True)]
        yield grid(["run", *columns], table)
    else:
        yield grid(["setting", *columns], table)
    yield from _cut_short(len(runs), len(differing))


def problems(stages: DataFrame) -> Iterator[Markup]:
    """Stages whose figures are missing from the page, by path."""
    left = stages[stages["status"] != "finished"]
    if left.empty:
        return
    yield element("h2", "Left out")
    lines = [
        (os.path.relpath(stage["path"]), stage["status"], _value(stage.get("reason")))
        for stage in left.head(_NAMED).to_dict("records")
    ]
    yield grid(("stage", "status", "reason"), lines)
    if len(left) > _NAMED:
        yield element("p", f"and {len(left) - _NAMED} more", class_="note")


def environments(stages: DataFrame) -> Iterator[Markup]:
    """Versions and machines, with how many stages ran there."""
    found = stages["environment"].dropna() if "environment" in stages else []
    counts = Counter(text for text in found if text)
    if not counts:
        return
    yield element("h2", "Environment")
    lines = [(f"{count:,}", text) for text, count in counts.most_common()]
    yield grid(("stages", "made with"), lines, (True, False))


def picture(
    draw: Draw | Callable[..., object], says: str, make: Callable[..., Markup] = drawn
) -> Markup | None:
    """The picture, or None where there is nothing to draw."""
    try:
        return make(draw, says)
    except ArtifactError:
        return None


def _command(run: Run, width: int) -> Markup:
    said = run.row.get("command")
    text = element("code", said) if isinstance(said, str) else element("span", _NOT_RECORDED)
    cell = element("td", text, colspan=str(width), class_="command")
    return element("tr", element("td"), cell, class_="under")


def _shortened(frames: dict[str, DataFrame]) -> dict[str, DataFrame]:
    """Names without what all of them begin with."""
    common = os.path.commonprefix(list(frames))  # noqa: RUF071 (letter by letter is meant)
    cut = max(common.rfind(sign) for sign in "/,") + 1
    return {name[cut:]: frame for name, frame in frames.items()}


def _value(value: object) -> str:
    return "" if value is None or value != value else str(value)


def _cut_short(runs: int, keys: int) -> Iterator[Markup]:
    said = [f"the first {_COMPARED} of {runs} runs"] if runs > _COMPARED else []
    said += [f"the first {_KEYS} of {keys} settings"] if keys > _KEYS else []
    if said:
        yield element("p", f"Shown: {', '.join(said)}.", class_="note")
