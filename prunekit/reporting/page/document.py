"""The content of the page, and its html from the template `page.html.jinja`."""

from __future__ import annotations

import datetime
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from prunekit.reporting.formats import TextTable, compare_networks, summary_text
from prunekit.reporting.page.figures import (
    PageFigure,
    convergence_figure,
    embedding_figure,
    latency_figures,
    run_figures,
    tradeoff_figure,
)
from prunekit.reporting.page.run_files import Run, ranked
from prunekit.reporting.seed_stats import SeedAverages
from prunekit.reporting.tables import by_data, to_dicts
from prunekit.runs.files import write_text
from prunekit.text import visible

if TYPE_CHECKING:
    from pandas import DataFrame

DETAILED = 12  # runs of a data set that are shown with their figures
_MANY = 200  # runs of a data set from which on so many are too many to draw
_DETAILED_OF_MANY = 1
_MAX_COMPARED = 100  # runs whose settings are compared
_MAX_COLUMNS = 6  # runs side by side in that table; more are its lines
_MAX_KEYS = 40  # settings in that table
_MAX_SKIPPED = 200  # unfinished or damaged stages that are named


@dataclass(frozen=True)
class RunDetail:
    """One run: its networks side by side, the notes of its stages, and its figures."""

    name: str
    comparison: TextTable | None
    notes: list[tuple[str, str]]
    figures: list[PageFigure]

    @classmethod
    def of(cls, run: Run) -> RunDetail:
        """Read the files of a run and draw its figures."""
        comparison = None
        if run.comparison is not None:
            headings, lines = compare_networks(to_dicts(run.comparison))
            comparison = _table(headings, lines, (False, *(True for _ in headings[1:])))
        notes = [(stage, str(n)) for stage, report in run.reports.items() for n in report.notes]
        return cls(run.name, comparison, notes, [f for f in run_figures(run) if f])


@dataclass(frozen=True)
class Section:
    """The runs of one test set, which alone can be ranked together.

    `marked` and `commands` belong to the lines of `table`, `means_marked` to those of `means`.
    `limits` say how many runs and settings `differences` contains, if it is not all of them.
    """

    heading: str
    runs: list[Run]
    table: TextTable
    marked: list[bool]
    commands: list[str | None]
    means: SeedAverages | None
    means_marked: list[bool]
    size_figure: PageFigure | None
    latency_figures: list[PageFigure]
    timings: int
    convergence: PageFigure | None
    embedding: PageFigure | None
    differences: TextTable | None
    limits: list[str]
    details: list[RunDetail]

    @classmethod
    def of(cls, heading: str, part: DataFrame, runs: list[Run]) -> Section:
        """Gather everything about the runs, which are sorted by accuracy."""
        lines = part.set_index("run", drop=False).loc[[run.name for run in runs]]
        means = SeedAverages.of(part)
        on_front = {run.record.get("setting") for run in runs if run.on_front}
        by_timing = latency_figures(part)
        front_first = sorted(runs, key=lambda run: not run.on_front)
        differences, limits = _differences(runs)
        detailed = DETAILED if len(runs) < _MANY else _DETAILED_OF_MANY
        return cls(
            heading=heading,
            runs=runs,
            table=summary_text(lines),
            marked=[run.on_front and len(runs) > 1 for run in runs],
            commands=[run.command for run in runs],
            means=means and replace(means, table=_unbroken(means.table)),
            means_marked=[setting in on_front for setting in means.settings] if means else [],
            size_figure=tradeoff_figure(part),
            latency_figures=[figure for figure in by_timing if figure],
            timings=len(by_timing),
            convergence=convergence_figure(runs),
            embedding=embedding_figure(runs),
            differences=differences,
            limits=limits,
            details=[RunDetail.of(run) for run in front_first[:detailed]],
        )


def write_page(stages: DataFrame, table: DataFrame, path: str | Path) -> None:
    """Write the page about the results of `collect` and `summary` as a single file.

    Its title is the name of the folder that contains all stages.
    """
    folder = Path(os.path.commonpath([Path(stage).parent for stage in stages["path"]]))
    text = document(stages, table, folder.name)
    write_text(Path(path), lambda file: file.write(text))


def document(stages: DataFrame, table: DataFrame, title: str) -> str:
    """Return the html of the page."""
    parts = [(name, part) for name, part in by_data(table) if part["run"].notna().any()]
    ranking = [(name, part, ranked(part, stages)) for name, part in parts]
    skipped = stages[stages["status"] != "finished"]
    finished = len(stages) - len(skipped)
    return _template().render(
        title=title,
        date=f"{datetime.date.today():%d %B %Y}",
        counts={"runs": len(table), "finished": finished, "skipped": len(skipped)},
        sections=[
            Section.of(_heading(name, len(parts)), part, runs)
            for name, part, runs in ranking
            if runs
        ],
        skipped=_skipped(skipped),
        environments=_environments(stages),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("prunekit.reporting", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    return environment.get_template("page.html.jinja")


def _shown(value: object) -> object:
    """Return what the template writes: text with visible control characters, html as it is."""
    return visible(value) if type(value) is str else value


def _heading(name: str, parts: int) -> str:
    return f"Data set {name}" if parts > 1 or name != "runs" else "Runs"


def _table(
    headings: Sequence[str], lines: Iterable[Sequence[str]], numeric: Sequence[bool] = ()
) -> TextTable:
    keys = tuple(headings)
    return TextTable(keys, keys, tuple(numeric) or (False,) * len(keys), tuple(map(tuple, lines)))


def _unbroken(table: TextTable) -> TextTable:
    """Return the table with each deviation bound to its sign, if a narrow cell breaks the line."""
    space = "\N{NO-BREAK SPACE}"
    lines = (tuple(cell.replace("± ", f"±{space}") for cell in line) for line in table.lines)
    return replace(table, lines=tuple(lines))


def _differences(runs: Sequence[Run]) -> tuple[TextTable | None, list[str]]:
    """Return a table of the settings in which runs differ, and what was left out of it."""
    compared = runs[:_MAX_COMPARED]
    keys = list(dict.fromkeys(key for run in compared for key in run.settings))
    differing = [key for key in keys if _differs(key, compared)]
    if not differing:
        return None, []
    keys = differing[:_MAX_KEYS]
    columns = [[_short(run.settings.get(key)) for key in keys] for run in compared]
    names = [run.name for run in compared]
    if len(compared) > _MAX_COLUMNS:
        lines = [[name, *column] for name, column in zip(names, columns, strict=True)]
        table = _table(["run", *keys], lines)
    else:
        table = _table(["setting", *names], zip(keys, *columns, strict=True))
    limits = [f"the first {_MAX_COMPARED} of {len(runs)} runs"] if len(runs) > len(compared) else []
    if len(differing) > len(keys):
        limits.append(f"the first {_MAX_KEYS} of {len(differing)} settings")
    return table, limits


def _differs(key: str, runs: Sequence[Run]) -> bool:
    """Return whether runs differ in a setting; a class is left out if it has a name as well."""
    name = key.removesuffix("_target_") + "name"
    if name != key and any(name in run.settings for run in runs):
        return False
    return len({str(run.settings[key]) for run in runs if key in run.settings}) > 1


def _short(value: object) -> str:
    """Return a setting as text, classes without their module."""
    text = _text(value)
    return text.rpartition(".")[2] if text.startswith(("prunekit.", "torch.")) else text


def _text(value: object) -> str:
    return "" if value is None or value != value else str(value)


def _skipped(stages: DataFrame) -> TextTable | None:
    """Return a table of unfinished and damaged stages, None if there is none."""
    if stages.empty:
        return None
    lines = [
        (os.path.relpath(stage["path"]), stage["status"], _text(stage.get("reason")))
        for stage in to_dicts(stages.head(_MAX_SKIPPED))
    ]
    return _table(("stage", "status", "reason"), lines)


def _environments(stages: DataFrame) -> TextTable | None:
    """Return a table of versions and machines with the number of stages that ran there."""
    texts = stages["environment"].dropna().tolist() if "environment" in stages else []
    counts = Counter(text for text in texts if text)
    if not counts:
        return None
    lines = [(f"{count:,}", text) for text, count in counts.most_common()]
    return _table(("stages", "made with"), lines, (True, False))
