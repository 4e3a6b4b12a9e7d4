"""Rules about rows of tables: which values they give, and what figures are computed."""

from __future__ import annotations

import pytest
from reproduced import finished

from scripts.reproduce.jobs import Job
from scripts.reproduce.measured import NOT_RUN, Column, Measured, spread
from scripts.reproduce.rows import arithmetic, expanded, fits, resolved, text_of

RULES = [
    {"if": {"model": "VGG*"}, "name": {"of": "model", "VGG-16": "vgg16"}},
    {"if": {"model": ["ResNet-?", "VGG-19"]}, "name": "other", "epochs": 7},
    {"name": "unknown", "keep": "= 1 - <removed> / 100", "settings": ["selection.keep=<keep>"]},
    {"folder": {"of": "method", "replace": {", ": "_", " ": "-"}}},
    {"needs": {"data": "MNIST", "macs": "1e9", "images": 100, "epochs": "= <epochs> / 7"}},
]


def test_the_first_rule_that_fits_sets_a_value():
    row = resolved({"model": "VGG-16", "removed": "61", "method": "L1 norm, half"}, RULES)
    assert (row["name"], row["keep"], row["folder"]) == ("vgg16", "0.39", "L1-norm_half")
    assert "epochs" not in row and text_of(row["settings"][0], row) == "selection.keep=0.39"
    assert resolved({"model": "VGG-19", "removed": "0"}, RULES)["name"] == "other"
    assert resolved({"model": "AlexNet", "removed": "0"}, RULES)["name"] == "unknown"
    assert resolved({"model": "AlexNet", "removed": "0", "name": "mine"}, RULES)["name"] == "mine"


def test_a_value_may_name_what_a_later_rule_sets():
    row = resolved({"model": "ResNet-8"}, [*RULES, {"removed": "25"}])
    assert row["keep"] == "0.75"
    assert text_of(row["needs"], row) == "MNIST, a GPU: 6.0e+11 FLOPs a run, 0.0 h at 10 TFLOP/s"
    with pytest.raises(KeyError, match="absent"):
        text_of("<absent>", row)


def test_patterns_and_combinations():
    assert fits({"a": 1, "b": "x y"}, {"a": ["0", "1"], "b": "x*"}) and fits({}, {"a": ""})
    assert not fits({"a": 1}, {"b": "?*"})
    assert [*expanded([{"a": [1, 2], "b": ["x", "y"], "seeds": [0, 1]}])] == [
        {"a": a, "b": b, "seeds": [0, 1]} for a in (1, 2) for b in ("x", "y")
    ]
    assert arithmetic(["100", "-", 100.0, "*", 2, "/", "8"]) == 75
    with pytest.raises(ValueError):
        arithmetic(["__import__"])


def measured(root):
    first = Job("dense", (), ("pretrain", "measure"))
    return Measured(root, (first, Job("cut", (), ("prune", "measure"), "dense")))


def test_a_figure_is_that_of_the_last_job_with_the_stage(tmp_path):
    finished(tmp_path, "dense", "pretrain", "measure", top1=90.0, macs=8)
    finished(tmp_path, "cut", "prune", "measure", top1=80.0, macs=2)
    one = measured(tmp_path)
    assert one.number("100 - 100 * prune.macs / pretrain.macs") == 75
    assert one.number("first:measure.top1 - measure.top1") == 10
    assert one.number("finetune.top1|prune.top1") == 80 and one.number("sparsify.epochs|0") == 0
    assert one.number("prune.absent") is None and one.number("prune.seconds") == 1.0
    assert one.finished() and one.finished(["pretrain"]) and one.finished(["finetune"])
    with pytest.raises(ValueError, match="written STAGE"):
        one.number("top1")


def test_a_cell_says_what_is_missing(tmp_path):
    one, column = measured(tmp_path), Column.of("prune.top1")
    assert not one.finished() and column.cell([], one, NOT_RUN) == NOT_RUN
    assert Column.of("finetune.top1").cell([], one, NOT_RUN) == "-"  # no job has the stage
    finished(tmp_path, "cut", "prune", "measure", top1=80.0, macs=2)
    assert column.cell([one], one, NOT_RUN) == "80.00"
    assert Column.of("prune.speedup").cell([one], one, "-") == NOT_RUN
    assert Column.of(["prune.macs", "first"]).cell([one], one, "-") == 2
    assert Column.of(["prune.top1 / 7", 1]).cell([one], one, "-") == 11.4
    pair = Column.of([["prune.macs", "prune.top1"], "{}-{:.0f}"])
    assert pair.cell([one], one, "-") == "2-80" and pair.cell([], one, "-") == "-"


def test_a_spread_is_mean_and_standard_deviation():
    assert (spread([]), spread([1.0]), spread([1, 3], "{:.1f}")) == ("not run", "1.00", "2.0 ± 1.4")
