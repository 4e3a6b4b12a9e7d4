"""One figure of a sweep: accuracy against size, and the share of small scales."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.errors import ArtifactError
from prunekit.reporting.figures import COLOURS, MARKERS, as_label, check_writable, figure

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_SIZES = {"params_share": "Parameters kept (%)", "macs_share": "MACs kept (%)"}
# accuracy column: line and marker
_ACCURACIES = {
    "pruned_top1": {"linestyle": "--", "markerfacecolor": "white"},
    "tuned_top1": {"linestyle": "-"},
}
_NUMBERS = (*_SIZES, *_ACCURACIES, "dense_top1")
_YLABEL: dict[tuple[str, ...], str] = {
    ("tuned_top1",): "Accuracy, fine-tuned (%)",
    ("pruned_top1",): "Accuracy right after pruning (%)",
}
_GREY = "#777777"
_MIN_GAP = 0.03  # share of the dense size by which runs must differ to be joined by a line
_MAX_EQUAL = 0.01  # share of the dense size up to which all runs count as equally large


def accuracy_against_size(summary: DataFrame, path: str | Path) -> None:
    """Draw test accuracy before and after fine-tuning against parameters and MACs; small scales.

    `summary` is the result of `tables.summary`. Methods differ in colour and marker, and a lighter
    shade is a smaller strength. Hollow and dashed is right after pruning, solid is fine-tuned, a
    grey line is the dense network. If accuracy collapsed before fine-tuning, it has panels of its
    own. Runs that differ only in the seed are one point, with the standard deviation as a bar. A
    line joins runs of one strength if there are several sizes of it, else those of one method. The
    last panel, if runs recorded it, is the share of penalised rows below each norm. Raises
    ArtifactError if no run has been pruned.
    """
    check_writable(path)
    runs = _pruned_runs(summary, path)
    points, looks, small = average_seeds(runs), _Looks.of(runs), small_shares(runs)
    panel_rows = _panel_rows(points, runs)
    widths = [1.0, 1.0, 0.9] if small else [1.0, 1.0]
    size = (3.6 * sum(widths) + 0.2, 1.3 + 2.6 * len(panel_rows))
    with figure(path, size, (len(panel_rows), len(widths)), width_ratios=widths) as (fig, grid):
        for axes, accuracies in zip(grid, panel_rows, strict=True):
            for axis, size_column in zip(axes, _SIZES, strict=False):
                _draw_points(axis, points, size_column, accuracies, looks)
                _draw_dense(axis, runs)
                bottom = accuracies == panel_rows[-1]
                _scale_sizes(axis, points[size_column], _SIZES[size_column], looks, bottom)
            axes[0].set(ylabel=_YLABEL.get(accuracies, "Test accuracy (%)"))
            axes[1].sharey(axes[0])
            axes[1].tick_params(labelleft=False)
        fig.align_ylabels(grid[:, 0])
        if small:
            _draw_small(_merge_column(fig, grid[:, 2]), small, looks)
        _legend(fig, looks, points, dense=bool(runs["dense_top1"].notna().any()))


def average_seeds(runs: DataFrame) -> DataFrame:
    """Return means over seeds, one line for each setting; deviations are columns `<name>_std`.

    Columns: method, lam, setting, seeds (number of runs), params_share, macs_share, pruned_top1,
    tuned_top1. The deviation of a single run is missing.
    """
    import pandas as pd

    records = []
    for setting, group in runs.groupby("setting", sort=False, dropna=False):
        record: dict[str, Any] = {key: group[key].iloc[0] for key in ("method", "lam")}
        record |= {"setting": setting, "seeds": len(group)}
        for key in (*_SIZES, *_ACCURACIES):
            values = group[key].dropna()
            record |= {key: values.mean(), f"{key}_std": values.std()}
        records.append(record)
    return pd.DataFrame(records)


def small_shares(runs: DataFrame) -> dict[tuple[str, Any], dict[float, float]]:
    """Return the share of penalised rows below each norm: {(method, lam): {norm: share}}.

    Shares are means over the runs.
    """
    columns = [str(column) for column in runs if str(column).startswith("below/")]
    recorded = runs.dropna(subset=columns) if columns else runs.iloc[:0]
    return {
        (method, lam): {float(c.removeprefix("below/")): float(group[c].mean()) for c in columns}
        for (method, lam), group in recorded.groupby(["method", "lam"], sort=False, dropna=False)
    }


def _pruned_runs(summary: DataFrame, path: str | Path) -> DataFrame:
    """Return the runs that have sizes and an accuracy after pruning or tuning."""
    runs = summary.copy()
    for column in (*_NUMBERS, "lam", "setting", "method", "model", "dataset"):
        if column not in runs:
            runs[column] = None
    runs[[*_NUMBERS]] = runs[[*_NUMBERS]].astype(float)
    runs = runs.dropna(subset=[*_SIZES]).dropna(subset=[*_ACCURACIES], how="all")
    if runs.empty:
        raise ArtifactError(
            f"{path}: no run has an accuracy after pruning beside the sizes of a dense network; "
            "run prune, and pretrain or measure"
        )
    runs["setting"] = runs["setting"].fillna(runs["run"]) if "run" in runs else runs["setting"]
    return runs


@dataclass(frozen=True)
class _Looks:
    """Assigns colours, markers and shades to methods and strengths."""

    methods: dict[str, tuple[str, str]]  # colour and marker
    strengths: list[float]

    @classmethod
    def of(cls, runs: DataFrame) -> _Looks:
        """Take the methods in order of appearance and the strengths in ascending order."""
        names = list(dict.fromkeys(_name(method) for method in runs["method"]))
        styles = zip(names, cycle(COLOURS), cycle(MARKERS), strict=False)
        strengths = sorted(set(runs["lam"].dropna().astype(float)))
        return cls({name: (colour, marker) for name, colour, marker in styles}, strengths)

    def index(self, method: object) -> int:
        """Return the position of a method."""
        return list(self.methods).index(_name(method))

    def style(self, method: object, lam: object = None) -> dict[str, Any]:
        """Return colour and marker; the smallest of several strengths is lightest."""
        from matplotlib.colors import to_rgb

        colour, marker = self.methods[_name(method)]
        light = 0.0
        if lam in self.strengths and len(self.strengths) > 1:
            light = 0.6 * (1 - self.strengths.index(lam) / (len(self.strengths) - 1))
        shade = tuple(part + light * (1 - part) for part in to_rgb(colour))
        return {"color": shade, "marker": marker, "markersize": 6, "linewidth": 1.3}


def _panel_rows(points: DataFrame, runs: DataFrame) -> list[tuple[str, ...]]:
    """Return the accuracies in each row of panels: one row for both, or a row for each.

    A collapse before tuning gets its own row, since it would flatten differences after tuning.
    """
    before, after = (points[key].dropna() for key in _ACCURACIES)
    if before.empty or after.empty:
        return [("pruned_top1",) if after.empty else ("tuned_top1",)]
    top = max(after.max(), runs["dense_top1"].max()) if runs["dense_top1"].notna().any() else 0.0
    span = max(after.max(), top) - after.min()
    collapsed = max(after.max(), top) - before.min() > 4 * max(span, 1.0)
    return [("tuned_top1",), ("pruned_top1",)] if collapsed else [tuple(_ACCURACIES)]


def _draw_points(
    axis: Any, points: DataFrame, size: str, accuracies: tuple[str, ...], looks: _Looks
) -> None:
    """Draw one panel: points in the shade of their strength, and the lines between them.

    If all runs have the same size, methods are placed side by side.
    """
    for accuracy in accuracies:
        measured = points.dropna(subset=[accuracy]).sort_values(size)
        for line in _lines(measured, size):
            _draw_line(axis, line, size, accuracy, looks)
        for _, point in measured.iterrows():
            style = looks.style(point["method"], point["lam"])
            style |= {"markerfacecolor": style["color"], **_ACCURACIES[accuracy]}
            style |= {"linestyle": "none"}
            std = point[f"{accuracy}_std"]
            bars = {"yerr": std, "capsize": 2.5, "elinewidth": 1.0} if std > 0 else {}
            x = looks.index(point["method"]) if _are_equal(points[size]) else 100 * point[size]
            axis.errorbar(x, point[accuracy], **style, **bars)


def _draw_line(axis: Any, line: DataFrame, size: str, accuracy: str, looks: _Looks) -> None:
    if line[size].max() - line[size].min() > _MIN_GAP:
        lam = line["lam"].iloc[0] if line["lam"].nunique() == 1 else None
        style = looks.style(line["method"].iloc[0], lam) | {"marker": ""}
        linestyle = _ACCURACIES[accuracy]["linestyle"]
        axis.plot(100 * line[size], line[accuracy], **style, linestyle=linestyle)


def _lines(points: DataFrame, size: str) -> Iterator[DataFrame]:
    """Yield points to join: those of one strength if any spans several sizes, else of a method."""
    for _, method in points.groupby("method", sort=False, dropna=False):
        strengths = [group for _, group in method.groupby("lam", sort=False, dropna=False)]
        spans = any(group[size].max() - group[size].min() > _MIN_GAP for group in strengths)
        yield from strengths if spans else [method]


def _draw_dense(axis: Any, runs: DataFrame) -> None:
    for _, group in runs.groupby(["model", "dataset"], dropna=False):
        accuracies = group["dense_top1"].dropna()
        if len(accuracies):
            axis.axhline(accuracies.mean(), color=_GREY, linewidth=1.2, zorder=1)


def _scale_sizes(axis: Any, shares: Series, title: str, looks: _Looks, bottom: bool) -> None:
    """Scale the x axis to ten percentage points or more, so that small differences look small."""
    low, high = 100 * shares.min(), 100 * shares.max()
    if _are_equal(shares):
        axis.set(xticks=[], xlim=(-1, len(looks.methods)))
        span = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
        title = f"{title}: {span}, side by side"
    else:
        room = max(0.06 * (high - low), (10 - (high - low)) / 2)
        axis.set_xlim(low - room, high + room)
    axis.set(xlabel=title if bottom else "")


def _are_equal(shares: Series) -> bool:
    """Return whether several runs are almost equally large, so that their points would overlap."""
    return len(shares) > 1 and shares.max() - shares.min() < _MAX_EQUAL


def _merge_column(fig: Any, axes: Any) -> Any:
    """Replace the panels of the third column by a single one."""
    column = axes[0].get_gridspec()[:, 2]
    for axis in axes:
        axis.remove()
    return fig.add_subplot(column)


def _draw_small(axis: Any, small: dict[tuple[str, Any], dict[float, float]], looks: _Looks) -> None:
    for (method, lam), shares in small.items():
        norms = sorted(shares)
        axis.plot(norms, [100 * shares[norm] for norm in norms], **looks.style(method, lam))
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.set(xlabel="Norm", ylabel="Penalised rows below it (%)", ylim=(-3, 103))


def _legend(fig: Any, looks: _Looks, points: DataFrame, dense: bool) -> None:
    """Draw one entry for each method, then the meaning of hollow, solid, light and grey."""
    from matplotlib.lines import Line2D

    entries = {
        as_label(name) or "runs": Line2D([], [], **looks.style(name), linestyle="-")
        for name in looks.methods
    }
    for key, title in {"pruned_top1": "right after pruning", "tuned_top1": "fine-tuned"}.items():
        if points[key].notna().any():
            style: dict[str, Any] = {"color": "#444444", "marker": "o"}
            style |= {"markerfacecolor": "#444444", **_ACCURACIES[key]}
            entries[title] = Line2D([], [], **style)
    if dense:
        entries["dense"] = Line2D([], [], color=_GREY, linewidth=1.2)
    if len(looks.strengths) > 1:
        shades = f"light to dark: lam {looks.strengths[0]:g} to {looks.strengths[-1]:g}"
        entries[shades] = Line2D([], [], linestyle="none")
    columns = min(len(entries), 5)
    fig.legend(entries.values(), entries.keys(), loc="outside upper center", ncols=columns)


def _name(method: object) -> str:
    return method if isinstance(method, str) else ""
