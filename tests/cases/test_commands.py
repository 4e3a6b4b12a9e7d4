"""Commands that people type, and what they should see."""

from __future__ import annotations

import pytest
from golden_cli import call

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


@pytest.mark.xfail(strict=True, reason="[...] is taken for markup in the table of a sweep")
def test_a_sweep_over_lists_shows_them_in_its_table(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    lists = ("[2,3,5]", "[2,4,5]")
    sweep = ("pretrain", "-m", *TINY, "model.classes=4", f"model.widths={','.join(lists)}")
    ended = call(tmp_path, *sweep, "name=lists")
    assert ended.code == 0, ended.err
    rows = [line for line in ended.out.splitlines() if line.strip().startswith("model.widths=")]
    assert len(rows) >= 2
    assert all(any(one in row for row in rows) for one in lists)


@pytest.mark.xfail(strict=True, reason="a traceback, and the advice to set model.classes=0")
@pytest.mark.parametrize("kind", ["Auxiliary", "Named"])
def test_a_network_that_returns_more_than_logits_trains_or_is_refused(tmp_path, monkeypatch, kind):
    (tmp_path / "case_networks.py").write_text(NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    model = ("model=custom", f"model._target_=case_networks.{kind}", *TINY)
    ended = call(tmp_path, "pretrain", *model, "name=more")
    if ended.code:
        assert "classes=" not in ended.refusal
        assert any(word in ended.refusal for word in ("tuple", "Both", "dict", "logits"))
