"""Commands that people type, and what they should see."""

from __future__ import annotations

import shutil

import pytest
from golden import SWEEP

from scripts.golden.cli import call

TINY = (
    *("dataset=synthetic", "dataset.train=32", "dataset.val=0", "dataset.test=16"),
    *("dataset.classes=4", "schedule=smoke", "schedule.pretrain.batch=16"),
    *("runtime=cpu", "runtime.threads=1"),
)

NETWORKS = """
from typing import NamedTuple

from torch import Tensor, nn


class Both(NamedTuple):
    logits: Tensor
    aux: Tensor | None


class Trunk(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.maps, self.head = nn.Conv2d(1, 6, 5, stride=3), nn.Linear(6, classes)
        self.side = nn.Linear(6, classes)

    def features(self, images):
        return self.maps(images).relu().mean((2, 3))


class Auxiliary(Trunk):
    def forward(self, images):
        seen = self.features(images)
        return Both(self.head(seen), self.side(seen)) if self.training else self.head(seen)


class Named(Trunk):
    def forward(self, images):
        seen = self.features(images)
        return {"logits": self.head(seen), "side": self.side(seen)}
"""


def test_a_table_shows_the_lists_of_a_sweep(tmp_path, monkeypatch):
    """Two jobs that differ in a list of words alone."""
    monkeypatch.setenv("COLUMNS", "200")
    names = ("selection.ignore=[conv1]", "selection.ignore=[conv1,conv2]")
    for job, name in zip(sorted(SWEEP.iterdir()), names, strict=True):
        shutil.copytree(job, tmp_path / "lists" / name)
    ended = call(tmp_path, "report", "lists", "--no-html")
    assert ended.code == 0, ended.err
    rows = [line.split()[0] for line in ended.out.splitlines() if line.startswith("  selection.")]
    assert sorted(rows) == sorted(names)


@pytest.mark.parametrize("kind", ["Auxiliary", "Named"])
def test_a_network_that_returns_more_than_logits_trains_or_is_refused(tmp_path, monkeypatch, kind):
    (tmp_path / "case_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    model = ("model=custom", f"model._target_=case_networks.{kind}", *TINY)
    ended = call(tmp_path, "pretrain", *model, "name=more")
    if ended.code:
        assert "classes=" not in ended.refusal
        assert any(word in ended.refusal for word in ("tuple", "Both", "dict", "logits"))
