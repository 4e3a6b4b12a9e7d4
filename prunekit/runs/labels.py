"""What runs are called in tables: their method, strength and seed, out of their settings."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunekit.runs.stagedir import flat

Settings = Mapping[str, Any]
# settings of data sets that change the images of the test, or how many there are
_TESTED = ("image_size", "shape", "classes", "test", "only_exact", "noise", "data_seed")
# the argument whose product with lam is the scale from which on the penalty is flat
_CONCAVITY = {"MCP": "gamma", "SCAD": "a"}


def described(settings: Settings) -> dict[str, Any]:
    """What the settings of one stage say about its run; keys they say nothing about are absent.

    model, dataset, method (the penalty's name, else the criterion's), lam, ratio, keep, seed;
    `data`, equal for stages that were tested on the same images;
    `setting`, equal for stages that differ in nothing but the seed and the networks they read;
    and as "trait/solver", "trait/p" what else may tell two runs of one method apart.
    """
    names = {key: label(settings.get(key)) for key in ("model", "dataset")}
    names["method"] = label(settings.get("regularizer")) or label(settings.get("criterion"))
    selection = _node(settings, "selection")
    numbers = {
        "lam": _node(settings, "regularizer").get("lam"),
        "ratio": selection.get("ratio"),
        "keep": selection.get("keep"),
        "seed": settings.get("seed"),
    }
    found: dict[str, Any] = {key: name for key, name in names.items() if name}
    found |= {key: value for key, value in numbers.items() if _plain(value)}
    found |= {f"trait/{key}": value for key, value in _traits(settings).items()}
    found |= {"data": data} if (data := _tested_on(settings)) else {}
    return {**found, "setting": fingerprint(_but_seeds(settings))}


def label(node: object) -> str:
    """The name of a part of the settings, or that of its class; "" where it has neither."""
    if not isinstance(node, Mapping):
        return ""
    return str(node.get("name") or str(node.get("_target_", "")).rpartition(".")[2])


def fingerprint(values: object) -> str:
    """Eight characters that are equal for equal plain values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def told_apart(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The method of every run, with the traits in which the runs of that method differ.

    "lp p=0.5" beside "lp p=0.75", but "lp" where all have one p.
    """
    peers: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        peers.setdefault(str(run.get("method", "")), []).append(run)
    differing = {name: _differing(group) for name, group in peers.items()}
    return [
        " ".join([name, *_shown(run, differing[name])])
        for run in runs
        for name in [str(run.get("method", ""))]
    ]


def _differing(group: Sequence[Mapping[str, Any]]) -> list[str]:
    """Traits that take more than one value."""
    known = [_known(run) for run in group]
    keys = list(dict.fromkeys(key for run in known for key in run))
    return [key for key in keys if len({run.get(key) for run in known}) > 1]


def _known(run: Mapping[str, Any]) -> dict[str, Any]:
    """The traits of a run without their prefix; tables mark what a run lacks by not-a-number."""
    return {
        key.removeprefix("trait/"): value
        for key, value in run.items()
        if key.startswith("trait/") and value is not None and value == value
    }


def _shown(run: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    known = {key: value for key, value in _known(run).items() if key in keys}
    return [str(v) if isinstance(v, str) else f"{key}={v:g}" for key, v in known.items()]


def _traits(settings: Settings) -> dict[str, Any]:
    """The solver, and the penalty's arguments but for lam.

    How concave MCP and SCAD are counts as the scale from which on they are flat, whatever lam is.
    """
    penalty, solver = _node(settings, "regularizer", "penalty"), _node(settings, "solver")
    traits: dict[str, Any] = {"solver": label(solver)} if penalty and solver else {}
    traits |= {key: float(v) for key, v in penalty.items() if key != "lam" and _plain(v)}
    concavity = _CONCAVITY.get(label({"_target_": penalty.get("_target_", "")}))
    if concavity in traits and _plain(penalty.get("lam")):
        traits["flat"] = float(f"{traits.pop(concavity) * penalty['lam']:.6g}")
    return traits


def _tested_on(settings: Settings) -> str:
    """The data set and what of its settings says which images it is tested on."""
    dataset = _node(settings, "dataset")
    said = [f"{key}={dataset[key]}" for key in _TESTED if key in dataset]
    return " ".join([label(dataset), *said]) if dataset else ""


def _but_seeds(settings: Settings) -> dict[str, Any]:
    """Without the seed, what was seeded by it, and what differs from seed to seed for that."""
    values = flat(settings)
    follow = {k for k, v in values.items() if k.endswith(".seed") and v == settings.get("seed")}
    left_out = {"seed", "source", "teacher", "models", *follow}
    # what a stage found beside its source or in its run differs with these
    found = {"criterion": "scores", "selection": "curves"}
    left_out |= {
        file for key, file in found.items() if _node(settings, key).get("path", "given") is None
    }
    return {k: v for k, v in values.items() if not {k, k.partition(".")[0]} & left_out}


def _node(settings: Settings, *keys: str) -> Mapping[str, Any]:
    node: Any = settings
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _plain(value: object) -> bool:
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and math.isfinite(value)
