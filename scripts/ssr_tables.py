"""SSR's table I and figures 3, 5 and 6: measured beside published."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

from measured import (
    NOT_RUN,
    Row,
    metrics,
    publish,
    refuse_empty,
    show,
    spread,
    verdict,
    write_markdown,
)
from tables import (
    CRITERIA,
    FIGURE_WIDTHS,
    LABELS,
    TABLE_WIDTHS,
    Scale,
    dense,
    figure5,
    lambda_groups,
    sparsified,
    to_widths,
    unstructured,
)

from prunekit.console import say
from prunekit.errors import ArtifactError
from prunekit.runs.files import write_csv

PUBLISHED = Path(__file__).parent / "published" / "ssr_table1.csv"
METHODS = ("l21", "l20", "ssl", *CRITERIA, "scratch")


def cell(root: Path, scale: Scale, method: str, widths: str) -> Row:
    """One row of measured figures over the seeds that have finished."""
    seeds = [s for s in (*scale.seeds, *scale.extra_seeds)]
    runs = [_run(root, scale, seed, method, widths) for seed in seeds]
    done = [run for run in runs if run["measure"]]
    errors = [100 - run["final"]["top1"] for run in done]
    before = [100 - run["prune"]["top1"] for run in done if run["prune"]]
    dense_errors = [100 - run["dense"]["top1"] for run in done if run["dense"]]
    first = done[0]["final"] if done else {}
    return {
        "method": LABELS[method],
        "widths": widths,
        "seeds": len(done),
        "FLOPs": first.get("macs_bias", NOT_RUN),
        "params": first.get("params", NOT_RUN),
        "non-zero": spread([run["final"]["nonzero"] for run in done], "{:.0f}"),
        "error before, %": spread(before) if before or method != "scratch" else "-",
        "error, %": spread(errors),
        "increase, points": spread(
            [e - d for e, d in zip(errors, dense_errors, strict=False)], "{:+.2f}"
        )
        if dense_errors
        else NOT_RUN,
        "CPU speed-up": "-"  # its run holds no dense network; the other rows of this width tell
        if method == "scratch"
        else spread([run["measure"]["speedup"] for run in done], "{:.1f}"),
        "mean error": statistics.fmean(errors) if errors else None,
    }


def _dense_row(root: Path, scale: Scale) -> Row:
    """The network that all others start from."""
    names = [dense("ssr_t1", seed, scale).name for seed in (*scale.seeds, *scale.extra_seeds)]
    done = [found for name in names if (found := metrics(root, name, "pretrain"))]
    first = done[0] if done else {}
    return {
        "method": "LeNet (baseline, 0.88% error)",
        "widths": "20-50-500",
        "seeds": len(done),
        "FLOPs": first.get("macs_bias", NOT_RUN),
        "params": first.get("params", NOT_RUN),
        "non-zero": first.get("nonzero", NOT_RUN),
        "error before, %": "-",
        "error, %": spread([100 - found["top1"] for found in done]),
        "increase, points": "-",
        "CPU speed-up": "1",
        "mean error": None,
    }


def _run(root: Path, scale: Scale, seed: int, method: str, widths: str) -> Row:
    if method == "l1":
        name = unstructured("ssr_t1", seed, scale)[-1].name
    else:
        name = to_widths("ssr_t1", seed, scale, method, widths).name
    base = dense("ssr_t1", seed, scale).name
    found = {stage: metrics(root, name, stage) for stage in ("prune", "finetune", "measure")}
    final = found["measure"] or {}
    return {**found, "final": final, "dense": metrics(root, base, "pretrain"), "name": name}


def write_table1(root: Path, out: Path, scale: Scale) -> None:
    """Table I as csv, as markdown, and on the screen, with the judge's verdicts below it."""
    rows = [_dense_row(root, scale), cell(root, scale, "l1", "-")]
    rows += [cell(root, scale, m, w) for w in TABLE_WIDTHS for m in METHODS]
    measured = {(row["method"], row["widths"]): row for row in rows}
    joined = _beside_published(measured)
    refuse_empty(rows)
    verdicts = judge(root, scale)
    shown = [{k: v for k, v in row.items() if k != "mean error"} for row in joined]
    title = "SSR table I, LeNet on MNIST: published beside measured"
    write_markdown(
        out / "ssr_t1.md",
        publish(out, "ssr_t1", title, shown),
        publish(out, "ssr_t1_verdicts", "against the same network from scratch", verdicts),
    )


def _beside_published(measured: dict[tuple[str, str], Row]) -> list[Row]:
    """Every published row with what was measured for it, then the rows the paper lacks."""
    rows: list[Row] = []
    used: set[tuple[str, str]] = set()
    with PUBLISHED.open(newline="") as file:
        for fact in csv.DictReader(file):
            key = (fact["method"], fact["filters"] or "-")
            if fact["params"] == "16K" and fact["method"] == "SSR-L1":
                key = ("SSR-L1", "milder than ours")
            found = measured.get(key, {})
            used.add(key)
            rows.append(_joined(fact["method"], fact["filters"] or "-", fact, found))
    for key, found in measured.items():
        if key not in used:
            rows.append(_joined(*key, {}, found))
    return rows


def _joined(method: str, widths: str, fact: dict[str, str], found: Row) -> Row:
    published = {
        "paper FLOPs": fact.get("flops") or "-",
        "paper params": fact.get("params") or "-",
        "paper increase": fact.get("top1_err_increase_pct") or "-",
        "paper speed-up": fact.get("cpu_speedup") or "-",
    }
    own = {key: value for key, value in found.items() if key not in ("method", "widths")}
    blank = dict.fromkeys(
        ("FLOPs", "params", "non-zero", "error before, %", "error, %", "increase, points"), NOT_RUN
    )
    blank |= {"CPU speed-up": NOT_RUN, "seeds": 0}
    return {"method": method, "widths": widths, **published, **blank, **own}


def judge(root: Path, scale: Scale) -> list[Row]:
    """Every method against the same widths from scratch, paired over seeds and test images."""
    rows = []
    for widths in TABLE_WIDTHS:
        for method in METHODS[:-1]:
            found = verdict(
                root, *(_names(scale, one, widths) for one in (method, "scratch")), "scratch"
            )
            if found:
                rows.append({"method": LABELS[method], "widths": widths, **found})
    return rows


def _names(scale: Scale, method: str, widths: str) -> list[str]:
    seeds = (*scale.seeds, *scale.extra_seeds)
    return [to_widths("ssr_t1", seed, scale, method, widths).name for seed in seeds]


def write_figure3(root: Path, out: Path, scale: Scale) -> None:
    """Error against compression for all methods, first seed: csv and plots."""
    import pandas as pd

    from prunekit.reporting.plots import tradeoff

    one = Scale(scale.seeds[:1], (), scale.overrides, scale.scratch_epochs)
    base = metrics(root, dense("ssr_t1", scale.seeds[0], scale).name, "pretrain") or {}
    points = []
    for widths in (*FIGURE_WIDTHS, *TABLE_WIDTHS):
        for method in METHODS:
            row = cell(root, one, method, widths)
            if row["mean error"] is not None:
                points.append(
                    {
                        "method": row["method"],
                        "widths": widths,
                        "error": round(row["mean error"], 2),
                        "flops": row["FLOPs"],
                        "params": row["params"],
                        "flops_ratio": round(base["macs_bias"] / row["FLOPs"], 2),
                        "params_ratio": round(base["params"] / row["params"], 2),
                    }
                )
    if not points:
        raise ArtifactError("nothing was measured for figure 3; run without --only-collect")
    write_csv(out / "ssr_f3.csv", points)
    frame = pd.DataFrame(points).rename(columns={"flops_ratio": "macs_ratio"})
    frame["top1"] = 100 - frame["error"]
    for axis in ("macs", "params"):
        tradeoff(frame, out / f"ssr_f3_{axis}.png", x=axis)
    show("figure 3: error against compression", list(points[0]), points)


def write_figure5(root: Path, out: Path, scale: Scale) -> None:
    """Filters left, loss and error per epoch: AULM, ADMM and SGD on l2,1; l2,0 against l2,1."""
    import pandas as pd

    from prunekit.reporting.plots import convergence

    runs = {job.name.rsplit("/", 1)[1]: job.name for job in figure5(scale)[1:]}
    files = {label: root / name / "sparsify" / "metrics.csv" for label, name in runs.items()}
    frames = {label: pd.read_csv(file) for label, file in files.items() if file.is_file()}
    if not frames:
        raise ArtifactError("nothing was measured for figures 5 and 6; run without --only-collect")
    titles = {
        "aulm-l21": "AULM l2,1",
        "admm-l21": "ADMM l2,1",
        "sgd-l21": "SGD l2,1",
        "aulm-l20": "AULM l2,0",
    }
    named = {titles[label]: frame for label, frame in frames.items()}
    rows = [
        {"run": label, **record}
        for label, frame in named.items()
        for record in frame.to_dict("records")
    ]
    write_csv(out / "ssr_f5_f6.csv", rows)
    solvers = {k: v for k, v in named.items() if k.endswith("l2,1")}
    penalties = {k: v for k, v in named.items() if k.startswith("AULM")}
    convergence(solvers, out / "ssr_f5.png")
    convergence(penalties, out / "ssr_f6.png")
    say(f"wrote {out / 'ssr_f5.png'}, {out / 'ssr_f6.png'}, {out / 'ssr_f5_f6.csv'}")


def write_lambda_groups(root: Path, out: Path, scale: Scale) -> None:
    """What the published strengths leave of LeNet: rows per layer, error right after."""
    rows = []
    for job in lambda_groups(scale)[1:]:
        found = metrics(root, job.name, "sparsify")
        if found:
            alive = [str(found[f"alive/{layer}"]) for layer in ("conv1", "conv2", "fc1")]
            rows.append(
                {
                    "penalty": LABELS[job.name.split("/")[1].split("-")[0]],
                    "group": job.name.rsplit("group", 1)[1],
                    "rows left": "-".join(alive),
                    "error, %": f"{100 - found['top1']:.2f}",
                }
            )
    refuse_empty(rows)
    found = publish(out, "ssr_lambda", "published lambda groups, as found", rows)
    write_markdown(out / "ssr_lambda.md", found)


__all__ = ["sparsified", "write_figure3", "write_figure5", "write_lambda_groups", "write_table1"]
