"""What all figures share: colours that everybody can tell apart, files that are whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prunekit.atomic_write import replacing
from prunekit.errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette without yellow, which is lost on white paper
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# as many markers as share no divisor with the colours: no pair comes twice among 56 lines
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES = ("-", "--", "-.", ":")
ENDINGS = (".png", ".pdf", ".svg")
_STYLE = {
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


def check_place(path: str | Path, endings: Sequence[str] = ENDINGS) -> None:
    """Raise ArtifactError unless a file of one of these endings can be written at `path`."""
    place = Path(path)
    if place.suffix not in endings:
        raise ArtifactError(
            f"{place} must end in {', '.join(endings[:-1])} or {endings[-1]}, which says how to "
            "write it"
        )
    if not place.parent.is_dir():
        raise ArtifactError(f"{place} has no place: there is no folder {place.parent}; create it")


@contextmanager
def figure(
    path: str | Path, size: tuple[float, float], shape: tuple[int, int] = (1, 1), **grid: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure and its (rows, columns) axes; it is written to `path` and needs no display.

    `grid` goes to matplotlib's `Figure.subplots`.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    place = Path(path)
    with matplotlib.rc_context(_STYLE):
        made = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(made)
        yield made, made.subplots(*shape, squeeze=False, **grid)
        with replacing(place) as draft:
            made.savefig(draft, format=place.suffix.lstrip(".") or "png", bbox_inches="tight")


def legend_above(made: Figure, axes: Sequence[Any], across: int = 3) -> None:
    """One legend for all panels, above them, where it hides no data."""
    labels: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            labels.setdefault(label, handle)
    made.legend(labels.values(), labels.keys(), loc="outside upper center", ncols=across)
