"""Colours, style and files that all figures share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.atomic_write import replacing
from prunekit.errors import ArtifactError
from prunekit.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is lost on white paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# 8 markers and 7 colours have no common divisor, so that 56 lines get different pairs
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
ENDINGS = (".png", ".pdf", ".svg")
_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "savefig.dpi": 200,
}


def check_writable(path: str | Path, endings: Sequence[str] = ENDINGS) -> None:
    """Raise ArtifactError unless a file of one of these endings can be written at `path`."""
    file = Path(path)
    if file.suffix not in endings:
        raise ArtifactError(
            f"{file} must end in {', '.join(endings[:-1])} or {endings[-1]}, which says how to "
            "write it"
        )
    if not file.parent.is_dir():
        raise ArtifactError(f"{file} has no place: there is no folder {file.parent}; create it")


@contextmanager
def figure(
    path: str | Path, size: tuple[float, float], shape: tuple[int, int] = (1, 1), **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure and its array of axes (rows, columns); write it to `path` after the block.

    `size` is in inches; `options` go to matplotlib's `Figure.subplots`. No display is needed.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = Path(path)
    with matplotlib.rc_context(_STYLE):
        fig = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(fig)
        yield fig, fig.subplots(*shape, squeeze=False, **options)
        with replacing(file) as draft:
            fig.savefig(draft, format=file.suffix.lstrip(".") or "png", bbox_inches="tight")


def as_label(name: str) -> str:
    """Return a name as the text of a label, which matplotlib neither interprets nor leaves out.

    Dollar signs would enclose formulas, and a legend leaves out what begins with an underscore.
    """
    text = visible(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def legend_above(fig: Figure, axes: Sequence[Any], columns: int = 3) -> None:
    """Draw one legend for all panels above them, where it covers no data."""
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    fig.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=columns)
