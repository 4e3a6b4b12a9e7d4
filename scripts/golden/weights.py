"""Compare the networks of every experiment file's smoke run in two checkouts.

Each checkout lists the jobs of its own table of experiments at the scale smoke. What is there
already is not run again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

import prunekit


@dataclass(frozen=True)
class Expected:
    """Differences that are expected: patterns of experiments and of differences, and the reason."""

    experiments: str
    parts: str
    why: str


EXPECTED: tuple[Expected, ...] = (
    Expected(
        "stlp_vgg16_imagenet",
        "*",
        "where ranks of layers were equal the rounding of a mean decided; now their order does",
    ),
    Expected(
        "head_to_head_resnet20",
        "*",
        "budgets keep the same share of every layer by default, which its table always asked for",
    ),
)

CLOCK = ("_ms", "seconds", "speedup", "memory", "predicted/", "per_second")  # in names of metrics
# also of a checkout whose scripts were files in one folder
ASK = """
import json, sys
try:
    from scripts.reproduce.every import jobs
    small = jobs("smoke")
except ImportError:
    sys.path.insert(0, "scripts")
    import every_experiment
    small = every_experiment.jobs(every_experiment.SCALES["smoke"])
print(json.dumps({job.name.split("/")[-1]: [job.stages, job.command("runs")] for job in small}))
"""
SAME = ("runtime.device=cpu", "runtime.threads=1")


@dataclass(frozen=True)
class Side:
    """A checkout, and the folder that its runs go to."""

    checkout: Path
    folder: Path

    def jobs(self) -> dict[str, tuple[list[str], list[str]]]:
        """Return the stages of every experiment, and the arguments of `prunekit run`."""
        answer = self._python("-c", ASK, cwd=self.checkout, check=True, capture_output=True)
        return json.loads(answer.stdout)

    def run(self, name: str, stages: Sequence[str], arguments: Sequence[str]) -> bool:
        """Run an experiment, unless that has been done; whether it came to its end."""
        if not all((self.stage(name, stage) / "report.json").is_file() for stage in stages):
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / f"{name}.log", "w", encoding="utf-8") as log:
                line = ("-m", "prunekit", "run", *arguments, *SAME)
                ended = self._python(*line, cwd=self.folder, stdout=log, stderr=log)
            return ended.returncode == 0
        return True

    def stage(self, name: str, stage: str) -> Path:
        """Return the directory of a stage."""
        return self.folder / "runs" / "every" / name / stage

    def _python(self, *arguments: str, **more: Any) -> subprocess.CompletedProcess:
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        env = {**os.environ, **threads, "PYTHONPATH": str(self.checkout)}
        return subprocess.run([sys.executable, *arguments], env=env, text=True, **more)


def compare(
    sides: tuple[Side, Side], only: Sequence[str], processes: int, say: Callable[[str], None]
) -> int:
    """Run and compare; prints a line an experiment, and 1 where there is a difference."""
    before, now = (side.jobs() for side in sides)
    absent = {name: "is in one checkout alone" for name in before.keys() ^ now.keys()}
    names = [name for name in sorted(before.keys() & now.keys()) if not only or name in only]

    def one(name: str) -> tuple[str, list[str]]:
        return name, _differences(sides, name, before[name], now[name])

    bad, width = 0, max(map(len, names), default=0)
    with ThreadPoolExecutor(processes) as pool:
        for number, (name, texts) in enumerate(pool.map(one, names), start=1):
            expected = [text for text in texts if _is_expected(name, text)]
            rest = [text for text in texts if text not in expected]
            bad += bool(rest)
            verdict = "different" if rest else "as expected" if expected else "equal"
            say(f"{number:>3}/{len(names)}  {name:<{width}}  {verdict}  {'; '.join(texts[:4])}")
    for name, why in absent.items():
        say(f"         {name:<{width}}  {why}")
    say(f"{len(names) - bad} of {len(names)} experiments as before")
    return int(bool(bad or (absent and not only)))


def _is_expected(name: str, text: str) -> bool:
    return any(fnmatch(name, one.experiments) and fnmatch(text, one.parts) for one in EXPECTED)


def _differences(sides: tuple[Side, Side], name: str, *jobs: tuple[Any, Any]) -> list[str]:
    ended = [side.run(name, *job) for side, job in zip(sides, jobs, strict=True)]
    if not all(ended):
        failed = [str(s.folder / f"{name}.log") for s, e in zip(sides, ended, strict=True) if not e]
        return [f"failed, see {' and '.join(failed)}"]
    if jobs[0][0] != jobs[1][0]:
        return [f"stages: {jobs[0][0]}, {jobs[1][0]}"]
    texts = []
    for stage in jobs[0][0]:
        places = [side.stage(name, stage) for side in sides]
        texts += [f"{stage}/{text}" for text in of_stage(*places)]
    return texts


def of_stage(old: Path, new: Path) -> Iterator[str]:
    """Yield what differs in a stage: tensors, kept units, and figures that no clock gives."""
    if _both(old, new, "model.pt"):
        yield from _of_tensors(*(_tensors(place / "model.pt") for place in (old, new)))
    if _both(old, new, "plan.json"):
        groups = [_json(place / "plan.json")["groups"] for place in (old, new)]
        for name in sorted({*groups[0], *groups[1]}):
            if groups[0].get(name) != groups[1].get(name):
                yield f"plan {name}"
    metrics = [_metrics(place) for place in (old, new)]
    for key in sorted({*metrics[0], *metrics[1]}):
        pair = [str(one.get(key)) for one in metrics]
        if pair[0] != pair[1]:
            yield f"{key}: {pair[0]}, now {pair[1]}"


def _both(old: Path, new: Path, file: str) -> bool:
    there = [(place / file).is_file() for place in (old, new)]
    if there[0] != there[1]:
        raise SystemExit(f"{file} is in one of {old} and {new} alone")
    return all(there)


def _tensors(file: Path) -> Mapping[str, torch.Tensor]:
    """Return the tensors of the network that a model file describes."""
    return prunekit.load_model(file).model.state_dict()


def _of_tensors(old: Mapping[str, torch.Tensor], new: Mapping[str, torch.Tensor]) -> Iterator[str]:
    if [*old] != [*new]:
        yield f"tensors {sorted({*old} ^ {*new})[:3] or 'in another order'}"
    for name in old.keys() & new.keys():
        one, other = old[name], new[name]
        if one.dtype != other.dtype or one.shape != other.shape:
            yield f"{name}: {one.dtype} {tuple(one.shape)}, now {other.dtype} {tuple(other.shape)}"
        elif not torch.equal(one.nan_to_num(), other.nan_to_num()):
            yield f"{name}: up to {float((one.double() - other.double()).abs().max()):.1e}"


def _metrics(place: Path) -> dict[str, Any]:
    metrics = _json(place / "report.json")["metrics"]
    return {key: value for key, value in metrics.items() if not any(mark in key for mark in CLOCK)}


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
