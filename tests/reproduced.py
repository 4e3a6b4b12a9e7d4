"""Tables of `scripts.reproduce` in tests: at a scale, with runs made by hand."""

from __future__ import annotations

import csv
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from prunekit.config import config_dir, resolve
from scripts.reproduce import tables
from scripts.reproduce.sheets import write
from scripts.reproduce.tables import Table

PUBLISHED = tables.HERE / "published"
REFERENCE = tables.HERE.parents[2] / "shared" / "reference"
EVERY = [(name, scale) for name in tables.names() for scale in tables.contents(name)["scales"]]


def table(name, scale, root, seeds=None, **values):
    """A table at a scale, with other seeds or values of the scale."""
    found = Table.read(name, scale, Path(root), "../shared/weights")
    values |= {} if seeds is None else {"seeds": [*seeds]}
    return replace(found, scale={**found.scale, **values})


def rows_of(one, **values):
    """The rows that have these values."""
    return [row for row in one.rows if all(row.get(k) == v for k, v in values.items())]


def jobs_of(one):
    """All jobs, those of trials first."""
    return list(dict.fromkeys([*one.jobs_of(one.trials), *one.jobs_of(one.rows)]))


def finished(root, run, *stages, right=None, seconds=1.0, **metrics):
    """Make stages of a run look finished; `right` is which test images it recognises."""
    for stage in stages:
        folder = root / run / stage
        folder.mkdir(parents=True, exist_ok=True)
        report = {"metrics": metrics, "seconds": seconds}
        (folder / "report.json").write_text(json.dumps(report))
    if right is not None:
        networks = {"pruned": torch.zeros(len(right), dtype=torch.bool)}
        networks["fine-tuned"] = torch.as_tensor(right)
        torch.save(networks, root / run / "measure" / "correct.pt")


def written(one, name=None):
    """Write a table; the rows of its csv file, or of another one that it writes."""
    write(one, one.root / "out")
    return lines(one.root / "out" / f"{name or one.name}.csv")


def lines(file):
    with open(file, newline="") as stream:
        return list(csv.DictReader(stream))


@contextmanager
def composing():
    """Inside it, settings of many jobs are composed faster."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        yield
    GlobalHydra.instance().clear()


def composed(job, root="outputs"):
    """The settings that a job runs with."""
    words = [word for word in job.command(str(root)) if not word.startswith("source=")]
    if GlobalHydra.instance().is_initialized():
        return resolve(compose(config_name="run", overrides=words))
    with composing():
        return resolve(compose(config_name="run", overrides=words))
