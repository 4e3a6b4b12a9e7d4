"""Tables as data: `tables/NAME.yaml` says which rows there are and which runs stand behind them.

Keys of a file; what it does not say it takes from the file that its `base` names:

- `published`: files of `published/`, whose rows come first; `only`: which of them; `count`: a name
  to a column, how many rows so far have the same value there
- `rows`: more rows; lists of values are all combinations. `lookup`: columns of published rows
  that are put into them
- `let`: rules (see `rows`); those of `base` come after
- `runs`: kinds of runs, a template of `name`, `overrides` and `stages`, and of what a run comes
  `after`: another kind, or the name of a run; `needs` are other kinds. `*name` in overrides is a
  list of the row's, or one of `lists`. A row has all kinds, or those that it names as its `runs`
- `scales`: `seeds`, `overrides` and rules in `let`, which come last; a row runs where it fits
  `where`. A scale may have `rows` and `trials` of its own
- `trials`: rows that run first; `choose` takes for rows with the same `of` the value of `take`
  whose trial has the highest figure `by`, the first of equal ones
- `sheets`: what is written (see `sheets`); without it the file is one sheet itself

Some values of a row have a meaning of their own: `runs`, `seeds`, `needs` (what a run takes),
`blank` (what stands for a missing figure), `cells` (columns that differ for this row).
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from scripts.reproduce.experiments import small_overrides
from scripts.reproduce.jobs import Job
from scripts.reproduce.measured import Measured
from scripts.reproduce.rows import Row, expanded, fits, resolved, text_of

HERE = Path(__file__).parent
SHEET = ("title", "text", "select", "head", "columns", "done", "only_measured")


@dataclass(frozen=True)
class Table:
    """A table at one scale: its rows, the jobs behind them, and their results below `root`.

    `weights` is the folder of published weights. What is measured is read once: a table is made
    anew after jobs have run.
    """

    name: str
    content: Mapping[str, Any]
    scale: Mapping[str, Any]
    root: Path
    weights: str = "weights"

    @classmethod
    def read(cls, name: str, scale: str, root: Path, weights: str = "weights") -> Table:
        """Return the table of a file; KeyError for a scale that it has not."""
        content = contents(name)
        return cls(name, content, content["scales"][scale], root, weights)

    @cached_property
    def rows(self) -> list[Row]:
        """All rows, whether they run at this scale or not."""
        listed = map(self._with_choice, self._entries("rows"))
        return [self.resolved(row) for row in [*self._facts(), *listed]]

    @cached_property
    def trials(self) -> list[Row]:
        """The rows of trials, which know what was chosen."""
        trials = map(self._with_choice, self._entries("trials"))
        return [self.resolved({**row, "trial": "yes"}) for row in trials]

    @cached_property
    def choices(self) -> dict[tuple[str, ...], Any]:
        """The values of the best trials, by what they are for; those without a trial are absent."""
        best: dict[tuple[str, ...], tuple[float, Any]] = {}
        for entry in self._entries("trials"):
            by = self.content["choose"]["by"]
            runs = self.runs(self.resolved({**entry, "trial": "yes"}))
            figure = runs[0].number(by) if runs else None
            if figure is not None and figure > best.get(self._key(entry), (-1.0, None))[0]:
                best[self._key(entry)] = (figure, entry[self.content["choose"]["take"]])
        return {key: value for key, (_, value) in best.items()}

    def _entries(self, kind: str) -> list[Row]:
        return [*expanded(self.scale.get(kind, self.content.get(kind, ())))]

    def _key(self, row: Row) -> tuple[str, ...]:
        return tuple(str(row.get(name)) for name in self.content["choose"]["of"])

    def _with_choice(self, row: Row) -> Row:
        """Put in the chosen value; a row for which nothing has been chosen yet has no runs."""
        keys = {self._key(trial) for trial in self._entries("trials")}
        if not keys or self._key(row) not in keys:
            return row
        take, chosen = self.content["choose"]["take"], self.choices.get(self._key(row))
        if chosen is not None:
            return {take: chosen, **row, "chosen": chosen}
        return row if take in row else {**row, "runs": []}

    def _facts(self) -> Iterator[Row]:
        counter: Counter[tuple[str, ...]] = Counter()
        for file in self.content.get("published", ()):
            for fact in facts(file):
                counts = {}
                for name, column in self.content.get("count", {}).items():
                    counter[file, name, fact[column]] += 1
                    counts[name] = counter[file, name, fact[column]]
                if fits(fact, self.content.get("only", {})):
                    yield {**fact, **counts, "file": file, "fact": fact}

    def resolved(self, entry: Row, seed: int | None = None) -> Row:
        """Return a row with the values that rules give it, and the `entry` that it comes from."""
        own = {"seed": self.scale["seeds"][0] if seed is None else seed, "weights": self.weights}
        rules = [*self.content.get("let", ()), *self.scale.get("let", ())]
        row = resolved({**entry, **own, "entry": entry}, rules)
        for lookup in self.content.get("lookup", ()):
            row |= _looked_up(lookup, row)
        return row

    def is_run(self, row: Row) -> bool:
        """Tell whether a row is run at this scale."""
        return bool(row.get("runs", True)) and self.is_part(row)

    def is_part(self, row: Row) -> bool:
        """Tell whether a row belongs to this scale, even if it cannot be run yet."""
        return fits(row, self.scale.get("where", {}))

    def seeds(self, row: Row) -> list[int]:
        """Return the seeds that a row runs with, each once."""
        return [*dict.fromkeys(row.get("seeds", self.scale["seeds"]))]

    def jobs(self, row: Row, seed: int) -> list[Job]:
        """Return the jobs of a row with a seed, the one that it is about last."""
        own = self.resolved(row["entry"], seed)
        kinds = own.get("runs", self.content.get("runs", ()))
        return [self._job(self.content["runs"][text_of(kind, own)], own) for kind in kinds]

    def runs(self, row: Row) -> list[Measured]:
        """Return what there is of a row's runs, for every seed, finished or not."""
        return [*self.runs_by_seed(row).values()]

    def runs_by_seed(self, row: Row) -> dict[int, Measured]:
        """Return what there is of a row's runs; seeds that share a run count once."""
        runs: dict[str, tuple[int, Measured]] = {}
        for seed in self.seeds(row):
            one = Measured(self.root, tuple(self.jobs(row, seed)))
            if one.jobs:
                runs.setdefault(one.jobs[-1].name, (seed, one))
        return dict(runs.values())

    def measured(self, row: Row, stages: Sequence[str] = ()) -> list[Measured]:
        """Return the runs of a row that have finished these stages, by default their last one."""
        return [one for one in self.runs(row) if one.finished(stages)] if self.is_run(row) else []

    def jobs_of(self, rows: Iterable[Row]) -> list[Job]:
        """Return the jobs of rows, seed by seed, each run once."""
        rows = [row for row in rows if self.is_run(row)]
        jobs: dict[str, Job] = {}
        for seed in sorted({seed for row in rows for seed in self.seeds(row)}):
            for row in rows:
                for job in self.jobs(row, seed) if seed in self.seeds(row) else ():
                    jobs.setdefault(job.name, job)
        return [*jobs.values()]

    def _job(self, kind: Mapping[str, Any], row: Row) -> Job:
        return Job(
            text_of(kind["name"], row),
            tuple(self._overrides(kind["overrides"], row)),
            tuple(kind["stages"]),
            self._run(kind["after"], row) if "after" in kind else None,
            kind.get("stage", ""),
            tuple(self._run(other, row) for other in kind.get("needs", ())),
        )

    def _run(self, kind: str, row: Row) -> str:
        """Return the name of the run of a kind, or of the run that is named."""
        named = text_of(kind, row)
        return text_of(self.content["runs"].get(named, {"name": named})["name"], row)

    def _overrides(self, words: Sequence[str], row: Row) -> Iterator[str]:
        """Yield words with the row's values put in, and those that stand for several."""
        for word in words:
            if word.startswith("small="):
                yield from small_overrides(text_of(word.removeprefix("small="), row))
            elif word == "*overrides":
                yield from self._overrides(self.scale.get("overrides", ()), row)
            elif word.startswith("*"):
                lists = self.content.get("lists", {})
                yield from self._overrides(row.get(word[1:], lists.get(word[1:], ())), row)
            else:
                yield text_of(word, row)

    def sheets(self) -> list[dict[str, Any]]:
        """Return what is written of the table, sheet by sheet."""
        whole = {key: self.content[key] for key in SHEET if key in self.content}
        return [
            {"name": f"{self.name}{sheet.get('suffix', '')}", **whole, **sheet}
            for sheet in self.content.get("sheets", [{}])
        ]


def _looked_up(lookup: Mapping[str, Any], row: Row) -> Row:
    """Return columns of the published row that a row looks up; none where it names none."""
    try:
        patterns = {name: text_of(value, row) for name, value in lookup["where"].items()}
    except KeyError:
        return {}
    fact = next((fact for fact in facts(lookup["file"]) if fits(fact, patterns)), {})
    return {name: fact[column] or "-" for name, column in lookup["columns"].items() if fact}


def names() -> list[str]:
    """Return the names of all tables that are data."""
    return sorted(file.stem for file in (HERE / "tables").glob("[!_]*.yaml"))


@cache
def facts(name: str) -> list[Row]:
    """Return the rows of a published table, as printed."""
    with (HERE / "published" / f"{name}.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


@cache
def contents(name: str) -> dict[str, Any]:
    """Return the keys of a file on those of its base; rules of the base come after its own.

    Scales and kinds of runs are added to those of the base; a scale that is null goes.
    """
    own = yaml.safe_load((HERE / "tables" / f"{name}.yaml").read_text(encoding="utf-8"))
    base = contents(own["base"]) if "base" in own else {}
    whole = {**base, **own, "let": [*own.get("let", ()), *base.get("let", ())]}
    for key in ("runs", "scales"):
        both = {**base.get(key, {}), **own.get(key, {})}
        whole[key] = {name: value for name, value in both.items() if value is not None}
    return whole
