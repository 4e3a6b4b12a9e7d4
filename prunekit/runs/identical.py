"""Runs with different settings that led to the same model, to the last bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from prunekit.errors import ArtifactError, listed
from prunekit.runs.layout import READ_ONLY_STAGES, STAGES
from prunekit.runs.report import Report, flatten
from prunekit.runs.rundir import RunDir

_MODEL = "model.pt"


def identical_models(runs: Sequence[Path]) -> list[str]:
    """Return a line for all runs in which other settings of a stage made no other model.

    Only the digests in reports are compared. Stages with the same settings are left out: runs share
    them. So is a stage that starts from different models, whose settings name their digests.
    """
    return [
        line for stage in STAGES if stage not in READ_ONLY_STAGES for line in _lines(runs, stage)
    ]


def _lines(runs: Sequence[Path], stage: str) -> Iterator[str]:
    by_model: dict[str, dict[Path, Report]] = {}
    for run in runs:
        report = _report(run, stage)
        if report is not None and (digest := report.files.get(_MODEL)) is not None:
            by_model.setdefault(digest, {})[run] = report
    for reports in by_model.values():
        settings = [flatten(report.settings) for report in reports.values()]
        keys = [key for key in settings[0] if any(s.get(key) != settings[0][key] for s in settings)]
        if keys:
            yield (
                f"{_values(settings, keys)} made no difference to {stage}, whose models are the "
                f"same to the last bit in {listed([*map(str, reports)])}"
            )


def _values(settings: Sequence[dict[str, object]], keys: Sequence[str]) -> str:
    """Return the first keys that differ with their values, such as `lam (0.1, 0.2)`."""
    texts = []
    for key in keys:
        values = dict.fromkeys(str(one.get(key)) for one in settings)
        texts.append(f"{key} ({listed([*values])})")
    return listed(texts, 2)


def _report(run: Path, stage: str) -> Report | None:
    directory = RunDir(run).stage(stage)
    try:
        return directory.report() if directory.finished else None
    except ArtifactError:
        return None
