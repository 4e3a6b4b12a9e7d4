"""`prunekit report`: tables, files, figures and one page of finished runs."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prunekit import console
from prunekit.errors import ArtifactError, listed
from prunekit.reporting.collect import collect
from prunekit.reporting.figures import check_writable
from prunekit.reporting.formats import ENDINGS, write_table
from prunekit.reporting.pareto import setting_means
from prunekit.reporting.seed_stats import SeedAverages
from prunekit.reporting.tables import by_data, print_summary, summary
from prunekit.runs.rundir import STAGES

if TYPE_CHECKING:
    from pandas import DataFrame

_TOP = 50  # runs of a data set that are printed
_MAX_NAMED = 10  # stages and settings that are named one by one


def main(argv: Sequence[str]) -> None:
    """Print one table for each data set, and write the page and what else the arguments name."""
    arguments = _parser().parse_args(list(argv))
    for path in arguments.out:
        check_writable(path, ENDINGS)
    for path in (arguments.plot, arguments.embeddings):
        if path:
            check_writable(path)
    stages = collect(arguments.paths)
    _refuse_unfinished(stages, arguments.paths)
    page = None if arguments.no_html else _page_path(arguments.html, arguments.paths[0])
    table = summary(stages)
    parts = by_data(table)
    for title, part in parts:
        _print_part(title, part, arguments.top or len(part))
    _warn_of_skipped(stages)
    _warn_of_changed(stages)
    for path in arguments.out:
        write_table(table, path, parts)
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
    parser.add_argument(
        "--top",
        type=_count,
        default=_TOP,
        metavar="COUNT",
        help=f"print so many runs of a data set, the most accurate first; 0: all (default: {_TOP})",
    )
    parser.add_argument("--no-html", action="store_true", help="write no page")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw accuracy against size; also .pdf or .svg"
    )
    parser.add_argument(
        "--embeddings", metavar="FILE.png", help="draw features side by side; also .pdf or .svg"
    )
    return parser


def _page_path(requested: str | None, first: str) -> Path:
    """Return the path of the page: never in a stage directory, which holds only the stage's files.

    `first` is the first of the paths that are reported. Raises ArtifactError.
    """
    if requested is not None:
        check_writable(requested, (".html", ".htm"))
        return Path(requested)
    folder = Path(first)
    folder = folder.resolve().parent if folder.resolve().name in STAGES else folder
    if not os.access(folder, os.W_OK):
        raise ArtifactError(f"{folder} cannot be written to; give --html FILE.html, or --no-html")
    return folder / "report.html"


def _count(text: str) -> int:
    """Return a number of runs; argparse prints the error for anything else."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of runs; give 0 for all of them")
    return int(text)


def _print_part(title: str, part: DataFrame, top: int) -> None:
    """Print the runs of one test set, the settings on the front, and means over seeds.

    Of more than `top` runs, or means, only the most accurate are printed.
    """
    print_summary(_most_accurate(part, top), title)
    if len(part) > top:
        console.say(f"the {top} most accurate of {len(part)} runs; --top 0 prints all of them")
    _print_front(part)
    if means := SeedAverages.of(part):
        lines = means.table.lines[:top]
        console.table(f"{title}, means over seeds", means.table.headings, lines)
        if len(lines) < len(means.table.lines):
            console.say(f"the {top} best of {len(means.table.lines)} means; --top 0 prints all")


def _most_accurate(part: DataFrame, count: int) -> DataFrame:
    """Return the summary as it is, or the `count` most accurate of more runs, the best first."""
    if len(part) <= count or "top1" not in part:
        return part.head(count)
    return part.sort_values("top1", ascending=False, kind="stable").head(count)


def _print_front(part: DataFrame) -> None:
    """Name the settings on the front of accuracy and multiply-adds."""
    points = setting_means(part, "macs")
    best = points[points["on_front"]].sort_values("top1", ascending=False)
    if len(points) > 1:
        names = listed([str(name) for name in best["run"]], _MAX_NAMED)
        console.say(f"front (test accuracy, multiply-adds): {names}")


def _refuse_unfinished(stages: DataFrame, paths: Sequence[str]) -> None:
    """Raise ArtifactError where no stage is finished, after naming those that are not."""
    if not (stages["status"] == "finished").any():
        _warn_of_skipped(stages)
        raise ArtifactError(
            f"no stage under {', '.join(paths)} is finished; the command of the run continues it"
        )


def _warn_of_skipped(stages: DataFrame) -> None:
    """Name stages without a readable report, which the table does not contain."""
    skipped = stages[stages["status"] != "finished"]
    for _, stage in skipped.head(_MAX_NAMED).iterrows():
        console.complain(f"left out: {os.path.relpath(stage['path'])}, {stage['status']}")
    if len(skipped) > _MAX_NAMED:
        console.complain(f"left out: {len(skipped) - _MAX_NAMED} more unfinished or damaged stages")


def _warn_of_changed(stages: DataFrame) -> None:
    """Name files that were changed later, and count the stages for which that is unknown."""
    done = stages[stages["status"] == "finished"]
    if not len(done):
        return
    changed = done[done["changed"].notna() & (done["changed"] != "")]
    for _, stage in changed.head(_MAX_NAMED).iterrows():
        place = os.path.relpath(stage["path"])
        console.complain(f"changed since {place} was finished: {stage['changed']}")
    if len(changed) > _MAX_NAMED:
        console.complain(f"changed since: files of {len(changed) - _MAX_NAMED} more stages")
    if old := int(done["changed"].isna().sum()):
        console.complain(
            f"{old} of {len(done)} finished stages were made by an earlier version of prunekit and "
            "carry no digests: whether their files changed since is not known"
        )
