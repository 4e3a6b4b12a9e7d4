"""The page as a whole: what it says about all runs, about each of them, and what is missing."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit.reporting.page.details import detail
from prunekit.reporting.page.markup import Markup, element
from prunekit.reporting.page.overview import (
    convergence_of,
    differences,
    embeddings,
    environments,
    problems,
    results,
    tradeoffs,
)
from prunekit.reporting.page.run_files import Run, ranked
from prunekit.reporting.tables import by_data
from prunekit.runs.files import write_text

if TYPE_CHECKING:
    from pandas import DataFrame

DETAILED = 12  # runs of a data set that are shown with their pictures


def write_page(stages: DataFrame, table: DataFrame, path: str | Path) -> None:
    """Write the page of what `collect` and `summary` gave; styles, script and pictures inside.

    It is called after the folder that all its stages share.
    """
    shared = Path(os.path.commonpath([Path(stage).parent for stage in stages["path"]]))
    text = str(document(stages, table, shared.name))
    write_text(Path(path), lambda file: file.write(text))


def document(stages: DataFrame, table: DataFrame, title: str) -> Markup:
    """The whole html of the page."""
    folder = files("prunekit.reporting.page")
    style, script = (
        Markup((folder / name).read_text(encoding="utf-8")) for name in ("page.css", "sort.js")
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title} - prunekit"),
        element("style", style),
    )
    body = element("body", *_body(stages, table, title), element("script", script))
    return Markup("<!doctype html>\n" + element("html", head, body, lang="en") + "\n")


def _body(stages: DataFrame, table: DataFrame, title: str) -> Iterator[Markup]:
    parts = [(name, part) for name, part in by_data(table) if part["run"].notna().any()]
    yield element("header", element("h1", title), element("p", _counted(stages, table)))
    for name, part in parts:
        runs = ranked(part, stages)
        if runs:
            yield _data_set(name, part, runs, of_several=len(parts) > 1)
    yield from problems(stages)
    yield from environments(stages)


def _counted(stages: DataFrame, table: DataFrame) -> str:
    left = int((stages["status"] != "finished").sum())
    said = [_many(len(table), "run"), _many(len(stages) - left, "finished stage")]
    said += [f"{_many(left, 'stage')} left out, named below"] if left else []
    return f"{', '.join(said)}. Written on {datetime.date.today():%d %B %Y} by prunekit report."


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _data_set(name: str, part: DataFrame, runs: list[Run], of_several: bool) -> Markup:
    """Everything about the runs of one test set, which alone may be ranked together."""
    pieces = [
        *results(part, runs),
        *tradeoffs(part),
        *convergence_of(runs),
        *embeddings(runs),
        *differences(runs),
        *_details(runs),
    ]
    heading = f"Data set {name}" if of_several or name != "runs" else "Runs"
    return element("section", element("h2", heading), *pieces)


def _details(runs: list[Run]) -> Iterator[Markup]:
    yield element("h3", "Run by run")
    if len(runs) > DETAILED:
        yield element(
            "p",
            f"{DETAILED} of {len(runs)} runs: those marked above, then the most accurate; "
            "prunekit report PATH/RUN shows any other.",
            class_="note",
        )
    for run in sorted(runs, key=lambda run: not run.on_front)[:DETAILED]:
        yield detail(run, opened=len(runs) <= 1)
