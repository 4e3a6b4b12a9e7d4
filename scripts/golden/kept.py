"""The units that every criterion and selection keeps on six networks, in Python and by command.

One file a network. An entry that a change of the weights by a millionth flips is listed as fragile:
the last bits of another processor may flip it too.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import prunekit
from prunekit.errors import PrunekitError
from prunekit.measure import LatencyTest
from prunekit.selection import LatencyTarget
from scripts.golden.cells import CRITERIA, QUIET, SELECTIONS, Place
from scripts.golden.cli import call
from scripts.golden.networks import NETWORKS

KEPT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "kept"
ON_THE_COMMAND_LINE = (  # one for every file of configs/selection
    *("per_layer", "global", "macs_local", "params_global", "budgets", "slimming", "threshold"),
    *("zeros", "widths", "lenet_2_8_77", "like_run", "sensitivity"),
)
TIMED = ("l1_norm", "lamp", "matrix", "taylor")  # a clock decides what is kept: that it runs
ALIKE, RUNS, REFUSED = "as in python", "runs", "refused"
UNFITTED = "reconstruct=none"  # what is kept does not depend on it
DEFAULTS = "defaults"  # the part that is meant to change with the defaults
TRIED = ("per_layer", "global", "macs_global", "slimming")
EVERY = 3  # of the pairs a network is asked on the command line, so that each is on two networks
PLAINLY = {  # the command line's choices, and the arguments in Python
    "per_layer": {"keep": 0.5},
    "macs": {"macs": 0.5},
    "params": {"params": 0.5},
    "global": {"keep": 0.5, "scope": "global"},
}

Cells = dict[str, dict[str, str]]  # criterion -> selection -> what is kept, or the refusal


class Bench:
    """A network and its images, pruned in Python and on the command line."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.network = name, NETWORKS[name]
        self.place = Place(self.network, folder / name)
        self._models: dict[str, nn.Module] = {}
        self._scorers: dict[tuple[str, bool], Any] = {}

    @cached_property
    def data(self) -> Any:
        """Return the images."""
        return self.network.data()

    def python(self, criterion: str, selection: str, changed: nn.Module | None = None) -> str:
        """Return the units that `prunekit.prune` keeps, of this network or a changed one."""
        model = self._model(CRITERIA[criterion].source) if changed is None else changed
        scorer = self._scorer(criterion, changed is not None)
        return self._kept(model, scorer, SELECTIONS[selection].make(self.place))

    def cli(self, criterion: str, selection: str) -> str:
        """Return the units that `prunekit prune` keeps."""
        chosen = (*CRITERIA[criterion].overrides, *SELECTIONS[selection].overrides(self.place))
        return self._command(criterion, *chosen)

    def timed(self, criterion: str) -> tuple[str, str]:
        """Return whether a budget of latency works in both ways; a clock decides what is kept."""
        test = LatencyTest(threads=1, batch=4, runs=5, warmup=1, seconds=1)
        wish = LatencyTarget(
            0.8, scope="local", normalise=None, on_miss="nearest", timing=test, round_to=1
        )
        python = self._kept(self._model(CRITERIA[criterion].source), self._scorer(criterion), wish)
        words = ("runs=5", "batch=4", "warmup=1", "seconds=1", "threads=1")
        rest = ("scope=local", "normalise=null", "on_miss=nearest", "keep=0.8")
        cli = self._command(
            criterion,
            *("selection=latency", *(f"latency.{one}" for one in words)),
            *(f"selection.{one}" for one in rest),
        )
        return tuple(one if one.startswith(REFUSED) else RUNS for one in (python, cli))

    def changed(self, kind: str) -> nn.Module:
        """Return the network with every weight moved by about three millionths of itself."""
        model = self.place.model(kind)
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=source)
                parameter.mul_(1 + 3e-6 * noise)
        return model

    def bare_python(self, criterion: str, shares: Mapping[str, Any]) -> str:
        """Return the units that are kept by names alone, with the defaults of Python."""
        return self._kept(self._model("dense"), criterion, None, **shares)

    def bare_cli(self, criterion: str, selection: str) -> str:
        """Return the units that are kept by choices alone, with the command line's defaults."""
        return self._command(criterion, f"selection={selection}")

    def _model(self, kind: str) -> nn.Module:
        if kind not in self._models:
            self._models[kind] = self.place.model(kind)
        return self._models[kind]

    def _scorer(self, criterion: str, changed: bool = False) -> Any:
        """Return the criterion, which scores each of the two networks once."""
        if (criterion, changed) not in self._scorers:
            fresh = CRITERIA[criterion].make(self.place)
            self._scorers[criterion, changed] = _once(fresh)
        return self._scorers[criterion, changed]

    def _kept(self, model: nn.Module, criterion: Any, selection: Any, **more: Any) -> str:
        beside = {} if selection is None else {"selection": selection}
        settings: dict[str, Any] = {"data": self.data, "check": False, "absorb": False}
        settings |= {"reconstruct": None, **beside, **more}
        try:
            pruned = prunekit.prune(model, self.data.example, criterion=criterion, **settings)
        except PrunekitError as error:
            return self._refusal(f"{type(error).__name__}: {error}")
        masks = {name: mask.tolist() for name, mask in pruned.masks.items()}
        return "  ".join(f"{name} {runs(mask)}" for name, mask in masks.items())

    def _command(self, criterion: str, *chosen: str) -> str:
        source = self.place.source(CRITERIA[criterion].source)
        run = self.place.path / "run"
        shutil.rmtree(run, ignore_errors=True)
        words = (f"source={source}", f"criterion={criterion}", *chosen, "name=run", UNFITTED)
        ended = call(self.place.path, "prune", *QUIET, *self.network.overrides(), *words)
        if ended.code:
            return self._refusal(ended.refusal)
        groups = json.loads((run / "prune" / "plan.json").read_text())["groups"]
        return "  ".join(f"{name} {_planned(group)}" for name, group in groups.items())

    def _refusal(self, text: str) -> str:
        return f"{REFUSED} {text}".replace(str(self.place.path), "PLACE")


def _once(scorer: Any) -> Any:
    """A criterion that computes its scores once and returns them again."""
    score, cache = scorer.scores, []

    def scores(*values: Any, **named: Any) -> Any:
        if not cache:
            cache.append(score(*values, **named))
        return cache[0]

    object.__setattr__(scorer, "scores", scores)
    return scorer


def runs(mask: Iterable[bool]) -> str:
    """Return the kept indices as ranges, and of how many: "0-2,5/6"; "-" is none."""
    kept = [index for index, stays in enumerate(mask) if stays]
    parts: list[list[int]] = []
    for index in kept:
        if parts and parts[-1][-1] == index - 1:
            parts[-1][1:] = [index]
        else:
            parts.append([index])
    return f"{','.join('-'.join(map(str, part)) for part in parts) or '-'}/{len(list(mask))}"


def _planned(group: Mapping[str, Any]) -> str:
    kept = set(group["indices"])
    return runs([index in kept for index in range(group["of"])])


def selections(network: str) -> list[str]:
    """Return the selections of a network: widths of LeNet are LeNet's."""
    return [name for name in SELECTIONS if network == "lenet" or name != "lenet_2_8_77"]


def on_the_command_line(network: str, criterion: str, selection: str) -> bool:
    """Tell whether a pair is run as a command on this network; widths of LeNet always are."""
    if selection not in ON_THE_COMMAND_LINE:
        return False
    places = ([*NETWORKS], [*CRITERIA], ON_THE_COMMAND_LINE)
    pairs = zip(places, (network, criterion, selection), strict=True)
    return selection == "lenet_2_8_77" or sum(p.index(one) for p, one in pairs) % EVERY == 0


def record(name: str, out: Path, say: Callable[[str], None]) -> None:
    """Write the file of a network, criterion by criterion; what it has already stays."""
    file = out / f"{name}.json"
    content = read(file) if file.is_file() else {"python": {}, "cli": {}, "fragile": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(name, Path(folder))
        for criterion in CRITERIA:
            if criterion in content["cli"]:
                continue
            content["python"][criterion], content["cli"][criterion] = _row(bench, criterion)
            fragile = _fragile(bench, criterion, content["python"][criterion])
            if fragile:
                content["fragile"][criterion] = fragile
            write(file, content)
            say(f"{name}: {criterion} {len(content['cli'])}/{len(CRITERIA)}")


def _row(bench: Bench, criterion: str) -> tuple[dict[str, str], dict[str, str]]:
    names = selections(bench.name)
    python = {name: bench.python(criterion, name) for name in names}
    cli = {
        name: bench.cli(criterion, name)
        for name in names
        if on_the_command_line(bench.name, criterion, name)
    }
    if criterion in TIMED:
        python["latency"], cli["latency"] = bench.timed(criterion)
    alike = {name for name, one in cli.items() if _words(one) == _words(python[name])}
    return python, {name: ALIKE if name in alike else one for name, one in cli.items()}


def _words(kept: str) -> str:
    """Return the kept units, or the words of a refusal without the names of error and program."""
    return kept.partition(": ")[2] if kept.startswith(REFUSED) else kept


def _fragile(bench: Bench, criterion: str, kept: Mapping[str, str]) -> list[str]:
    """Return the selections that keep other units once all weights have moved a little.

    A few are tried, which look at the order of scores within and between groups; where one of them
    flips, all do that look at scores.
    """
    changed = bench.changed(CRITERIA[criterion].source)
    again = {name: bench.python(criterion, name, changed) for name in TRIED}
    return [*kept] if any(_words(again[name]) != _words(kept[name]) for name in TRIED) else []


def record_defaults(out: Path, say: Callable[[str], None]) -> None:
    """Record what is kept in both ways where only a criterion and a share are named."""
    content: dict[str, Cells] = {"python": {}, "cli": {}}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench("resnet", Path(folder))
        for criterion in CRITERIA:
            budgets = PLAINLY if criterion in ("l1_norm", "lamp", "bn_scale") else ("macs",)
            for name in budgets:
                python = bench.bare_python(criterion, PLAINLY[name])
                content["python"].setdefault(criterion, {})[name] = python
                content["cli"].setdefault(criterion, {})[name] = bench.bare_cli(criterion, name)
            say(f"{DEFAULTS}: {criterion}")
    write(out / f"{DEFAULTS}.json", content)


def read(file: Path) -> dict[str, Any]:
    """Return the content of a file that `record` wrote."""
    return json.loads(file.read_text(encoding="utf-8"))


def write(file: Path, content: Mapping[str, Any]) -> None:
    """Write the content with one entry a line, so that changes are easy to read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(file)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield entries that differ, and how: `kept`, `fragile` (in last bits only), or the `words`."""
    for side in ("python", "cli"):
        for criterion in {**old[side], **new[side]}:
            rows = [one[side].get(criterion, {}) for one in (old, new)]
            for name in {**rows[0], **rows[1]}:
                before, after = (_meant(one, side, criterion, name) for one in (old, new))
                if before == after:
                    continue
                kind = "kept"
                if before.startswith(REFUSED) and before.split(":")[0] == after.split(":")[0]:
                    kind = "words"
                elif any(name in one.get("fragile", {}).get(criterion, ()) for one in (old, new)):
                    kind = "fragile"
                yield kind, f"{side} {criterion} {name}:\n  was {before}\n  now {after}"


def _meant(content: Mapping[str, Any], side: str, criterion: str, name: str) -> str:
    """Return the text of an entry: the command line's may be that of Python."""
    text = content[side].get(criterion, {}).get(name, "not asked")
    return content["python"][criterion][name] if text == ALIKE else text
