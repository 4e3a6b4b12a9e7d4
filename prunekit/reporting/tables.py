"""Tables of finished runs: dense beside narrow, and one row a run."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import console
from prunekit.errors import ArtifactError
from prunekit.reporting.columns import compare, difference, number, printed, ratio
from prunekit.reporting.formats import latex, markdown
from prunekit.runs.files import write_text
from prunekit.runs.labels import fingerprint, told_apart
from prunekit.runs.rundir import LOOKING, identity_of

if TYPE_CHECKING:
    from pandas import DataFrame

Row = Mapping[str, Any]

ENDINGS = (".csv", ".md", ".tex")
_SAID = ("model", "dataset", "data", "method", "lam", "ratio", "keep", "seed")
_BEFORE = ("pretrain", "sparsify")  # stages that leave all channels in place
_SUMMARY = (
    *("run", "model", "dataset", "method", "lam", "ratio", "keep", "seed", "setting", "last_stage"),
    *("top1", "top1_change", "top5", "pruned_top1", "tuned_top1", "dense_top1", "params", "macs"),
    *("params_share", "macs_share", "cpu_ms", "gpu_ms", "params_ratio", "macs_ratio", "speedup"),
    *("gpu_speedup", "data", "timing", "continued", "command"),
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


def summary(frame: DataFrame) -> DataFrame:
    """One row a run: its last finished stage, beside the dense network of the same run.

    Ratios are dense divided by narrow, `top1_change` is narrow minus dense in percentage points;
    they are missing where nobody knows dense figures; shares are narrow divided by dense.
    `pruned_top1` and `tuned_top1` are right after pruning and after fine-tuning. `method` says in
    which arguments the runs of one penalty differ, `setting` is equal for runs that differ in the
    seed only, `data` for those of one test set, `timing` for milliseconds measured in one way. A
    run that starts from another run's network takes its penalty and its dense figures from there,
    where that run is in the frame; `continued` is true for runs that others start from and that
    end before pruning. Columns below/... are shares of small rows after sparsifying.
    `problems` names stages without a report.
    """
    import pandas as pd

    runs: dict[str, list[dict[str, Any]]] = {}
    for stage in records(frame):
        runs.setdefault(str(stage["run"]), []).append(stage)
    starts = {run: _source(stages) for run, stages in runs.items()}
    made = _models(runs) if any(starts.values()) else {}
    before = {run: _ancestors(starts[run], made) for run in runs}
    rows = [_run_row(run, own, before[run]) for run, own in runs.items()]
    steps = {str(stage["run"]) for stages in before.values() for stage in stages}
    for row in rows:
        row["continued"] = row["run"] in steps and row.get("last_stage") in _BEFORE
    for row, method in zip(rows, told_apart(rows), strict=True):
        row["method"] = method
    table = pd.DataFrame(rows)
    small = [column for column in table if column.startswith("below/")]
    return table[[column for column in (*_SUMMARY, *small, "problems") if column in table]]


def by_data(table: DataFrame) -> list[tuple[str, DataFrame]]:
    """A summary in parts that may be ranked: a title and the runs of one test set each.

    Runs without a finished stage stand in a part of their own, unless there is one part only.
    """
    data = table["data"].fillna("") if "data" in table else table["run"].map(lambda _: "")
    parts = {str(key): part for key, part in table.groupby(data, sort=False)}
    if len(parts.keys() - {""}) < 2:
        return [(_title(next((key for key in parts if key), ""), parts), table)]
    return [(_title(key, parts), part.reset_index(drop=True)) for key, part in parts.items()]


def show(table: DataFrame, title: str = "runs") -> None:
    """Print a summary.

    Columns in which no run has a value are left out, and settings in which no two runs differ.
    """
    cells = printed(table)
    console.table(title, cells.headings, cells.lines)


def write_table(table: DataFrame, path: str | Path) -> None:
    """Write a frame as csv (full precision), markdown or LaTeX, by the ending of the path.

    Several test sets are as many tables of markdown or LaTeX.
    """
    place = Path(path)
    if place.suffix == ".csv":
        write_text(place, lambda file: table.to_csv(file, index=False, lineterminator="\n"))
    elif place.suffix in ENDINGS:
        make = _latex_parts if place.suffix == ".tex" else _markdown_parts
        write_text(place, lambda file: file.write("\n".join(make(table))))
    else:
        raise ArtifactError(
            f"{place} must end in .csv, .md or .tex, which says how to write the table"
        )


def _markdown_parts(table: DataFrame) -> Iterator[str]:
    parts = by_data(table)
    for title, part in parts:
        yield f"**{title}**\n\n{markdown(part)}" if len(parts) > 1 else markdown(part)


def _latex_parts(table: DataFrame) -> Iterator[str]:
    for title, part in by_data(table):
        yield latex(part, title)


def _title(data: str, parts: Mapping[str, Any]) -> str:
    """The name of a data set, and what else is said of it where two parts have that name."""
    if not data:
        return "runs" if len(parts) == 1 else "no finished stage"
    name = data.split(" ")[0]
    alone = sum(other.split(" ")[0] == name for other in parts) == 1
    return name if alone else data


def records(frame: DataFrame) -> list[dict[str, Any]]:
    """The rows of a frame; values that are missing are left out."""
    columns = [(str(key), frame[key].tolist(), frame[key].notna().tolist()) for key in frame]
    rows: list[dict[str, Any]] = [{} for _ in range(len(frame))]
    for key, values, there in columns:
        for row, value, known in zip(rows, values, there, strict=True):
            if known:
                row[key] = value
    return rows


def _source(stages: Sequence[Row]) -> str | None:
    """The network of another run that a run starts from."""
    first = next((stage for stage in stages if stage["status"] == "finished"), {})
    start = first.get("source")
    return start if isinstance(start, str) else None


def _start(stages: Sequence[Row]) -> str | None:
    """What a run starts from that no stage known of it tells of, and that makes it another one."""
    first = next((stage for stage in stages if stage["status"] == "finished"), {})
    return _source(stages) if first.get("stage") in ("prune", "finetune") else None


def _models(runs: Mapping[str, list[dict[str, Any]]]) -> dict[str, Row]:
    """Finished stages before pruning, by what a stage that starts from them calls its source.

    A stage of the same run that started there has recorded it; other model files are read.
    """
    found = {}
    for stages in runs.values():
        done = {stage["stage"]: stage for stage in stages if stage["status"] == "finished"}
        for name in [name for name in _BEFORE if name in done]:
            heirs = (s for s in done.values() if s.get("origin") == f"../{name}/model.pt")
            called = next((heir["source"] for heir in heirs), None)
            called = called or _identity(Path(done[name]["path"]) / "model.pt")
            found[str(called)] = done[name]
    return found


def _ancestors(start: str | None, made: Mapping[str, Row]) -> list[dict[str, Any]]:
    """The stages of other runs that led to a network, the first one first."""
    found: list[dict[str, Any]] = []
    while start in made:
        found.insert(0, dict(made[start]))
        start = _source(found[:1])
    return found


def _identity(file: Path) -> str | None:
    return identity_of(file) if file.is_file() else None


def _run_row(
    run: str, stages: list[dict[str, Any]], before: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """`before` are stages of other runs, which led to the network that this one starts from."""
    done = [stage for stage in stages if stage["status"] == "finished"]
    problems = [f"{s['stage']} {s['status']}" for s in stages if s["status"] != "finished"]
    row: dict[str, Any] = {"run": run, "problems": ", ".join(problems)}
    if not done:
        return row
    known = [*before, *done]
    last, dense = done[-1], _dense(known)
    row |= _named(known) | {"seed": _first([*done, *before], "seed")}
    row.update({key: last.get(key) for key in ("top1", "top5", "params", "macs")})
    row.update({key: last.get(key) for key in ("cpu_ms", "gpu_ms")}, last_stage=last["stage"])
    row.update({key: last[key] for key in ("data", "timing", "command") if key in last})
    row["top1_change"] = difference(last.get("top1"), dense.get("top1"))
    row["dense_top1"] = number(dense.get("top1"))
    for key in ("params", "macs"):
        row[f"{key}_ratio"] = ratio(dense.get(key), last.get(key))
        row[f"{key}_share"] = ratio(last.get(key), dense.get(key))
    row["speedup"] = ratio(dense.get("cpu_ms"), last.get("cpu_ms"))
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
        if key.startswith(prefix) and number(value) is not None
    }
    stages = {stage["stage"]: stage for stage in done}
    sizes = {key: stages.get("sparsify", {}).get(key) for key in ("params", "macs")}
    return {**sizes, **stages.get("pretrain", {}), **measured}
