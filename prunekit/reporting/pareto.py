"""Accuracy against what it costs, and the runs that no other run beats in both."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, MARKERS, figure
from prunekit.reporting.seed_stats import shared_name

if TYPE_CHECKING:
    from pandas import DataFrame

# column of a summary, what its axis says, how many times the unit
COSTS = {
    "macs": ("Multiply-adds (millions)", 1e6),
    "params": ("Parameters (thousands)", 1e3),
    "cpu_share": ("CPU latency (% of dense, timed in turns)", 1.0),
    "cpu_ms": ("CPU latency (ms)", 1.0),
    "gpu_ms": ("GPU latency (ms)", 1.0),
}
_GREY = "#777777"
_SPAN = 2.0  # percentage points on the axis at least, so that a small difference looks small
_ABOVE = 0.03  # of the axis above 100 %, which half a mark needs
_NAMED = 14  # methods that a legend can hold


def front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Which points no other beats: none costs at most as much and gains at least as much.

    Of equal points all stay. (Pareto.)
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    stays, best, at = [False] * len(costs), float("-inf"), float("inf")
    for index in order:
        equal = gains[index] == best and costs[index] == at
        if gains[index] > best or equal:
            stays[index] = True
            best, at = gains[index], costs[index]
    return stays


def settings_of(runs: DataFrame, cost: str) -> DataFrame:
    """One row a setting that has an accuracy and this cost: means over its seeds.

    Runs that others continue are no results and left out, unless there are no others. Columns
    setting, run (one name for all seeds), method, seeds, top1, top1_std (missing for one seed), the
    cost, on_front.
    """
    import pandas as pd

    if "continued" in runs and not (steps := runs["continued"].astype(bool)).all():
        runs = runs[~steps]
    known = runs.dropna(subset=["top1", cost]) if {"top1", cost} <= {*runs} else runs.iloc[:0]
    keys = known["setting"].fillna(known["run"]) if "setting" in known else known.get("run")
    rows = [
        {
            "setting": setting,
            "run": shared_name(group["run"].tolist()),
            "method": group["method"].iloc[0] if "method" in group else "",
            "seeds": len(group),
            "top1": float(group["top1"].mean()),
            "top1_std": float(group["top1"].std()),
            cost: float(group[cost].mean()),
        }
        for setting, group in (known.groupby(keys, sort=False) if len(known) else ())
    ]
    points = pd.DataFrame(
        rows, columns=["setting", "run", "method", "seeds", "top1", "top1_std", cost]
    )
    best = front(points[cost].tolist(), points["top1"].tolist())
    points["on_front"] = pd.Series(best, dtype=bool)
    return points


def fronts(runs: DataFrame, path: str | Path, costs: Sequence[str]) -> None:
    """A panel a cost: a point a setting, a line along the front, the dense networks as crosses.

    `runs` is a summary of one test set. Raises ArtifactError where no run has any of the costs.
    """
    panels = {cost: settings_of(runs, cost) for cost in costs}
    panels = {cost: points for cost, points in panels.items() if len(points)}
    if not panels:
        raise ArtifactError(f"{path}: no run has an accuracy beside {', '.join(costs)}")
    methods = list(dict.fromkeys(str(m) for p in panels.values() for m in p["method"]))
    looks = dict(zip(methods, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    lines = -(-(min(len(methods), _NAMED) + 2) // 4)
    size = (4.8 * max(len(panels), 1.25), 3.7 + 0.22 * lines)
    crossed = False
    with figure(path, size, (1, len(panels)), sharey=True) as (made, grid):
        for axis, (cost, points) in zip(grid[0], panels.items(), strict=True):
            _draw_front(axis, points, cost)
            _draw_points(axis, points, cost, looks)
            crossed = _draw_dense(axis, runs, cost) or crossed
            _scale(axis, points[cost] / COSTS[cost][1], COSTS[cost][0])
        _at_least(grid[0, 0], _SPAN)
        grid[0, 0].set(ylabel="Test accuracy (%)")
        _legend(made, looks, crossed)


def _draw_points(
    axis: Any, points: DataFrame, cost: str, looks: dict[str, tuple[str, str]]
) -> None:
    for _, point in points.iterrows():
        colour, marker = looks[str(point["method"])]
        bar = {"yerr": point["top1_std"], "capsize": 2, "elinewidth": 0.8}
        axis.errorbar(
            point[cost] / COSTS[cost][1],
            point["top1"],
            **(bar if point["top1_std"] > 0 else {}),
            linestyle="none",
            color=colour,
            marker=marker,
            markersize=9 if marker == "*" else 7,
            markeredgecolor="black" if point["on_front"] else "white",
            markeredgewidth=1.1 if point["on_front"] else 0.4,
            zorder=4 if point["on_front"] else 3,
        )


def _draw_front(axis: Any, points: DataFrame, cost: str) -> None:
    """Steps: what is the most accurate for at most so much."""
    best = points[points["on_front"]].sort_values(cost)
    axis.step(
        *(best[cost] / COSTS[cost][1], best["top1"]),
        where="post",
        color="black",
        linewidth=1.0,
        alpha=0.6,
        zorder=2,
    )


def _draw_dense(axis: Any, runs: DataFrame, cost: str) -> bool:
    """The networks that runs started from: their cost is that of a run and its ratio."""
    if cost not in _DENSE or not {_DENSE[cost], "dense_top1"} <= {*runs}:
        return False
    known = runs.dropna(subset=[cost, _DENSE[cost], "dense_top1"])
    whole = (known[cost] * known[_DENSE[cost]] / COSTS[cost][1]).round(6)
    places = known.assign(whole=whole).groupby("whole")["dense_top1"].mean()
    axis.plot(places.index, places.to_numpy(), "x", color=_GREY, markersize=8, markeredgewidth=2)
    return len(places) > 0


_DENSE = {"macs": "macs_ratio", "params": "params_ratio", "cpu_ms": "speedup"}


def _scale(axis: Any, values: Any, label: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set(xlabel=label)
    if values.min() > 0 and values.max() / values.min() > 20:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_xlim(left=0)


def _at_least(axis: Any, span: float) -> None:
    low, high = axis.get_ylim()
    room = max(0.0, (span - (high - low)) / 2)
    low -= room
    axis.set_ylim(low, min(high + room, 100 + _ABOVE * (100 - low)))


def _legend(made: Any, looks: dict[str, tuple[str, str]], crossed: bool) -> None:
    from matplotlib.lines import Line2D

    def entry(colour: str, marker: str, edge: str) -> Any:
        style = {"linestyle": "none", "markersize": 7, "markeredgecolor": edge}
        style |= {"markeredgewidth": 0.4 if edge == "white" else 1.5}
        return Line2D([], [], color=colour, marker=marker, **style)

    named = [*looks.items()][:_NAMED]
    entries = {name or "other runs": entry(*look, "white") for name, look in named}
    if len(looks) > _NAMED:
        entries[f"and {len(looks) - _NAMED} more methods"] = entry("white", "", "white")
    entries["black edge, line: front"] = Line2D(
        [], [], color="black", linewidth=1, alpha=0.6, marker="o", markerfacecolor="white"
    )
    if crossed:
        entries["dense"] = entry(_GREY, "x", _GREY)
    made.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, len(entries))
    )
