"""The trade-off of runs in one figure: accuracy against size, and how small scales became."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, MARKERS, check_place, figure

if TYPE_CHECKING:
    from pandas import DataFrame

_SIZES = {"params_share": "Parameters kept (%)", "macs_share": "MACs kept (%)"}
# column, how it is drawn
_MOMENTS = {
    "pruned_top1": {"linestyle": "--", "markerfacecolor": "white"},
    "tuned_top1": {"linestyle": "-"},
}
_NEEDED = (*_SIZES, *_MOMENTS, "dense_top1")
_YLABEL = {
    ("tuned_top1",): "Accuracy, fine-tuned (%)",
    ("pruned_top1",): "Accuracy right after pruning (%)",
}
_GREY = "#777777"
_APART = 0.03  # sizes further apart than this share of the dense network are joined by a line
_EQUAL = 0.01  # sizes closer than this are one size


def accuracy_against_size(summary: DataFrame, path: str | Path) -> None:
    """Test accuracy before and after fine-tuning against parameters and MACs; small scales.

    `summary` is what `tables.summary` returns. A colour and a marker is a method, a lighter shade
    a smaller strength; hollow and dashed is right after pruning, solid is fine-tuned, a grey line
    is the dense network. Where accuracy collapsed before fine-tuning, that has panels of its own.
    Runs that differ in the seed only are one point, with their standard deviation as a bar. A line
    joins runs of one strength where there are several, else those of one method. The last panel,
    where runs know it, is the share of penalised rows below each norm. Raises ArtifactError where
    no run has been pruned.
    """
    check_place(path)
    runs = _pruned(summary, path)
    points, looks, small = averaged(runs), _Looks.of(runs), small_shares(runs)
    rows = _rows(points, runs)
    widths = [1.0, 1.0, 0.9] if small else [1.0, 1.0]
    size = (3.6 * sum(widths) + 0.2, 1.3 + 2.6 * len(rows))
    with figure(path, size, (len(rows), len(widths)), width_ratios=widths) as (made, grid):
        for axes, moments in zip(grid, rows, strict=True):
            for axis, size_column in zip(axes, _SIZES, strict=False):
                _draw_points(axis, points, size_column, moments, looks)
                _draw_dense(axis, runs)
                _scale(axis, points[size_column], looks, bottom=moments == rows[-1])
            axes[0].set(ylabel=_YLABEL.get(moments, "Test accuracy (%)"))
            axes[1].sharey(axes[0])
            axes[1].tick_params(labelleft=False)
        made.align_ylabels(grid[:, 0])
        if small:
            _draw_small(_merged(made, grid[:, 2]), small, looks)
        _legend(made, looks, points, dense=bool(runs["dense_top1"].notna().any()))


def averaged(runs: DataFrame) -> DataFrame:
    """One row a setting: means over its seeds, and deviations as columns `<name>_std`.

    Columns method, lam, setting, seeds (how many runs), params_share, macs_share, pruned_top1,
    tuned_top1; a deviation is missing where there is one run.
    """
    import pandas as pd

    rows = []
    for setting, group in runs.groupby("setting", sort=False, dropna=False):
        row: dict[str, Any] = {key: group[key].iloc[0] for key in ("method", "lam")}
        row |= {"setting": setting, "seeds": len(group)}
        for key in (*_SIZES, *_MOMENTS):
            values = group[key].dropna()
            row |= {key: values.mean(), f"{key}_std": values.std()}
        rows.append(row)
    return pd.DataFrame(rows)


def small_shares(runs: DataFrame) -> dict[tuple[str, Any], dict[float, float]]:
    """(method, lam) to norm to the share of penalised rows below it, averaged over its runs."""
    columns = [column for column in runs if column.startswith("below/")]
    known = runs.dropna(subset=columns) if columns else runs.iloc[:0]
    return {
        key: {float(c.removeprefix("below/")): float(group[c].mean()) for c in columns}
        for key, group in known.groupby(["method", "lam"], sort=False, dropna=False)
    }


def _pruned(summary: DataFrame, path: str | Path) -> DataFrame:
    """The runs that know how large they are and how well they do after pruning or tuning."""
    runs = summary.copy()
    for column in (*_NEEDED, "lam", "setting", "method", "model", "dataset"):
        if column not in runs:
            runs[column] = None
    runs[[*_NEEDED]] = runs[[*_NEEDED]].astype(float)
    runs = runs.dropna(subset=[*_SIZES]).dropna(subset=[*_MOMENTS], how="all")
    if runs.empty:
        raise ArtifactError(
            f"{path}: no run has an accuracy after pruning beside the sizes of a dense network; "
            "run prune, and pretrain or measure"
        )
    runs["setting"] = runs["setting"].fillna(runs["run"]) if "run" in runs else runs["setting"]
    return runs


@dataclass(frozen=True)
class _Looks:
    """How methods and strengths are told apart."""

    methods: dict[str, tuple[str, str]]  # colour and marker
    strengths: list[float]

    @classmethod
    def of(cls, runs: DataFrame) -> _Looks:
        """In order of appearance; strengths from the smallest on."""
        names = list(dict.fromkeys(_name(method) for method in runs["method"]))
        styles = zip(names, cycle(COLOURS), cycle(MARKERS), strict=False)
        strengths = sorted(set(runs["lam"].dropna().astype(float)))
        return cls({name: (colour, marker) for name, colour, marker in styles}, strengths)

    def place(self, method: object) -> int:
        """Where a method stands in a row of them."""
        return list(self.methods).index(_name(method))

    def style(self, method: object, lam: object = None) -> dict[str, Any]:
        """Colour and marker; the smallest of several strengths is lightest."""
        from matplotlib.colors import to_rgb

        colour, marker = self.methods[_name(method)]
        light = 0.0
        if lam in self.strengths and len(self.strengths) > 1:
            light = 0.6 * (1 - self.strengths.index(lam) / (len(self.strengths) - 1))
        shade = tuple(part + light * (1 - part) for part in to_rgb(colour))
        return {"color": shade, "marker": marker, "markersize": 6, "linewidth": 1.3}


def _rows(points: DataFrame, runs: DataFrame) -> list[tuple[str, ...]]:
    """The moments that share panels: apart where before tuning would flatten after tuning."""
    before, after = (points[key].dropna() for key in _MOMENTS)
    if before.empty or after.empty:
        return [("pruned_top1",) if after.empty else ("tuned_top1",)]
    top = max(after.max(), runs["dense_top1"].max()) if runs["dense_top1"].notna().any() else 0.0
    fine = max(after.max(), top) - after.min()
    collapsed = max(after.max(), top) - before.min() > 4 * max(fine, 1.0)
    return [("tuned_top1",), ("pruned_top1",)] if collapsed else [tuple(_MOMENTS)]


def _draw_points(
    axis: Any, points: DataFrame, size: str, moments: tuple[str, ...], looks: _Looks
) -> None:
    """One panel: points in the shade of their strength, and what joins them.

    Where all runs have one size, methods stand side by side.
    """
    for moment in moments:
        known = points.dropna(subset=[moment]).sort_values(size)
        for line in _lines(known, size):
            _draw_join(axis, line, size, moment, looks)
        for _, point in known.iterrows():
            style = looks.style(point["method"], point["lam"])
            style |= {"markerfacecolor": style["color"], **_MOMENTS[moment], "linestyle": "none"}
            bar = point[f"{moment}_std"]
            bars = {"yerr": bar, "capsize": 2.5, "elinewidth": 1.0} if bar > 0 else {}
            place = looks.place(point["method"]) if _alike(points[size]) else 100 * point[size]
            axis.errorbar(place, point[moment], **style, **bars)


def _draw_join(axis: Any, line: DataFrame, size: str, moment: str, looks: _Looks) -> None:
    if line[size].max() - line[size].min() > _APART:
        lam = line["lam"].iloc[0] if line["lam"].nunique() == 1 else None
        style = looks.style(line["method"].iloc[0], lam) | {"marker": ""}
        linestyle = _MOMENTS[moment]["linestyle"]
        axis.plot(100 * line[size], line[moment], **style, linestyle=linestyle)


def _lines(points: DataFrame, size: str) -> Iterator[DataFrame]:
    """Points that a line joins: of one strength where one spans several sizes, else of a method."""
    for _, method in points.groupby("method", sort=False, dropna=False):
        strengths = [group for _, group in method.groupby("lam", sort=False, dropna=False)]
        spans = any(group[size].max() - group[size].min() > _APART for group in strengths)
        yield from strengths if spans else [method]


def _draw_dense(axis: Any, runs: DataFrame) -> None:
    for _, group in runs.groupby(["model", "dataset"], dropna=False):
        known = group["dense_top1"].dropna()
        if len(known):
            axis.axhline(known.mean(), color=_GREY, linewidth=1.2, zorder=1)


def _scale(axis: Any, shares: Any, looks: _Looks, bottom: bool) -> None:
    """At least ten percentage points of sizes, so that a small difference looks small."""
    low, high = 100 * shares.min(), 100 * shares.max()
    if _alike(shares):
        axis.set(xticks=[], xlim=(-1, len(looks.methods)))
        span = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        title = f"{_SIZES[shares.name]}: {span}, side by side"
    else:
        room = max(0.06 * (high - low), (10 - (high - low)) / 2)
        axis.set_xlim(low - room, high + room)
        title = _SIZES[shares.name]
    axis.set(xlabel=title if bottom else "")


def _alike(shares: Any) -> bool:
    """Whether several runs are as good as one size, so that their points would cover each other."""
    return len(shares) > 1 and shares.max() - shares.min() < _EQUAL


def _merged(made: Any, axes: Any) -> Any:
    """One panel in place of a column of them."""
    place = axes[0].get_gridspec()[:, 2]
    for axis in axes:
        axis.remove()
    return made.add_subplot(place)


def _draw_small(axis: Any, small: dict[tuple[str, Any], dict[float, float]], looks: _Looks) -> None:
    for (method, lam), shares in small.items():
        norms = sorted(shares)
        axis.plot(norms, [100 * shares[norm] for norm in norms], **looks.style(method, lam))
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set(xlabel="Norm", ylabel="Penalised rows below it (%)", ylim=(-3, 103))


def _legend(made: Any, looks: _Looks, points: DataFrame, dense: bool) -> None:
    """One entry a method, then what hollow, solid, light and grey mean."""
    from matplotlib.lines import Line2D

    entries = {
        name or "runs": Line2D([], [], **looks.style(name), linestyle="-") for name in looks.methods
    }
    for moment, title in {"pruned_top1": "right after pruning", "tuned_top1": "fine-tuned"}.items():
        if points[moment].notna().any():
            style = {"color": "#444444", "marker": "o", "markerfacecolor": "#444444"}
            entries[title] = Line2D([], [], **(style | _MOMENTS[moment]))
    if dense:
        entries["dense"] = Line2D([], [], color=_GREY, linewidth=1.2)
    if len(looks.strengths) > 1:
        shades = f"light to dark: lam {looks.strengths[0]:g} to {looks.strengths[-1]:g}"
        entries[shades] = Line2D([], [], linestyle="none")
    across = min(len(entries), 5)
    made.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=across)


def _name(method: object) -> str:
    return method if isinstance(method, str) else ""
