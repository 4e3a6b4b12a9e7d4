"""Labels of runs in tables, taken from their settings: method, strength, seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prunekit.runs.report import Settings, fingerprint, flatten

# settings of data sets that change the test images or their number
_TEST_SET_KEYS = ("image_size", "shape", "classes", "test", "only_exact", "noise", "data_seed")
# the argument of the penalty whose product with lam is the scale at which it becomes flat
_CONCAVITY = {"MCP": "gamma", "SCAD": "a"}


def describe(settings: Settings) -> dict[str, Any]:
    """Return the facts about a run that one stage's settings hold; other keys are absent.

    The keys are model, dataset, method (the penalty's name, else the criterion's), lam, ratio,
    keep, seed; `data`, which is equal for stages tested on the same images; `setting`, which is
    equal for stages that differ only in the seed and in the networks they read; and "trait/solver",
    "trait/p" and others, which may distinguish two runs of one method.
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
    facts: dict[str, Any] = {key: name for key, name in names.items() if name}
    facts |= {key: value for key, value in numbers.items() if _is_number(value)}
    facts |= {f"trait/{key}": value for key, value in _traits(settings).items()}
    facts |= {"data": data} if (data := _test_set(settings)) else {}
    return {**facts, "setting": fingerprint(_without_seeds(settings))}


def label(node: object) -> str:
    """Return the name of a part of the settings, else its class's name, else ""."""
    if not isinstance(node, Mapping):
        return ""
    return str(node.get("name") or str(node.get("_target_", "")).rpartition(".")[2])


def distinct_methods(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the method of every run, with the traits in which runs of that method differ.

    For example "lp p=0.5" beside "lp p=0.75", but "lp" if all have one p.
    """
    by_method: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        by_method.setdefault(str(run.get("method", "")), []).append(run)
    differing = {name: _differing(group) for name, group in by_method.items()}
    return [
        " ".join([name, *_trait_texts(run, differing[name])])
        for run in runs
        for name in [str(run.get("method", ""))]
    ]


def _differing(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the traits that have more than one value among the runs."""
    traits = [_traits_of(run) for run in runs]
    keys = list(dict.fromkeys(key for run in traits for key in run))
    return [key for key in keys if len({run.get(key) for run in traits}) > 1]


def _traits_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the traits of a run without their prefix; data frames mark missing ones by NaN."""
    return {
        key.removeprefix("trait/"): value
        for key, value in run.items()
        if key.startswith("trait/") and value is not None and value == value
    }


def _trait_texts(run: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    traits = {key: value for key, value in _traits_of(run).items() if key in keys}
    return [str(v) if isinstance(v, str) else f"{key}={v:g}" for key, v in traits.items()]


def _traits(settings: Settings) -> dict[str, Any]:
    """Return the solver and the penalty's arguments other than lam.

    The concavity of MCP and SCAD is given as the scale at which they become flat.
    """
    penalty, solver = _node(settings, "regularizer", "penalty"), _node(settings, "solver")
    traits: dict[str, Any] = {"solver": label(solver)} if penalty and solver else {}
    traits |= {key: float(v) for key, v in penalty.items() if key != "lam" and _is_number(v)}
    concavity = _CONCAVITY.get(label({"_target_": penalty.get("_target_", "")}))
    if concavity in traits and _is_number(penalty.get("lam")):
        traits["flat"] = float(f"{traits.pop(concavity) * penalty['lam']:.6g}")
    return traits


def _test_set(settings: Settings) -> str:
    """Return the data set's name with those of its settings that determine the test images."""
    dataset = _node(settings, "dataset")
    texts = [f"{key}={dataset[key]}" for key in _TEST_SET_KEYS if key in dataset]
    return " ".join([label(dataset), *texts]) if dataset else ""


def _without_seeds(settings: Settings) -> dict[str, Any]:
    """Return the flat settings without the seed and everything that differs because of it."""
    values = flatten(settings)
    seeded = {k for k, v in values.items() if k.endswith(".seed") and v == settings.get("seed")}
    removed = {"seed", "source", "teacher", "models", *seeded}
    # files that a stage looks up beside its source or in its run, since no path was set
    implicit = {"criterion": "scores", "selection": "curves"}
    removed |= {
        file for key, file in implicit.items() if _node(settings, key).get("path", "set") is None
    }
    return {
        key: value
        for key, value in values.items()
        if key not in removed and key.partition(".")[0] not in removed
    }


def _node(settings: Settings, *keys: str) -> Mapping[str, Any]:
    node: Any = settings
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
