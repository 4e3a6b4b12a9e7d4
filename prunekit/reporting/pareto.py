"""Figures of accuracy against cost, and the Pareto front of runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, MARKERS, as_label, figure
from prunekit.reporting.seed_stats import one_run_per_seed, shared_name

if TYPE_CHECKING:
    from pandas import DataFrame, Series

# column of a summary: axis label, unit
COSTS = {
    "macs": ("Multiply-adds (millions)", 1e6),
    "params": ("Parameters (thousands)", 1e3),
    "cpu_share": ("CPU latency (% of dense, timed in turns)", 1.0),
    "cpu_ms": ("CPU latency (ms)", 1.0),
    "gpu_ms": ("GPU latency (ms)", 1.0),
}
_GREY = "#777777"
_DENSE = {"macs": "macs_ratio", "params": "params_ratio", "cpu_ms": "speedup"}
_MIN_SPAN = 2.0  # percentage points on the y axis, so that a small difference looks small
_ABOVE = 0.03  # of the y axis above 100 %, for half a marker
_MAX_NAMED = 14  # methods in a legend


def front(costs: Sequence[float], gains: Sequence[float]) -> list[bool]:
    """Return which points are on the Pareto front: no other point costs no more and gains no less.

    Equal points are all on it.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -gains[i]))
    on_front, best_gain, best_cost = [False] * len(costs), float("-inf"), float("inf")
    for index in order:
        equal = gains[index] == best_gain and costs[index] == best_cost
        if gains[index] > best_gain or equal:
            on_front[index] = True
            best_gain, best_cost = gains[index], costs[index]
    return on_front


def setting_means(runs: DataFrame, cost: str) -> DataFrame:
    """Return means over seeds, one line for each setting that has an accuracy and this cost.

    Runs from which others continue are left out, unless there are no others. Columns: setting, run
    (one name for all seeds), method, seeds (their number), top1, top1_std (missing for one seed),
    the cost, on_front.
    """
    import pandas as pd

    if "continued" in runs and not (continued := runs["continued"].astype(bool)).all():
        runs = runs[~continued]
    measured = runs.dropna(subset=["top1", cost]) if {"top1", cost} <= {*runs} else runs.iloc[:0]
    measured = one_run_per_seed(measured)
    keys: Any = measured.get("run")
    if "setting" in measured:
        keys = measured["setting"].fillna(keys)
    points = pd.DataFrame(
        _means(measured, keys, cost) if len(measured) else {},
        columns=["setting", "run", "method", "seeds", "top1", "top1_std", cost],
    )
    on_front = front(points[cost].tolist(), points["top1"].tolist())
    points["on_front"] = pd.Series(on_front, dtype=bool)
    return points


def _means(measured: DataFrame, keys: Any, cost: str) -> dict[str, list[Any]]:
    """Return the columns of `setting_means`, computed for all settings at once."""
    groups = measured.astype({"top1": float, cost: float}).groupby(keys, sort=False)
    names = groups["run"].agg(list)
    first = groups["method"].first() if "method" in measured else [""] * len(names)
    return {
        "setting": [*names.index],
        "run": [shared_name(own) for own in names],
        "method": [*first],
        "seeds": [len(own) for own in names],
        "top1": [*groups["top1"].mean()],
        "top1_std": [*groups["top1"].std()],
        cost: [*groups[cost].mean()],
    }


def fronts(runs: DataFrame, path: str | Path, costs: Sequence[str]) -> None:
    """Draw accuracy against each cost: settings as points, the front as a line, dense as crosses.

    `runs` is a summary of one test set. Raises ArtifactError if no run has any of the costs.
    """
    panels = {cost: setting_means(runs, cost) for cost in costs}
    panels = {cost: points for cost, points in panels.items() if len(points)}
    if not panels:
        raise ArtifactError(f"{path}: no run has an accuracy beside {', '.join(costs)}")
    methods = list(dict.fromkeys(str(m) for p in panels.values() for m in p["method"]))
    looks = dict(zip(methods, zip(cycle(COLOURS), cycle(MARKERS), strict=False), strict=False))
    legend_lines = -(-(min(len(methods), _MAX_NAMED) + 2) // 4)
    size = (4.8 * max(len(panels), 1.25), 3.7 + 0.22 * legend_lines)
    has_dense = False
    with figure(path, size, (1, len(panels)), sharey=True) as (fig, axes):
        for axis, (cost, points) in zip(axes[0], panels.items(), strict=True):
            _draw_front(axis, points, cost)
            _draw_points(axis, points, cost, looks)
            has_dense = _draw_dense(axis, runs, cost) or has_dense
            _scale_costs(axis, points[cost] / COSTS[cost][1], COSTS[cost][0])
        _widen(axes[0, 0], _MIN_SPAN)
        axes[0, 0].set(ylabel="Test accuracy (%)")
        _legend(fig, looks, has_dense)


def _draw_points(
    axis: Any, points: DataFrame, cost: str, looks: dict[str, tuple[str, str]]
) -> None:
    """Draw all points that look alike at once, since sweeps have hundreds of them."""
    alike = [points["method"].astype(str), points["on_front"], points["top1_std"] > 0]
    for (method, on_front, has_bar), group in points.groupby(alike, sort=False):
        colour, marker = looks[str(method)]
        bar = {"yerr": group["top1_std"], "capsize": 2, "elinewidth": 0.8}
        axis.errorbar(
            group[cost] / COSTS[cost][1],
            group["top1"],
            **(bar if has_bar else {}),
            linestyle="none",
            color=colour,
            marker=marker,
            markersize=9 if marker == "*" else 7,
            markeredgecolor="black" if on_front else "white",
            markeredgewidth=1.1 if on_front else 0.4,
            zorder=4 if on_front else 3,
        )


def _draw_front(axis: Any, points: DataFrame, cost: str) -> None:
    """Draw steps: the highest accuracy for at most this cost."""
    front_points = points[points["on_front"]].sort_values(cost)
    axis.step(
        *(front_points[cost] / COSTS[cost][1], front_points["top1"]),
        where="post",
        color="black",
        linewidth=1.0,
        alpha=0.6,
        zorder=2,
    )


def _draw_dense(axis: Any, runs: DataFrame, cost: str) -> bool:
    """Draw the dense networks, with the cost of a run times its ratio; False if there are none."""
    if cost not in _DENSE or not {_DENSE[cost], "dense_top1"} <= {*runs}:
        return False
    measured = runs.dropna(subset=[cost, _DENSE[cost], "dense_top1"])
    dense_cost = (measured[cost] * measured[_DENSE[cost]] / COSTS[cost][1]).round(6)
    points = measured.assign(dense_cost=dense_cost).groupby("dense_cost")["dense_top1"].mean()
    axis.plot(points.index, points.to_numpy(), "x", color=_GREY, markersize=8, markeredgewidth=2)
    return len(points) > 0


def _scale_costs(axis: Any, values: Series, label: str) -> None:
    """Label the x axis, logarithmic if the costs differ by more than 20 times."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set(xlabel=label)
    if values.min() > 0 and values.max() / values.min() > 20:
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        axis.set_xlim(left=0)


def _widen(axis: Any, span: float) -> None:
    """Make the y axis span at least this many percentage points, and end near 100 %."""
    low, high = axis.get_ylim()
    room = max(0.0, (span - (high - low)) / 2)
    low -= room
    axis.set_ylim(low, min(high + room, 100 + _ABOVE * (100 - low)))


def _legend(fig: Any, looks: dict[str, tuple[str, str]], has_dense: bool) -> None:
    from matplotlib.lines import Line2D

    def entry(colour: str, marker: str, edge: str) -> Any:
        style: dict[str, Any] = {"linestyle": "none", "markersize": 7, "markeredgecolor": edge}
        style["markeredgewidth"] = 0.4 if edge == "white" else 1.5
        return Line2D([], [], color=colour, marker=marker, **style)

    first = [*looks.items()][:_MAX_NAMED]
    entries = {as_label(name) or "other runs": entry(*look, "white") for name, look in first}
    if len(looks) > _MAX_NAMED:
        entries[f"and {len(looks) - _MAX_NAMED} more methods"] = entry("white", "", "white")
    entries["black edge, line: front"] = Line2D(
        [], [], color="black", linewidth=1, alpha=0.6, marker="o", markerfacecolor="white"
    )
    if has_dense:
        entries["dense"] = entry(_GREY, "x", _GREY)
    fig.legend(
        entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, len(entries))
    )
