"""`prunekit report`: finished runs as a table, as files, as pictures and as one page."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit import console
from prunekit.errors import ArtifactError, listed
from prunekit.reporting.collect import collect
from prunekit.reporting.figures import check_place
from prunekit.reporting.pareto import settings_of
from prunekit.reporting.seed_stats import Averages
from prunekit.reporting.tables import ENDINGS, by_data, show, summary, write_table
from prunekit.runs.rundir import STAGES

if TYPE_CHECKING:
    from pandas import DataFrame

_LISTED = 10  # stages without a report that are named one by one


def main(argv: Sequence[str]) -> None:
    """Print one table a data set, and write what was asked for; a page in any case."""
    arguments = _parser().parse_args(list(argv))
    for path in arguments.out:
        check_place(path, ENDINGS)
    for path in (arguments.plot, arguments.embeddings):
        if path:
            check_place(path)
    stages = collect(arguments.paths)
    page = None if arguments.no_html else _page_place(arguments.html, arguments.paths[0])
    table = summary(stages)
    for title, part in by_data(table):
        show(part, title)
        _tell_front(part)
        if means := Averages.of(part):
            over_seeds = f"{title}, means over seeds"
            console.table(over_seeds, means.cells.headings, means.cells.lines)
    _tell_skipped(stages)
    _tell_changed(stages)
    for path in arguments.out:
        write_table(table, path)
    if arguments.plot:
        from prunekit.reporting.tradeoff import accuracy_against_size

        accuracy_against_size(table, arguments.plot)
    if arguments.embeddings:
        from prunekit.reporting.embedding import side_by_side

        side_by_side(stages, arguments.embeddings)
    if page is not None:
        from prunekit.reporting.page import write_page

        write_page(stages, table, page)
        console.say(f"page: {page}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunekit report",
        description="Collect finished runs into one table a data set, and into one page.",
    )
    parser.add_argument("paths", nargs="*", default=["outputs"], help="where runs are kept")
    parser.add_argument(
        "--out", action="append", default=[], help="write to FILE.csv, FILE.md or FILE.tex"
    )
    parser.add_argument(
        "--html", metavar="FILE.html", help="where the page goes (default: report.html in PATH)"
    )
    parser.add_argument("--no-html", action="store_true", help="write no page")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw accuracy against size; also .pdf or .svg"
    )
    parser.add_argument(
        "--embeddings", metavar="FILE.png", help="draw features side by side; also .pdf or .svg"
    )
    return parser


def _page_place(asked: str | None, first: str) -> Path:
    """Where the page goes: never into a stage, whose files are its work."""
    if asked is not None:
        check_place(asked, (".html", ".htm"))
        return Path(asked)
    folder = Path(first)
    folder = folder.resolve().parent if folder.resolve().name in STAGES else folder
    if not os.access(folder, os.W_OK):
        raise ArtifactError(f"{folder} cannot be written to; give --html FILE.html, or --no-html")
    return folder / "report.html"


def _tell_front(part: DataFrame) -> None:
    """Say which settings are an answer: the front of accuracy and multiply-adds."""
    points = settings_of(part, "macs")
    best = points[points["on_front"]].sort_values("top1", ascending=False)
    if len(points) > 1:
        names = listed([str(name) for name in best["run"]], _LISTED)
        console.say(f"front (test accuracy, multiply-adds): {names}")


def _tell_skipped(stages: DataFrame) -> None:
    """Name stages that have no readable report: their figures are not in the table."""
    left = stages[stages["status"] != "finished"]
    for _, stage in left.head(_LISTED).iterrows():
        console.complain(f"left out: {os.path.relpath(stage['path'])}, {stage['status']}")
    if len(left) > _LISTED:
        console.complain(f"left out: {len(left) - _LISTED} more unfinished or damaged stages")


def _tell_changed(stages: DataFrame) -> None:
    """Name files that are not as they were written, and say for how many that cannot be known."""
    done = stages[stages["status"] == "finished"]
    if not len(done):
        return
    changed = done[done["changed"].notna() & (done["changed"] != "")]
    for _, stage in changed.head(_LISTED).iterrows():
        place = os.path.relpath(stage["path"])
        console.complain(f"changed since {place} was finished: {stage['changed']}")
    if len(changed) > _LISTED:
        console.complain(f"changed since: files of {len(changed) - _LISTED} more stages")
    if old := int(done["changed"].isna().sum()):
        console.complain(
            f"{old} of {len(done)} finished stages were made by an earlier version of prunekit and "
            "carry no digests: whether their files changed since is not known"
        )
