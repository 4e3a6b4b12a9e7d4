"""What the head-to-head found: methods ranked, with verdicts against the first and the floor."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path

from head_to_head import FLOOR, TABLE, Extent, Network, chosen, named
from measured import NOT_RUN, Row, metrics, publish, refuse_empty, spread, verdict, write_markdown

from prunekit.runs.files import read_json

FOUND = (
    "All methods for equal epochs, ranked by test accuracy after tuning: mean and standard "
    "deviation over seeds, in percent. `before` is right after the cut, `recomputed` with "
    "batch-norm statistics of training images. Milliseconds are those of one thread, `seconds` "
    "those of all stages from the given network to the tuned one, two runs at a time. The last "
    "columns are the error minus that of the first, paired over seeds and test images; undecided "
    "where 0 is inside the interval: there the order says nothing."
)
VERDICTS = (
    "Against the floor: the L1 norm and random channels, and the same network from scratch. "
    "Error differences, paired over seeds and test images; undecided where 0 is inside."
)
CHOICE = (
    "Strengths, by the accuracy on the held-out images after tuning, first seed; published weights "
    "have seen those images. Those of the other methods come from their own tables."
)
BEHIND = "error minus that of the first, points"
LAST = (BEHIND, "95 % interval", "verdict")
STAGES = ("pruned", "fine-tuned")


@dataclass(frozen=True)
class Contest:
    """All methods on one network at one budget: the runs that were made, and what they found."""

    root: Path
    extent: Extent
    network: Network
    budget: str

    def runs(self, method: str, budget: str = "") -> list[str]:
        """The runs of a method, a seed each, whether they have finished or not."""
        lam, what = self.strength(method), budget or self.budget
        return [named(self.network, method, what, seed, lam) for seed in self.extent.seeds]

    def strength(self, method: str) -> float | None:
        """The strength that was taken."""
        return chosen(self.root, self.extent, self.network, method)

    def done(self, method: str) -> list[str]:
        """Those that have finished."""
        return [run for run in self.runs(method) if metrics(self.root, run, "measure")]

    def accuracy(self, method: str) -> float:
        """Mean test accuracy after tuning; of a method that was not run, below all others."""
        found = [metrics(self.root, run, "finetune")["top1"] for run in self.done(method)]
        return statistics.fmean(found) if found else -1.0

    def ranked(self) -> list[Row]:
        """A row for every method, the most accurate first, those not run last."""
        order = sorted(self.network.methods, key=lambda method: -self.accuracy(method))
        return [self._row(method, place, order[0]) for place, method in enumerate(order, 1)]

    def against_floor(self) -> list[Row]:
        """Every method against each of the floor, before tuning and after it."""
        rows: list[Row] = []
        for stage, against, method in product(STAGES, FLOOR, self.network.methods):
            if method in FLOOR and FLOOR.index(method) >= FLOOR.index(against):
                continue
            found = self._verdict(method, against, stage, "")
            head = {**self._head(), "network is": stage, "method": method, "against": against}
            rows += [head | found] if found else []
        return rows

    def _row(self, method: str, place: int, first: str) -> Row:
        done = self.done(method)

        def over(stage: str, key: str, form: str = "{:.2f}") -> str:
            found = [metrics(self.root, run, stage).get(key) for run in done]
            return spread([value for value in found if value is not None], form)

        return {
            **self._head(),
            "rank": place if done else "-",
            "method": method,
            "lam": self._said(method),
            "seeds": len(done),
            "before %": over("prune", "top1"),
            "recomputed %": over("prune", "after/dropped_recomputed"),
            "tuned %": over("finetune", "top1"),
            "parameters": over("finetune", "params", "{:,.0f}"),
            "MACs": over("finetune", "macs", "{:,.0f}"),
            "CPU ms": over("measure", "cpu_ms"),
            "CPU speed-up": over("measure", "speedup"),
            "seconds": spread([self._seconds(run, method) for run in done], "{:.0f}"),
            **self._behind(method, first),
        }

    def _said(self, method: str) -> str:
        lam = self.strength(method)
        return "-" if lam is None else f"{lam:g}"

    def _head(self) -> Row:
        return {"network": self.network.name, "budget": self.budget}

    def _behind(self, method: str, first: str) -> Row:
        if method == first:
            return dict.fromkeys(LAST, "-")
        found = self._verdict(method, first, "fine-tuned", "that of the first")
        return {key: found[key] if found else NOT_RUN for key in LAST}

    def _verdict(self, method: str, against: str, stage: str, title: str) -> Row | None:
        both = self.runs(method), self.runs(against)
        return verdict(self.root, *both, title, digits=2, network=stage)

    def _seconds(self, run: str, method: str) -> float:
        """From the given network to the tuned one: sparsification, cut and tuning."""
        apart = dict(zip(self.runs(method), self.runs(method, "sparse"), strict=True))[run]
        stages = {f"{apart}/sparsify", *(f"{run}/{s}" for s in ("sparsify", "prune", "finetune"))}
        files = [self.root / stage / "report.json" for stage in stages]
        return sum(read_json(file)["seconds"] for file in files if file.is_file())


def write_tables(name: str, root: Path, out: Path, extent: Extent) -> None:
    """The ranked methods of every network and budget, and the verdicts against the floor."""
    contests = [
        Contest(root, extent, network, budget)
        for network in extent.networks
        for budget in network.budgets
    ]
    found = [row for contest in contests for row in contest.ranked()]
    refuse_empty(found)
    verdicts = [row for contest in contests for row in contest.against_floor()]
    choice = [row for network in extent.networks for row in _choices(root, extent, network)]
    write_markdown(
        out / f"{name}.md",
        publish(out, name, "head to head", found, f"{extent.said} {FOUND}"),
        publish(out, f"{name}_verdicts", "against the floor", verdicts, VERDICTS),
        publish(out, f"{name}_choice", "strengths", choice, CHOICE),
    )


def _choices(root: Path, extent: Extent, network: Network) -> list[Row]:
    """Every strength that was tried, with the accuracy it was judged by."""
    budget, seed = next(iter(network.budgets)), extent.seeds[0]
    rows: list[Row] = []
    for method, how in network.methods.items():
        taken = chosen(root, extent, network, method)
        for lam in how.strengths if len(how.strengths) > 1 else ():
            found = metrics(root, named(network, method, budget, seed, lam), "finetune")
            accuracy = spread([found["val_top1"]] if found else [])
            row = {"network": network.name, "method": method, "lam": f"{lam:g}"}
            rows.append(row | {"tuned, val %": accuracy, "chosen": "yes" if lam == taken else ""})
    return rows


write_head_to_head = partial(write_tables, TABLE)
write_lenet = partial(write_tables, f"{TABLE}_lenet")
