"""Every published table row by row: the columns as printed there, and what runs here found.

A table is named after its file in `published/`. Rows without a run say what they need; rows of
other methods, which are quoted, need nothing of this project.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import hinge_imagenet
import hinge_tables as hinge
import multipass
import slasso_tables as slasso
import slimming_tables as slimming
import ssr_cub as cub
import ssr_imagenet as imagenet
from measured import NOT_RUN, QUOTED, Row, publish, write_markdown
from tables import Job

from prunekit.errors import ArtifactError

PUBLISHED = Path(__file__).parent / "published"
Fact = Mapping[str, str]


@dataclass(frozen=True)
class Transcript:
    """One file of published figures: what runs stand behind its rows, and what these found.

    `measured` gets the directory of runs, the scale and all rows of the file, and gives for each of
    them the columns that are put beside it, `seeds` and `needs` among them.
    """

    name: str
    title: str
    scales: Mapping[str, Any]
    jobs: Callable[[Any], list[Job]]
    measured: Callable[[Path, Any, list[Fact]], list[Row]]

    def write(self, root: Path, out: Path, extent: Any) -> None:
        """All rows, run or not; then ArtifactError where nothing was measured for any of them."""
        known = facts(self.name)
        found = self.measured(root, extent, known)
        rows = [
            {**{f"paper: {key}": value or "-" for key, value in fact.items()}, **row}
            for fact, row in zip(known, found, strict=True)
        ]
        body = publish(out, self.name, f"{self.title}: published beside measured", rows)
        write_markdown(out / f"{self.name}.md", f"{self.title}.\n", body)
        if not any(row["seeds"] for row in rows):
            runs = "run without --only-collect" if self.jobs(extent) else "this scale runs nothing"
            raise ArtifactError(f"nothing was measured for {self.name}: {runs}")


@cache
def facts(name: str) -> list[Fact]:
    """The rows of a published table, as printed."""
    with (PUBLISHED / f"{name}.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


def each(measure: Callable[[Path, Any, Fact], Row]) -> Callable[..., list[Row]]:
    """A function of one row as one of all rows."""
    return lambda root, extent, known: [measure(root, extent, fact) for fact in known]


def unmeasured(needs: Callable[[Fact], str]) -> Callable[..., list[Row]]:
    """Rows that nothing here can run yet, with what is missing."""
    return each(lambda root, extent, fact: {"seeds": 0, "measured": NOT_RUN, "needs": needs(fact)})


def nothing(extent: Any) -> list[Job]:
    """No runs."""
    return []


def hinge_jobs(data: str, extent: Any) -> list[Job]:
    """Hinge's runs on one data set."""
    return hinge.table1(replace(extent, datasets=tuple({data} & {*extent.datasets})))


def l1_jobs(extent: Any) -> list[Job]:
    """Network slimming's runs under the published penalty."""
    return slimming.table1(replace(extent, penalties=("l1",)))


def of_hinge(root: Path, extent: Any, fact: Fact) -> Row:
    """A row of Hinge's tables: its own as measured, others quoted."""
    cell = hinge.Cell(fact["dataset"], fact["model"], fact["method"], fact["flops_remaining_pct"])
    return _hinge_cell(root, extent, cell, fact["method"].startswith("Hinge"))


def of_hinge_plots(root: Path, extent: Any, fact: Fact) -> Row:
    """A point of Hinge's plots, measured where a table has it; else the share that it needs."""
    share = fact["remaining_pct"]
    cell = hinge.Cell(fact["dataset"], fact["model"], fact["series"], share)
    row = _hinge_cell(root, extent, cell, fact["series"].startswith("Hinge"))
    if row["needs"] in ("", QUOTED):
        return row
    if fact["x"] == "params":
        return row | {"needs": "the runs of the same points against FLOPs"}
    more = "" if fact["series"] == "Hinge" else " distill=none"
    return row | {"needs": f"{row['needs']}, selection.keep={float(share) / 100:.4g}{more}"}


def _hinge_cell(root: Path, extent: Any, cell: hinge.Cell, own: bool) -> Row:
    blank = {"seeds": 0, **dict.fromkeys(hinge.MEASURED, NOT_RUN)}
    if not own:
        return {**blank, **dict.fromkeys(hinge.MEASURED, "-"), "needs": QUOTED}
    known = cell in hinge.published() and extent.runs(cell)
    found = hinge.measured_cell(root, extent, cell) if known else blank
    return {**found, "needs": "" if found["seeds"] else hinge.needs(cell)}


def of_slimming(root: Path, extent: Any, fact: Fact) -> Row:
    """A row of Liu et al.'s table, or of the port's, by its share and its stage."""
    cell = slimming.cell_of(fact)
    dense = fact.get("stage", "" if cell.percent else "baseline") == "baseline"
    name = slimming.DENSE if dense else "l1"
    known = cell.network in slimming.NETWORKS
    found = slimming.measured_cell(root, extent, cell, name) if known else slimming.blank()
    return {**found, "needs": "" if found["seeds"] else slimming.needs(cell)}


def of_cells(cells: Callable[[], list[slasso.Cell]], sheet: str) -> Callable[..., list[Row]]:
    """Rows that a sheet of the structured lasso has too, in the order of the file."""
    table = next(one for one in slasso.SHEETS if one.name == sheet)
    return lambda root, extent, known: [table.measured(root, extent, cell) for cell in cells()]


def compared(data: str) -> list[slasso.Cell]:
    """The cells of one data set's comparison."""
    return [cell for cell in slasso.rows_of_table1() if cell.data == data]


def shares(kind: str) -> list[slasso.Cell]:
    """The cells of one of the two tables of ratios."""
    return [cell for cell in slasso.rows_of_ratios() if cell.varied.startswith(kind)]


def of_layers(root: Path, extent: Any, known: list[Fact]) -> list[Row]:
    """Figures in the text: those of variants as measured, settings as they are."""
    table = next(one for one in slasso.SHEETS if one.name == "slasso_layers")
    cells = iter(slasso.rows_of_layers())
    rows: list[Row] = []
    for fact in known:
        if any(said in fact["quantity"] for said in slasso.SPARED):
            rows.append(table.measured(root, extent, next(cells)))
        else:
            blank = dict.fromkeys(table.titles(), "-")
            rows.append({"seeds": 0, **blank, "needs": _kind(fact)})
    return rows


def _kind(fact: Fact) -> str:
    ratio = fact["unit"] == "ratio"
    return "times of both on one machine, which are not compared" if ratio else "a setting"


def sheet_jobs(name: str) -> Callable[[Any], list[Job]]:
    """The runs of a sheet of the structured lasso."""
    return next(one for one in slasso.SHEETS if one.name == name).jobs


def of_imagenet(name: str) -> Transcript:
    """One of SSR's tables III to VI."""
    network = facts(name)[0]["model"]

    def measured(root: Path, extent: Any, known: list[Fact]) -> list[Row]:
        return [imagenet.measured(root, extent, line) for line in imagenet.lines(known)]

    title = f"SSR, {network} on ImageNet, increases of error in points"
    jobs = partial(imagenet.jobs, imagenet.lines(facts(name)))
    return Transcript(name, title, imagenet.SCALES, jobs, measured)


def baselines(extent: Any) -> list[Job]:
    """The dense networks of SSR's table II."""
    return [imagenet.dense(fact["model"], extent, 0) for fact in facts("ssr_table2")]


ALONE = {"smoke": None, "short": None, "paper": None}  # no scale runs anything
VOC = "PASCAL VOC 2007, Faster R-CNN on the pruned VGG-16 of ssr_table4: no detector is built"
ELSEWHERE = {
    "Fig3": "TABLE=ssr_f3 has the curve as measured here",
    "Fig5": "TABLE=ssr_f56 has the curves as measured here",
    "Fig6": "AlexNet on ImageNet; TABLE=ssr_f56 has LeNet's",
    "Fig7": f"{imagenet.needs(imagenet.Line('AlexNet', imagenet.BASE, 1))}, before tuning",
}
TRANSCRIPTS = (
    Transcript(
        "ssr_table2",
        "SSR, the networks on ImageNet before pruning",
        imagenet.SCALES,
        baselines,
        each(imagenet.measured_dense),
    ),
    *(of_imagenet(f"ssr_table{number}") for number in (3, 4, 5, 6)),
    Transcript(
        "ssr_table7",
        "SSR, transfer to CUB-200",
        cub.SCALES,
        partial(cub.jobs, facts("ssr_table7")),
        each(cub.measured),
    ),
    Transcript("ssr_table8", "SSR, Faster R-CNN", ALONE, nothing, unmeasured(lambda fact: VOC)),
    Transcript(
        "ssr_figures_text",
        "SSR, figures in the text",
        ALONE,
        nothing,
        unmeasured(lambda fact: ELSEWHERE[fact["item"][:4]]),
    ),
    *(
        Transcript(
            f"hinge_table{number}",
            f"Hinge, table {number}",
            hinge.SCALES,
            partial(hinge_jobs, data),
            each(of_hinge),
        )
        for number, data in ((1, "CIFAR-10"), (2, "CIFAR-100"))
    ),
    Transcript(
        "hinge_table4",
        "Hinge, ResNet-50 on ImageNet",
        hinge_imagenet.SCALES,
        hinge_imagenet.jobs,
        each(hinge_imagenet.measured),
    ),
    Transcript("hinge_plots", "Hinge, plots", hinge.SCALES, hinge.table1, each(of_hinge_plots)),
    Transcript(
        "ns_liu2017_table1",
        "network slimming, table I of Liu et al.",
        slimming.SCALES,
        l1_jobs,
        each(of_slimming),
    ),
    Transcript(
        "ns_pytorch_readme",
        "network slimming, README of the PyTorch port",
        slimming.SCALES,
        l1_jobs,
        each(of_slimming),
    ),
    Transcript(
        "ns_liu2017_table4_multipass_vgg",
        "network slimming, multi-pass VGG-19",
        multipass.SCALES,
        multipass.jobs,
        each(multipass.measured),
    ),
    *(
        Transcript(
            f"slasso_{name}",
            f"sGLP-IB and sTLP-IB, {data}",
            slasso.IMAGENET_SCALES if data == "ImageNet" else slasso.SCALES,
            sheet_jobs("slasso_t1"),
            of_cells(partial(compared, data), "slasso_t1"),
        )
        for data, name in slasso.DATASETS.items()
    ),
    Transcript(
        "slasso_batch_size",
        "sGLP-IB and sTLP-IB, sizes of the batch",
        slasso.SCALES,
        sheet_jobs("slasso_batch"),
        of_cells(partial(slasso.rows_of_setting, *slasso.BATCHES), "slasso_batch"),
    ),
    Transcript(
        "slasso_before_finetune",
        "sGLP-IB and sTLP-IB, before tuning",
        slasso.SCALES,
        sheet_jobs("slasso_before"),
        of_cells(partial(slasso.rows_of_setting, *slasso.BEFORE), "slasso_before"),
    ),
    *(
        Transcript(
            f"slasso_ratio_{kind}",
            f"sGLP-IB and sTLP-IB, shares of {word}",
            slasso.SCALES,
            sheet_jobs("slasso_ratio"),
            of_cells(partial(shares, word), "slasso_ratio"),
        )
        for kind, word in (("flops", "FLOPs"), ("params", "params"))
    ),
    Transcript(
        "slasso_text_figures",
        "sGLP-IB and sTLP-IB, figures in the text",
        slasso.SCALES,
        sheet_jobs("slasso_layers"),
        of_layers,
    ),
)
