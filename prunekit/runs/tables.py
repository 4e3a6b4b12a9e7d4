"""Tables of finished runs: dense beside narrow, and one row a run."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import console
from prunekit.errors import ArtifactError
from prunekit.runs.figures import check_place
from prunekit.runs.files import read_json, write_text
from prunekit.runs.methods import described, fingerprint, told_apart
from prunekit.runs.report import Report
from prunekit.runs.rundir import LOOKING, STAGES, identity_of

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]

# metric, heading, how to show it
_COLUMNS = (
    ("top1", "top-1 %", "{:.2f}"),
    ("top5", "top-5 %", "{:.2f}"),
    ("params", "parameters", "{:,.0f}"),
    ("nonzero", "non-zero", "{:,.0f}"),
    ("macs", "MACs", "{:,.0f}"),
    ("cpu_ms", "CPU ms", "{:.3g}"),
    ("cpu_ms_compile", "CPU ms compiled", "{:.3g}"),
    ("cpu_ms_onnxruntime", "CPU ms onnxruntime", "{:.3g}"),
    ("gpu_ms", "GPU ms", "{:.3g}"),
    ("gpu_ms_compile", "GPU ms compiled", "{:.3g}"),
)
# norms below which the training log counts rows as small
SMALL = ("1e-02", "1e-03", "1e-04", "1e-05", "1e-06")
# what the settings of stages say about a run
_NUMBERS = ("lam", "ratio", "keep", "seed")
_SAID = ("model", "dataset", "method", *_NUMBERS)
# metric, heading: dense divided by the row
_RATIOS = (
    ("params", "params ratio"),
    ("macs", "MACs ratio"),
    ("cpu_ms", "CPU speed-up"),
    ("cpu_ms_compile", "compiled speed-up"),
    ("cpu_ms_onnxruntime", "onnxruntime speed-up"),
    ("gpu_ms", "GPU speed-up"),
    ("gpu_ms_compile", "GPU compiled speed-up"),
)
_SUMMARY = (
    *("run", "model", "dataset", "method", "lam", "ratio", "keep", "seed", "setting", "last_stage"),
    *("top1", "top1_change", "top5", "pruned_top1", "tuned_top1", "dense_top1", "params", "macs"),
    *("params_share", "macs_share", "cpu_ms", "gpu_ms", "params_ratio", "macs_ratio", "speedup"),
    "gpu_speedup",
)
_SHOWN = (
    ("run", "run", "{}"),
    ("method", "method", "{}"),
    ("lam", "lam", "{:g}"),
    ("ratio", "ratio", "{:g}"),
    ("keep", "keep", "{:g}"),
    ("seed", "seed", "{:.0f}"),
    ("last_stage", "last stage", "{}"),
    ("pruned_top1", "pruned %", "{:.2f}"),
    ("top1", "top-1 %", "{:.2f}"),
    ("top1_change", "change", "{:+.2f}"),
    ("params", "parameters", "{:,.0f}"),
    ("macs", "MACs", "{:,.0f}"),
    ("params_ratio", "params ratio", "{:.1f}x"),
    ("macs_ratio", "MACs ratio", "{:.1f}x"),
    ("speedup", "CPU speed-up", "{:.1f}x"),
    ("problems", "problems", "{}"),
)
# further columns of a summary that are written, not printed
_WRITTEN = (
    ("dense_top1", "dense %", "{:.2f}"),
    ("params_share", "params kept", "{:.1%}"),
    ("macs_share", "MACs kept", "{:.1%}"),
    ("tuned_top1", "fine-tuned %", "{:.2f}"),
    ("gpu_speedup", "GPU speed-up", "{:.1f}x"),
    *((f"below/{limit}", f"below {limit}", "{:.1%}") for limit in SMALL),
)


def comparison(file: str | Path) -> None:
    """Print the table of a comparison.csv, one network a row, the dense one first."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{file} cannot be read; run the measure stage again") from error
    if not rows:
        raise ArtifactError(f"{file} has no rows; run the measure stage again")
    columns, cells = compare(rows)
    console.table("dense and narrow", columns, cells)


def compare(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells that set every network beside the first one.

    Rows are flat metrics with a `network` label; a column appears where a row has its metric, and
    a value that is missing or not a number stands as "-".
    """
    present = {key for row in rows for key, value in row.items() if _number(value) is not None}
    plain = [column for column in _COLUMNS if column[0] in present]
    ratios = [column for column in _RATIOS if column[0] in present]
    columns = ["network", *(heading for _, heading, _ in plain), *(h for _, h in ratios)]
    cells = [
        [
            str(row.get("network", "")),
            *(_shown(row.get(key), form) for key, _, form in plain),
            *(_shown(_ratio(rows[0].get(key), row.get(key)), "{:.1f}x") for key, _ in ratios),
        ]
        for row in rows
    ]
    return columns, cells


def collect(paths: Iterable[str | Path]) -> DataFrame:
    """Every stage found under the given directories, one row a run and stage.

    Columns: run, stage, status (finished, unfinished, damaged), path, seconds, source, what the
    settings say (see `methods.described`), then one per metric. Stages without a readable report
    have no metrics. Raises ArtifactError when there is no stage at all.
    """
    import pandas as pd

    roots = [Path(path) for path in paths]
    rows = [_stage_row(root, place) for root in roots for place in _stages(root)]
    if not rows:
        named = ", ".join(map(str, roots)) or "no path"
        raise ArtifactError(f"no run found under {named}; give the directory that runs are kept in")
    return pd.DataFrame(rows).drop_duplicates("path", ignore_index=True)


def summary(frame: DataFrame) -> DataFrame:
    """One row a run: its last finished stage, beside the dense network of the same run.

    Ratios are dense divided by narrow, `top1_change` is narrow minus dense in percentage points;
    they are missing where the run has no dense figures; shares are narrow divided by dense.
    `pruned_top1` and `tuned_top1` are right after pruning and after fine-tuning. `method` says in
    which arguments the runs of one penalty differ, `setting` is equal for runs that differ in the
    seed only. A run that was pruned from another run's sparsified network takes its penalty from
    there, where that run is in the frame. Columns below/... are shares of small rows after
    sparsifying. `problems` names stages without a report.
    """
    import pandas as pd

    groups = [(str(run), part.to_dict("records")) for run, part in frame.groupby("run", sort=False)]
    starts = {run: _start(stages) for run, stages in groups}
    known = _sparsified(frame) if any(starts.values()) else {}
    rows = [_run_row(run, stages, known.get(starts[run] or "")) for run, stages in groups]
    for row, method in zip(rows, told_apart(rows), strict=True):
        row["method"] = method
    table = pd.DataFrame(rows)
    small = [column for column in table if column.startswith("below/")]
    return table[[column for column in (*_SUMMARY, *small, "problems") if column in table]]


def show(table: DataFrame, title: str = "runs") -> None:
    """Print a summary.

    Columns in which no run has a value are left out, and settings in which no two runs differ.
    """
    columns = [c for c in _SHOWN if c[0] in table and _filled(table[c[0]])]
    columns = [c for c in columns if c[0] not in _NUMBERS or table[c[0]].nunique() > 1]
    rows = [[_shown(row[key], form) for key, _, form in columns] for _, row in table.iterrows()]
    console.table(title, [heading for _, heading, _ in columns], rows)


def write_table(table: DataFrame, path: str | Path) -> None:
    """Write a frame as csv (full precision) or markdown, by the ending .csv or .md of the path."""
    place = Path(path)
    if place.suffix == ".csv":
        write_text(place, lambda file: table.to_csv(file, index=False, lineterminator="\n"))
    elif place.suffix == ".md":
        write_text(place, lambda file: file.write(markdown(table)))
    else:
        raise ArtifactError(f"{place} must end in .csv or .md, which says how to write the table")


def markdown(table: DataFrame) -> str:
    """The frame as a markdown table; numbers as in the printed summary, unknown ones plainly.

    Fingerprints of settings are left to csv files.
    """
    known = (*_COLUMNS, *_SHOWN, *_WRITTEN)
    forms = {key: (heading, form) for key, heading, form in known}
    keys = [key for key in table.columns if key != "setting" and _filled(table[key])]
    lines = [
        [forms.get(key, (key, "{}"))[0] for key in keys],
        ["---:" if _number(table[key].dropna().iloc[0]) is not None else "---" for key in keys],
    ]
    for _, row in table.iterrows():
        lines.append([_shown(row[key], forms.get(key, (key, "{}"))[1]) for key in keys])
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def main(argv: Sequence[str]) -> None:
    """`prunekit report`: print one row a run, and write it where asked."""
    parser = argparse.ArgumentParser(
        prog="prunekit report", description="Collect finished runs into one table."
    )
    parser.add_argument("paths", nargs="*", default=["outputs"], help="where runs are kept")
    parser.add_argument("--out", action="append", default=[], help="write to FILE.csv or FILE.md")
    parser.add_argument(
        "--plot", metavar="FILE.png", help="draw accuracy against size; also .pdf or .svg"
    )
    parser.add_argument(
        "--embeddings", metavar="FILE.png", help="draw features side by side; also .pdf or .svg"
    )
    arguments = parser.parse_args(list(argv))
    for path in arguments.out:
        check_place(path, (".csv", ".md"))
    for path in (arguments.plot, arguments.embeddings):
        if path:
            check_place(path)
    stages = collect(arguments.paths)
    table = summary(stages)
    show(table)
    for path in arguments.out:
        write_table(table, path)
    if arguments.plot:
        from prunekit.runs.curves import accuracy_against_size

        accuracy_against_size(table, arguments.plot)
    if arguments.embeddings:
        from prunekit.runs.embedding import side_by_side

        side_by_side(stages, arguments.embeddings)


def _stages(root: Path) -> list[Path]:
    """The stage directories under `root`, in the order of runs and then of the pipeline."""
    marks = ("report.json", "settings.json")
    found = {file.parent for mark in marks for file in root.rglob(mark)}
    places = [place for place in found if place.name in STAGES]
    return sorted(places, key=lambda place: (str(place.parent), STAGES.index(place.name)))


def _stage_row(root: Path, place: Path) -> dict[str, Any]:
    # a root may be a single run or stage: then its own name is all there is
    inside = place.parent.relative_to(root) if place != root else Path(".")
    name = str(inside) if inside.parts else place.parent.resolve().name
    row = {"run": name, "stage": place.name, "status": "unfinished", "path": str(place.resolve())}
    if not (place / "report.json").is_file():
        return row
    try:
        report = Report.from_dict(read_json(place / "report.json"))
        return {
            **row,
            "status": "finished",
            "seconds": float(report.seconds),
            "source": report.source,
            **described(report.settings),
            **report.metrics,
        }
    except (ArtifactError, TypeError, ValueError, AttributeError):
        return {**row, "status": "damaged"}


def _start(stages: Sequence[Row]) -> str | None:
    """What a run starts from that no stage of its own tells of: a network of another run."""
    first = next((stage for stage in stages if stage["status"] == "finished"), {})
    start = first.get("source") if first.get("stage") in ("prune", "finetune") else None
    return start if isinstance(start, str) else None


def _sparsified(frame: DataFrame) -> dict[str, dict[str, Any]]:
    """Finished sparsify stages, by what a stage that starts from them calls its source."""
    stages = frame[(frame["stage"] == "sparsify") & (frame["status"] == "finished")]
    files = [(Path(record["path"]) / "model.pt", record) for record in stages.to_dict("records")]
    return {str(identity_of(file)): record for file, record in files if file.is_file()}


def _run_row(
    run: str, stages: list[dict[str, Any]], before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """`before` is the sparsify stage of another run that this one starts from."""
    done = [stage for stage in stages if stage["status"] == "finished"]
    problems = [f"{s['stage']} {s['status']}" for s in stages if s["status"] != "finished"]
    row: dict[str, Any] = {"run": run, "problems": ", ".join(problems)}
    if not done:
        return row
    last, dense = done[-1], _dense(done)
    known = [before, *done] if before else done
    row |= _named(known)
    row.update({key: last.get(key) for key in ("top1", "top5", "params", "macs")})
    row.update({key: last.get(key) for key in ("cpu_ms", "gpu_ms")}, last_stage=last["stage"])
    row["top1_change"] = _difference(last.get("top1"), dense.get("top1"))
    row["dense_top1"] = _number(dense.get("top1"))
    for key in ("params", "macs"):
        row[f"{key}_ratio"] = _ratio(dense.get(key), last.get(key))
        row[f"{key}_share"] = _ratio(last.get(key), dense.get(key))
    row["speedup"] = _ratio(dense.get("cpu_ms"), last.get("cpu_ms"))
    row["gpu_speedup"] = last.get("gpu_speedup")
    return row | _moments(known)


def _named(done: list[dict[str, Any]]) -> dict[str, Any]:
    """What the run is called: the first stage that says so, sparsify's penalty before a criterion.

    Timing and exported files do not make two runs different.
    """
    keys = [key for stage in done for key in stage if key in _SAID or key.startswith("trait/")]
    found = {key: _first(done, key) for key in dict.fromkeys(keys)}
    names = {key: found.get(key) or "" for key in ("model", "dataset", "method")}
    made = [stage.get("setting") for stage in done if stage["stage"] not in LOOKING]
    return {**found, **names, "setting": fingerprint([_start(done), *made])}


def _first(done: Sequence[Row], key: str) -> Any:
    """The first value that is there; frames mark what is not by not-a-number."""
    return next((s[key] for s in done if s.get(key) is not None and s[key] == s[key]), None)


def _moments(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy right after pruning and after tuning, and how many rows were small before."""
    stages = {stage["stage"]: stage for stage in done}
    sparse = stages.get("sparsify", {})
    small = {key: value for key, value in sparse.items() if str(key).startswith("below/")}
    return {
        "pruned_top1": stages.get("prune", {}).get("top1"),
        "tuned_top1": stages.get("finetune", {}).get("top1"),
        **small,
    }


def _dense(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of the dense network: from measure, what it lacks from the stage that trained it.

    A run without either knows the sizes alone, from sparsifying, which leaves channels in place.
    """
    prefix = "dense_"
    measured = {
        key.removeprefix(prefix): value
        for key, value in done[-1].items()
        if key.startswith(prefix) and _number(value) is not None
    }
    stages = {stage["stage"]: stage for stage in done}
    sizes = {key: stages.get("sparsify", {}).get(key) for key in ("params", "macs")}
    return {**sizes, **stages.get("pretrain", {}), **measured}


def _number(value: object) -> float | None:
    """A finite number, also from the text of a csv file, or None."""
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return found if math.isfinite(found) else None


def _ratio(dense: object, narrow: object) -> float | None:
    above, below = _number(dense), _number(narrow)
    return above / below if above is not None and below else None


def _difference(narrow: object, dense: object) -> float | None:
    left, right = _number(narrow), _number(dense)
    return left - right if left is not None and right is not None else None


def _shown(value: object, form: str) -> str:
    if form == "{}":
        return "" if value is None or value != value else str(value)
    found = _number(value)
    return "-" if found is None else form.format(found)


def _filled(column: Any) -> bool:
    return bool((column.notna() & (column.astype(str) != "")).any())
