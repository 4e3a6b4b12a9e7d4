"""Verdicts of sheets: families, the primary comparison, and hits that are kept beside a table."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from reproduced import finished, lines, rows_of, table

from prunekit.reporting.significance import SeedVariance, holm, paired
from scripts.reproduce import tables
from scripts.reproduce.hits import KeptHits
from scripts.reproduce.sheets import cells_of, write

NAME = "slasso_resnet20"
SHARES = {"sTLP-IB": 0.8, "max-CKA": 0.8, "L1 norm": 0.5, "random channels": 0.78}
SHEETS = [
    (name, sheet)
    for name in tables.names()
    for sheet in tables.contents(name).get("sheets", ())
    if "pairs" in sheet
]


def opened(root, seeds=(0, 1, 2)):
    """The table, without the sheet that reads which channels were kept."""
    one = table(NAME, "short", root, seeds=seeds)
    sheets = [sheet for sheet in one.content["sheets"] if sheet.get("suffix") != "_before"]
    return replace(one, content={**one.content, "sheets": sheets})


def measured(root, seeds=(0, 1, 2), images=301):
    """A table with results of four methods, in which images are right at random."""
    one = opened(root, seeds)
    source = torch.Generator().manual_seed(0)
    for method, share in SHARES.items():
        for measurement in one.runs(row_of(one, method)):
            run, right = measurement.jobs[-1].name, torch.rand(images, generator=source) < share
            values = {"top1": 100 * float(right.float().mean()), "params": 10, "macs": 5}
            finished(root, run, *measurement.jobs[-1].stages, "measure", right=right, **values)
    return one


def row_of(one, method):
    """The row that verdicts are about."""
    rows = rows_of(one, model="resnet20", method=method)
    return next(row for row in rows if row.get("kernel", "laplacian") == "laplacian")


def sheet_of(one):
    return next(sheet for sheet in one.sheets() if "pairs" in sheet)


def test_every_sheet_of_verdicts_names_its_primary_comparison(tmp_path):
    for name, sheet in SHEETS:
        primary, label = sheet["primary"], sheet["label"]
        rows = tables.Table.read(name, "short", tmp_path).rows
        assert {primary["of"], primary["against"]} <= {row.get(label) for row in rows}, name
    assert len(SHEETS) >= 6


def test_the_primary_comparison_is_decided_alone_and_the_others_as_a_family(tmp_path):
    one = measured(tmp_path)
    hits = KeptHits.beside(tmp_path, one.name, tmp_path)
    tuned = [c for c in cells_of(one, sheet_of(one), hits) if c["network"] == "fine-tuned"]
    known = {
        method: {
            seed: hits.of(run, "fine-tuned")
            for seed, run in one.runs_by_seed(row_of(one, method)).items()
        }
        for method in SHARES
    }
    spread = SeedVariance.pooled(known.values())
    primary = next(c for c in tuned if c["family"] == "primary")
    assert (primary["method"], primary["against"]) == ("sTLP-IB", "max-CKA")
    alone = paired(known["sTLP-IB"], known["max-CKA"], spread)
    assert float(primary["p, corrected"]) == pytest.approx(alone.p, abs=1e-3)
    others = [c for c in cells_of(one, sheet_of(one), hits) if c["family"] != "primary"]
    family = holm(  # networks before tuning recognise nothing here, so that they are all equal
        [
            paired(*(np_zeros(known) if c["network"] == "pruned" else pair(known, c)), spread)
            for c in others
        ]
    )
    assert {c["family"] for c in others} == {f"one of {len(others)}"}
    for cells, expected in zip(others, family, strict=True):
        if cells["network"] == "fine-tuned":
            assert float(cells["p, corrected"]) == pytest.approx(expected.corrected, abs=1e-3)
            assert cells["verdict"] == expected.verdict
    assert {c["verdict"] for c in tuned if c["against"] == "L1 norm"} == {"better"}


def pair(known, cells):
    return known[cells["method"]], known[cells["against"]]


def np_zeros(known):
    nothing = {seed: np.zeros_like(right) for seed, right in known["L1 norm"].items()}
    return nothing, nothing


def test_hits_are_kept_beside_the_table_and_read_where_runs_are_gone(tmp_path):
    one, out = measured(tmp_path / "runs"), tmp_path / "out"
    write(one, out)
    before = lines(out / "slasso_resnet20_verdicts.csv")
    file = out / "hits" / "slasso_resnet20.npz"
    assert file.stat().st_size < 20_000
    content = file.read_bytes()
    write(one, out)
    assert file.read_bytes() == content
    hits = KeptHits.beside(out, one.name, tmp_path / "nowhere")
    run = one.runs(row_of(one, "L1 norm"))[0]
    right = KeptHits.beside(tmp_path, one.name, one.root).of(run)
    assert right.sum() > 0 and np.array_equal(hits.of(run), right)
    assert not hits.of(run, "pruned").any() and hits.of(run, "other") is None
    shutil.rmtree(one.root / run.jobs[-1].name)  # one run is gone: its hits stay
    write(opened(one.root), out)
    assert lines(out / "slasso_resnet20_verdicts.csv") == before
    assert file.read_bytes() == content
    hits.keep([run])
    assert file.read_bytes() == content, "nothing is known of it any more, so that nothing is lost"


def test_verdicts_are_made_anew_from_kept_hits_alone(tmp_path):
    one, out = measured(tmp_path / "runs"), tmp_path / "out"
    write(one, out)
    before = lines(out / "slasso_resnet20_verdicts.csv")
    table_of_rows = (out / "slasso_resnet20.csv").read_bytes()
    (out / "slasso_resnet20_verdicts.csv").unlink()
    write(opened(tmp_path / "nowhere"), out)
    assert lines(out / "slasso_resnet20_verdicts.csv") == before
    assert (out / "slasso_resnet20.csv").read_bytes() == table_of_rows, "no figure is overwritten"


def test_a_seed_counts_once(tmp_path):
    one = measured(tmp_path, seeds=(0, 1, 1, 0))
    row = row_of(one, "L1 norm")
    assert one.seeds(row) == [0, 1] and len(one.runs(row)) == len(one.measured(row)) == 2


def test_seeds_that_share_a_run_count_once(tmp_path):
    one = measured(tmp_path)
    row = row_of(one, "L1 norm")
    shared = {**one.content["runs"]}
    for kind, spec in shared.items():
        shared[kind] = {**spec, "name": spec["name"].replace("seed<seed>", "same")}
    alike = tables.Table(one.name, {**one.content, "runs": shared}, one.scale, tmp_path)
    assert [*alike.runs_by_seed(row)] == [0]
