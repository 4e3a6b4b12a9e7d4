"""Sections about all runs of a data set, and about the whole page."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from prunekit.errors import ArtifactError
from prunekit.reporting.columns import Cells, printed
from prunekit.reporting.embedding import draw
from prunekit.reporting.page.figures import Draw, drawn, painted
from prunekit.reporting.page.markup import Markup, element, grid, row
from prunekit.reporting.page.run_files import Run
from prunekit.reporting.pareto import fronts
from prunekit.reporting.plots import convergence
from prunekit.reporting.seed_stats import Averages

if TYPE_CHECKING:
    from pandas import DataFrame

_TOGETHER = 7  # runs that lines in one panel can tell apart
_COMPARED = 100  # runs whose settings are set side by side
_ACROSS = 6  # runs side by side; more of them go down the page
_KEYS = 40  # settings in which they differ, at most
_NAMED = 200  # stages that are left out, by name
_FRONT = (
    "● no other setting here has a higher accuracy and fewer multiply-adds (means over seeds). "
    "By accuracy; a click on a heading sorts by it."
)
_MEANS = "Means and standard deviations over seeds."
_NOT_RECORDED = "Runs without a command were made before reports kept it."


def results(part: DataFrame, runs: Sequence[Run]) -> Iterator[Markup]:
    """The table: a line a run, and the command that makes it again under it.

    Where runs differ in the seed only, a line of means for each such setting comes first, and the
    runs are folded.
    """
    means = Averages.of(part)
    table = element("div", _of_runs(part, runs), class_="wide")
    if means is None:
        yield table
    else:
        yield element("div", _of_settings(means, runs), class_="wide")
        says = f"All {len(runs)} runs, and the commands that make them again"
        yield element("details", element("summary", says), table)
    said = [_FRONT] if len(runs) > 1 else []
    said += [_MEANS] if means else []
    said += [] if all(isinstance(r.row.get("command"), str) for r in runs) else [_NOT_RECORDED]
    yield element("p", " ".join(said), class_="note")


def _of_settings(means: Averages, runs: Sequence[Run]) -> Markup:
    best = {run.row.get("setting") for run in runs if run.on_front}
    marks = [_mark(setting in best) for setting in means.settings]
    # where a table is too wide its spreads go to the next line, with their sign
    lines = tuple(tuple(map(_breaking, line)) for line in means.cells.lines)
    return _sortable(replace(means.cells, lines=lines), marks, [()] * len(marks))


def _breaking(cell: str) -> str:
    return cell.replace("± ", "±\N{NO-BREAK SPACE}")


def _of_runs(part: DataFrame, runs: Sequence[Run]) -> Markup:
    cells = printed(part.set_index("run", drop=False).loc[[run.name for run in runs]])
    marks = [_mark(run.on_front and len(runs) > 1) for run in runs]
    return _sortable(cells, marks, [tuple(_command(run, len(cells.keys))) for run in runs])


def _mark(best: bool) -> str:
    return "●" if best else ""


def _sortable(cells: Cells, marks: Sequence[str], under: Sequence[tuple[Markup, ...]]) -> Markup:
    """A table whose headings sort it; what is under a line moves with it."""
    looks = ["num" if numeric else None for numeric in cells.numeric]
    head = element("thead", row("th", ("", *cells.headings), (None, *looks)))
    bodies = [
        element("tbody", row("td", (mark, *line), ("mark", *looks)), *more)
        for mark, line, more in zip(marks, cells.lines, under, strict=True)
    ]
    return element("table", head, *bodies, class_="sortable")


def tradeoffs(part: DataFrame) -> Iterator[Markup]:
    """Accuracy against sizes, and against milliseconds for each way in which those were timed."""
    if len(part) == 1:
        return
    sizes = picture(partial(fronts, part, costs=("macs", "params")), "Accuracy against size")
    if sizes:
        yield element("h3", "Trade-off")
        yield sizes
    groups = list(part.groupby("timing", sort=False)) if "timing" in part else []
    for timing, group in groups:
        group = group.assign(cpu_share=100 / group["speedup"].astype(float))
        times = partial(fronts, group, costs=("cpu_share", "cpu_ms", "gpu_ms"))
        made = picture(times, f"Accuracy against latency: {timing}")
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
    """Settings that have more than one value, by key and run; many runs go down the page."""
    compared = runs[:_COMPARED]
    keys = list(dict.fromkeys(key for run in compared for key in run.settings))
    differing = [key for key in keys if _differs(key, compared)]
    if not differing:
        return
    yield element("h3", "Settings that differ")
    shown = differing[:_KEYS]
    columns = [[_short(run.settings.get(key)) for key in shown] for run in compared]
    if len(compared) > _ACROSS:
        yield grid(
            ["run", *shown],
            [[run.name, *column] for run, column in zip(compared, columns, strict=True)],
        )
    else:
        lines = zip(shown, *columns, strict=True)
        yield grid(["setting", *(run.name for run in compared)], list(lines))
    yield from _cut_short(len(runs), len(differing))


def _differs(key: str, runs: Sequence[Run]) -> bool:
    """Whether runs that have the setting disagree; the class of what has a name says no more."""
    named = key.removesuffix("_target_") + "name"
    if named != key and any(named in run.settings for run in runs):
        return False
    return len({str(run.settings[key]) for run in runs if key in run.settings}) > 1


def _short(value: object) -> str:
    """A class without its module."""
    said = _value(value)
    return said.rpartition(".")[2] if said.startswith(("prunekit.", "torch.")) else said


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
    draw: Draw, says: str, make: Callable[..., Markup] = drawn, whose: str = ""
) -> Markup | None:
    """The picture, or None where there is nothing to draw."""
    try:
        return make(draw, says, whose)
    except ArtifactError:
        return None


def _command(run: Run, width: int) -> Iterator[Markup]:
    said = run.row.get("command")
    if isinstance(said, str):
        cell = element("td", element("code", said), colspan=str(width), class_="command")
        yield element("tr", element("td"), cell, class_="under")


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
