"""The table of experiments: every experiment file through all of its stages on next to nothing.

One job a file. It shows that what the file sets runs from start to end; the figures say nothing.
At full width tests build every file and take one step of every stage.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunekit.config import groups
from prunekit.errors import ArtifactError
from scripts.reproduce.experiments import Experiment
from scripts.reproduce.jobs import Job
from scripts.reproduce.measured import NOT_RUN, metrics
from scripts.reproduce.sheets import publish, write_markdown

NAME = "experiments"
TEXT = "Every experiment file on a narrow network and drawn images: whether it runs."
SCALES = {"smoke": sorted(groups()["experiment"]), "short": ["demo"]}


def jobs(scale: str) -> list[Job]:
    """Return one run a file, through the stages that it names."""
    files = [Experiment.read(name) for name in SCALES[scale]]
    return [Job(f"every/{file.name}", file.small(), file.pipeline) for file in files]


def write(scale: str, root: Path, out: Path) -> None:
    """Write which files ran from start to end; raises ArtifactError unless all did."""
    rows = [_row(root, job) for job in jobs(scale)]
    sheet = {"name": NAME, "title": "every experiment"}
    write_markdown(out / f"{NAME}.md", publish(out, sheet, TEXT, rows))
    absent = [row["experiment"] for row in rows if row["stages"] == NOT_RUN]
    if absent:
        raise ArtifactError(f"not run to the end: {', '.join(absent)}")


def _row(root: Path, job: Job) -> dict[str, Any]:
    done = [stage for stage in job.stages if metrics(root, job.name, stage)]
    cut = metrics(root, job.name, "prune") or {}
    return {
        "experiment": job.name.removeprefix("every/"),
        "stages": " ".join(done) if len(done) == len(job.stages) else NOT_RUN,
        "parameters left": cut.get("params", NOT_RUN),
    }
