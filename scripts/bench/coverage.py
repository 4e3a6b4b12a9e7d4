"""Every classifier of torchvision, cut to half of its channels: what works, how exactly, how fast.

    python -m scripts.bench.coverage [--only NAME ...] [--no-peer] [--timm] [--csv FILE]

Each network is pruned by prunekit and by Torch-Pruning in processes of their own, on one thread,
one at a time. Rows are added to the file as they come; a second start goes on where the first
stopped. Networks have random weights, batch norms random statistics; `traced` and `pruned` are
seconds to build the graph and to score, select and cut; `left` is the share of parameters; the
differences are relative to the largest logit of the dense network with the same channels silenced.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from prunekit.console import complain, say, table
from prunekit.runs.files import write_csv
from scripts.bench.lines import RESULTS, apart, read
from scripts.bench.subjects import TIMM, torchvision_names

COLUMNS = (
    *("network", "tool", "outcome", "params", "layers", "cut", "left", "traced", "pruned"),
    *("checked", "forward", "train_step", "side", "eval_single", "train_single"),
    *("side_double", "eval_double", "train_double", "notes"),
)
OURS, PEER = "prunekit", "torch-pruning"
PATIENCE = 5  # the checks may take that many times as long as the tools

Row = dict[str, str]


def main() -> int:
    """Measure what is missing in the file, then print the table and the totals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these networks")
    parser.add_argument("--no-peer", action="store_true", help="prunekit alone")
    parser.add_argument("--timm", action="store_true", help="the CNN families of timm, no peer")
    parser.add_argument("--csv", type=Path, help="the file (docs/results/coverage[_timm].csv)")
    parser.add_argument("--seconds", type=float, default=180, help="limit for a tool and network")
    parser.add_argument("--gigabytes", type=float, default=16, help="limit for memory")
    parser.add_argument("--table", action="store_true", help="only show what is in the file")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    options = parser.parse_args()
    names = [f"timm/{name}" for name in TIMM] if options.timm else torchvision_names()
    unknown = sorted(set(options.only or ()) - set(names))
    if unknown:
        complain(f"no such networks: {', '.join(unknown)}")
        return 2
    names = options.only or names
    tools = (OURS,) if options.no_peer or options.timm else (OURS, PEER)
    path = options.csv or RESULTS / f"coverage{'_timm' if options.timm else ''}.csv"
    if not options.table:
        collect(path, names, tools, options.seconds, options.gigabytes)
    rows = [row for row in read(path) if row["network"] in names and row["tool"] in tools]
    show(rows, tools, options.markdown)
    return 0


def collect(
    path: Path, names: Sequence[str], tools: Sequence[str], seconds: float, gigabytes: float
) -> None:
    """Measure the rows that are not in the file yet, and add them."""
    rows = read(path)
    done = {(row["network"], row["tool"]) for row in rows}
    missing = [(name, tool) for name in names for tool in tools if (name, tool) not in done]
    for number, (name, tool) in enumerate(missing, start=1):
        row = measured(name, tool, seconds, gigabytes)
        rows.append(row)
        write_csv(path, rows)
        seen = f"{row.get('traced', '-')} + {row.get('pruned', '-')} s"
        say(f"{number}/{len(missing)} {name} {tool}: {row['outcome']}, {seen}")


def measured(name: str, tool: str, seconds: float, gigabytes: float) -> Row:
    """Return the row of one network and tool, from a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "row.json"
        words = [tool, name, str(path), str(seconds), str(gigabytes)]
        _, trouble = apart("covered", words, seconds * PATIENCE)
        row = json.loads(path.read_text()) if path.exists() else {}
    row = {"network": name, "tool": tool, **row}
    if row.get("step") != "done":
        row["outcome"] = row.get("outcome") or f"{row.get('step', 'start')}: {trouble[:200]}"
    return {column: str(row.get(column, "")) for column in COLUMNS}


def show(rows: Sequence[Row], tools: Sequence[str], markdown: Path | None = None) -> None:
    """Print one line a network, the tools side by side; then the totals."""
    by_tool = {(row["network"], row["tool"]): row for row in rows}
    names = list(dict.fromkeys(row["network"] for row in rows))
    heads = ["outcome", "cut", "left", "traced", "pruned", "step", "float", "double"]
    marks = {OURS: "", PEER: " *"}
    sizes = ["network", "params, M", "layers"]
    columns = [*sizes, *[head + marks[tool] for tool in tools for head in heads]]
    first = {row["network"]: row for row in reversed(rows)}
    lines = [
        [
            name,
            f"{int(first[name]['params']) / 1e6:.2f}",
            first[name]["layers"],
            *[cell for tool in tools for cell in cells(by_tool.get((name, tool), {}))],
        ]
        for name in names
    ]
    title = f"half of all channels kept by {OURS}" + (f" and by {PEER} (*)" * (PEER in tools))
    table(title, columns, lines)
    if markdown is not None:
        marked = [columns, ["---"] * len(columns), *lines]
        markdown.write_text("".join(f"| {' | '.join(line)} |\n" for line in marked))
    for line in totals([row for row in rows if row["tool"] == OURS], by_tool):
        say(line)


def cells(row: Row) -> list[str]:
    """Return a tool's part of a line."""
    if not row:
        return [""] * 8
    outcome = "ok" if row["outcome"] == "ok" else row["outcome"].split(": ")[0]
    left = f"{share(row):.1%}" if row["left"] else ""
    pairs = [worst(row, kind) for kind in ("single", "double")]
    seconds = [f"{float(row[key]):.2f}" if row[key] else "" for key in ("traced", "pruned")]
    shown = ["" if gap is None else f"{gap:.0e}" for gap in pairs]
    return [outcome, row["cut"], left, *seconds, row["train_step"], *shown]


def share(row: Row) -> float:
    """Return parameters left over parameters before."""
    return int(row["left"]) / int(row["params"])


def worst(row: Row, kind: str) -> float | None:
    """Return the larger of the differences in eval and in train mode."""
    gaps = []
    for mode in ("eval", "train"):
        try:
            gaps.append(float(row[f"{mode}_{kind}"]))
        except ValueError:
            continue
    return max(gaps, default=None)


def seconds(row: Row) -> float | None:
    """Return the seconds of tracing and cutting together."""
    return float(row["traced"]) + float(row["pruned"]) if row["pruned"] else None


def totals(rows: Sequence[Row], by_tool: dict[tuple[str, str], Row]) -> list[str]:
    """Return sentences that sum the table up."""
    good = [row for row in rows if row["outcome"] == "ok"]
    cut = [row for row in rows if row["left"] and share(row) <= 0.75]
    lines = [
        f"{len(good)} of {len(rows)} networks pruned, run, train and checked",
        f"at most 75 % of the parameters left in {len(cut)} of {len(rows)}",
    ]
    for kind in ("single", "double"):
        gaps = [(gap, row["network"]) for row in rows if (gap := worst(row, kind)) is not None]
        if gaps:
            gap, name = max(gaps)
            lines.append(f"largest relative difference in {kind} precision: {gap:.1e} ({name})")
    return [*lines, *compared(rows, by_tool)]


def compared(rows: Sequence[Row], by_tool: dict[tuple[str, str], Row]) -> list[str]:
    """Return sentences that compare the same networks with the peer."""
    others = {name: row for (name, tool), row in by_tool.items() if tool == PEER}
    if not others:
        return []
    pairs = [(row, others[row["network"]]) for row in rows if row["network"] in others]
    both = [(seconds(a), seconds(b), a["network"]) for a, b in pairs if seconds(a) and seconds(b)]
    mine, theirs = sum(a for a, _, _ in both), sum(b for _, b, _ in both)
    slowest, name = max(((a / b, name) for a, b, name in both), default=(0.0, "-"))
    fewer = [
        f"{a['network']} ({a['cut']} of {b['cut']})"
        for a, b in pairs
        if a["cut"] and b["cut"] and int(a["cut"]) < int(b["cut"])
    ]
    return [
        f"{PEER}: {sum(row['outcome'] == 'ok' for row in others.values())} of {len(others)}",
        f"seconds over the {len(both)} networks that both cut: {mine:.1f} and {theirs:.1f}, "
        f"{theirs / max(mine, 1e-9):.1f} times as fast; slowest against it: {slowest:.2f} ({name})",
        f"fewer layers cut than it cuts: {', '.join(fewer) or 'nowhere'}",
    ]


if __name__ == "__main__":
    sys.exit(main())
