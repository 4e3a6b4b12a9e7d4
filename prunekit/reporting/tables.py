"""Summaries of finished runs: one line for each run, beside its dense network."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit import console
from prunekit.errors import ArtifactError
from prunekit.reporting.formats import (
    compare_networks,
    difference,
    ratio,
    summary_text,
    to_number,
)
from prunekit.reporting.labels import distinct_methods
from prunekit.runs.report import fingerprint
from prunekit.runs.rundir import READ_ONLY_STAGES, identity_of

if TYPE_CHECKING:
    from pandas import DataFrame

Record = dict[str, Any]

_FACTS = ("model", "dataset", "data", "method", "lam", "ratio", "keep", "seed")
_FULL_WIDTH_STAGES = ("pretrain", "sparsify")
_SUMMARY = (
    *("run", "model", "dataset", "method", "lam", "ratio", "keep", "seed", "setting", "last_stage"),
    *("top1", "top1_change", "top5", "pruned_top1", "tuned_top1", "dense_top1", "params", "macs"),
    *("params_share", "macs_share", "cpu_ms", "gpu_ms", "params_ratio", "macs_ratio", "speedup"),
    *("gpu_speedup", "data", "timing", "continued", "command"),
)


def print_comparison(file: str | Path) -> None:
    """Print the table of a comparison.csv: one network per line, the dense one first."""
    try:
        with open(file, encoding="utf-8", newline="") as lines:
            records = list(csv.DictReader(lines))
    except (OSError, ValueError, csv.Error) as error:
        raise ArtifactError(f"{file} cannot be read; run the measure stage again") from error
    if not records:
        raise ArtifactError(f"{file} has no rows; run the measure stage again")
    headings, cells = compare_networks(records)
    console.table(f"dense and narrow{_timed_with(records[0])}", headings, cells)


def summary(stages: DataFrame) -> DataFrame:
    """Return one line for each run of `collect`: its last finished stage beside its dense network.

    Columns `*_ratio` and `speedup` are dense divided by narrow, `*_share` narrow divided by dense,
    `top1_change` is narrow minus dense in percentage points; they are missing if the dense values
    are unknown. `pruned_top1` is the accuracy right after pruning, `tuned_top1` after fine-tuning,
    below/... are shares of small rows after sparsifying. `method` includes the arguments in which
    runs of one penalty differ. `setting` is equal for runs that differ only in the seed, `data` for
    runs with the same test images, `timing` for latencies measured in the same way. A run that
    starts from another run's network takes its penalty and dense values from there, if that run is
    included; `continued` marks runs from which others start and which end before pruning.
    `problems` names stages without a report.
    """
    import pandas as pd

    runs: dict[str, list[Record]] = {}
    for stage in to_dicts(stages):
        runs.setdefault(str(stage["run"]), []).append(stage)
    sources = {run: _source(own) for run, own in runs.items()}
    models = _stages_by_model(runs) if any(sources.values()) else {}
    earlier = {run: _ancestors(sources[run], models) for run in runs}
    records = [_summarize(run, own, earlier[run]) for run, own in runs.items()]
    starting_points = {str(stage["run"]) for own in earlier.values() for stage in own}
    for record in records:
        full_width = record.get("last_stage") in _FULL_WIDTH_STAGES
        record["continued"] = record["run"] in starting_points and full_width
    for record, method in zip(records, distinct_methods(records), strict=True):
        record["method"] = method
    table = pd.DataFrame(records)
    small = [str(column) for column in table if str(column).startswith("below/")]
    return table[[column for column in (*_SUMMARY, *small, "problems") if column in table]]


def by_data(table: DataFrame) -> list[tuple[str, DataFrame]]:
    """Split a summary by test set, since only runs of one test set can be ranked.

    Returns titles and parts. Runs without a finished stage are a part of their own, unless there is
    only one test set.
    """
    data = table["data"].fillna("") if "data" in table else table["run"].map(lambda _: "")
    parts = {str(key): part for key, part in table.groupby(data, sort=False)}
    if len(parts.keys() - {""}) < 2:
        return [(_title(next((key for key in parts if key), ""), parts), table)]
    return [(_title(key, parts), part.reset_index(drop=True)) for key, part in parts.items()]


def print_summary(table: DataFrame, title: str = "runs") -> None:
    """Print a summary without empty columns and without settings that all runs share."""
    text = summary_text(table)
    console.table(title, text.headings, text.lines)


def _timed_with(record: Mapping[str, str]) -> str:
    """Return how the networks of a comparison were timed, empty where that is not known."""
    batch, threads = record.get("latency_batch"), record.get("latency_threads")
    return f", timed with batch {batch}, threads {threads}" if batch and threads else ""


def to_dicts(frame: DataFrame) -> list[Record]:
    """Return the lines of a data frame as dicts without missing values."""
    columns = [(str(key), frame[key].tolist(), frame[key].notna().tolist()) for key in frame]
    records: list[Record] = [{} for _ in range(len(frame))]
    for key, values, present in columns:
        for record, value, is_present in zip(records, values, present, strict=True):
            if is_present:
                record[key] = value
    return records


def _title(data: str, parts: Mapping[str, Any]) -> str:
    """Return the data set's name, with its settings if two parts have the same name."""
    if not data:
        return "runs" if len(parts) == 1 else "no finished stage"
    name = data.split(" ")[0]
    unique = sum(other.split(" ")[0] == name for other in parts) == 1
    return name if unique else data


def _first_finished(stages: Sequence[Record]) -> Record:
    return next((stage for stage in stages if stage["status"] == "finished"), {})


def _source(stages: Sequence[Record]) -> str | None:
    """Return the identity of the model file that the run's first stage starts from."""
    source = _first_finished(stages).get("source")
    return source if isinstance(source, str) else None


def _external_source(stages: Sequence[Record]) -> str | None:
    """Return the identity of the model that a run begins with, if it begins with prune or finetune.

    No earlier stage describes that model, but two runs that start from different models are
    different even if their settings are equal.
    """
    return (
        _source(stages) if _first_finished(stages).get("stage") in ("prune", "finetune") else None
    )


def _stages_by_model(runs: Mapping[str, list[Record]]) -> dict[str, Record]:
    """Map the identities of model files to the finished stages before pruning that wrote them.

    The identity is recorded by a later stage of the same run if there is one, which saves reading
    the model file.
    """
    models: dict[str, Record] = {}
    for stages in runs.values():
        done = {stage["stage"]: stage for stage in stages if stage["status"] == "finished"}
        for name in [name for name in _FULL_WIDTH_STAGES if name in done]:
            later = (s for s in done.values() if s.get("origin") == f"../{name}/model.pt")
            identity = next((stage["source"] for stage in later), None)
            identity = identity or _file_identity(Path(done[name]["path"]) / "model.pt")
            models[str(identity)] = done[name]
    return models


def _ancestors(source: str | None, models: Mapping[str, Record]) -> list[Record]:
    """Return the stages of other runs that led to a model, the earliest first."""
    stages: list[Record] = []
    while source is not None and source in models:
        stages.insert(0, dict(models[source]))
        source = _source(stages[:1])
    return stages


def _file_identity(file: Path) -> str | None:
    return identity_of(file) if file.is_file() else None


def _summarize(run: str, stages: Sequence[Record], earlier: Sequence[Record]) -> Record:
    """Return one line of the summary; `earlier` are the stages of other runs that led to it."""
    done = [stage for stage in stages if stage["status"] == "finished"]
    problems = [f"{s['stage']} {s['status']}" for s in stages if s["status"] != "finished"]
    record: Record = {"run": run, "problems": ", ".join(problems)}
    if not done:
        return record
    chain = [*earlier, *done]
    last, dense = done[-1], _dense_metrics(chain)
    record |= _facts(chain) | {"seed": _first_value([*done, *earlier], "seed")}
    record.update({key: last.get(key) for key in ("top1", "top5", "params", "macs")})
    record.update({key: last.get(key) for key in ("cpu_ms", "gpu_ms")}, last_stage=last["stage"])
    record.update({key: last[key] for key in ("data", "timing", "command") if key in last})
    record["top1_change"] = difference(last.get("top1"), dense.get("top1"))
    record["dense_top1"] = to_number(dense.get("top1"))
    for key in ("params", "macs"):
        record[f"{key}_ratio"] = ratio(dense.get(key), last.get(key))
        record[f"{key}_share"] = ratio(last.get(key), dense.get(key))
    record["speedup"] = ratio(dense.get("cpu_ms"), last.get("cpu_ms"))
    record["gpu_speedup"] = last.get("gpu_speedup")
    return record | _intermediate_metrics(chain)


def _facts(stages: Sequence[Record]) -> Record:
    """Return the facts about a run, each from the first stage that has it, and its `setting`.

    So the penalty of sparsify comes before the criterion of prune. Read-only stages do not count
    for `setting`: timing and exported files do not make two runs different.
    """
    keys = [key for stage in stages for key in stage if key in _FACTS or key.startswith("trait/")]
    facts = {key: _first_value(stages, key) for key in dict.fromkeys(keys)}
    names = {key: facts.get(key) or "" for key in ("model", "dataset", "method")}
    settings = [s.get("setting") for s in stages if s["stage"] not in READ_ONLY_STAGES]
    return {**facts, **names, "setting": fingerprint([_external_source(stages), *settings])}


def _first_value(stages: Sequence[Record], key: str) -> Any:
    """Return the first value that is present; data frames mark missing ones by NaN."""
    return next((s[key] for s in stages if s.get(key) is not None and s[key] == s[key]), None)


def _intermediate_metrics(stages: Sequence[Record]) -> Record:
    """Return the accuracy after pruning and after tuning, and shares of small rows before."""
    by_name = {stage["stage"]: stage for stage in stages}
    sparse = by_name.get("sparsify", {})
    small = {key: value for key, value in sparse.items() if str(key).startswith("below/")}
    return {
        "pruned_top1": by_name.get("prune", {}).get("top1"),
        "tuned_top1": by_name.get("finetune", {}).get("top1"),
        **small,
    }


def _dense_metrics(stages: Sequence[Record]) -> Record:
    """Return the dense network's metrics, from measure, else from pretrain.

    Without either only its size is known, from sparsify, which removes no channels.
    """
    prefix = "dense_"
    measured = {
        key.removeprefix(prefix): value
        for key, value in stages[-1].items()
        if key.startswith(prefix) and to_number(value) is not None
    }
    by_name = {stage["stage"]: stage for stage in stages}
    sizes = {key: by_name.get("sparsify", {}).get(key) for key in ("params", "macs")}
    return {**sizes, **by_name.get("pretrain", {}), **measured}
