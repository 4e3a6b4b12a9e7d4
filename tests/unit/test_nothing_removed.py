"""What a request says that leaves the network as it was."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

import prunekit
from prunekit import engine
from prunekit.criteria import CRITERIA
from prunekit.engine import CutOptions, Traced
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.methods.slimming import Slimming
from prunekit.selection import Global, PerLayer, Widths, Zeros

X = torch.randn(2, 2, 7, 7, generator=torch.Generator().manual_seed(0))


def chain(norm=nn.BatchNorm2d, width=6):
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(2, width, 3), norm(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3), norm(width), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)),
    ).eval()


def over_all(width):
    return nn.GroupNorm(1, width)


REQUESTS = [
    ({"keep": 0.5}, "keep=0.5 removes nothing"),
    ({"layers": {"0": 0.5}, "keep": 1.0}, "layers={'0': 0.5} removes nothing"),
    ({"macs": 0.5}, "macs=0.5 cannot be reached"),
    ({"params": 0.5, "scope": "global"}, "params=0.5 cannot be reached"),
    ({"keep": 0.5, "scope": "global"}, "keep=0.5 cannot be reached"),
    ({"selection": Global(0.6)}, "selection.keep=0.6 cannot be reached"),
    ({"selection": PerLayer(0.6)}, "selection.keep=0.6 removes nothing"),
    (
        {"selection": Slimming(0.9, on_empty="keep_best"), "criterion": "l1_norm"},
        "selection.ratio=0.9 removes nothing",
    ),
]


@pytest.mark.parametrize(("request_", "words"), REQUESTS, ids=lambda each: str(each)[:40])
def test_a_norm_over_all_channels_is_given_as_the_reason(request_, words):
    with pytest.raises(ConfigError) as caught:
        prunekit.prune(chain(over_all), X, **request_)
    message = str(caught.value)
    assert message.startswith(words) and "\n" not in message
    assert "all channels of 0, 3 hang together as one unit" in message and "inspect" in message


@pytest.mark.parametrize(
    "request_",
    [{"keep": 0.5, "round_to": 8}, {"keep": 0.95}, {"selection": PerLayer(0.95)}],
    ids=lambda each: str(each)[:40],
)
def test_rounding_is_given_as_the_reason(request_):
    with pytest.raises(ConfigError, match=r"all units stay after rounding.* 6 units \(0\); ask"):
        prunekit.prune(chain(), X, **request_)


def test_where_everything_was_asked_for_a_note_says_so():
    notes = {
        "keep=1.0 keeps every unit": {"keep": 1.0},
        "no unit that may go scores exactly zero": {"selection": Zeros()},
        "the selection keeps every unit": {"selection": Widths({"0": 6})},
    }
    for words, request in notes.items():
        pruned = prunekit.prune(chain(), X, **request)
        (note,) = [note for note in pruned.notes if note.startswith("nothing was removed")]
        assert note.endswith(words) and f"note: {note}" in str(pruned)
        assert pruned.before == pruned.after
    pruned = prunekit.prune(chain(over_all), X, macs=0.5, on_miss="nearest")
    assert any("nothing was removed" in note for note in pruned.notes)
    assert not any("nothing" in note for note in prunekit.prune(chain(), X, keep=0.5).notes)


def test_rounds_that_remove_nothing_are_told():
    rule = PerLayer(0.8, rounds=3)  # one of six units goes, in the first or the second round
    found = engine.prune(
        Traced.of(chain(), X),
        CRITERIA.resolve("l1_norm", engine.Criterion),
        rule,
        CutOptions(),
        tune=lambda model, number: None,
    )
    idle = [number for number, cut in enumerate(found.cuts, 1) if not _narrows(found, number)]
    assert idle
    assert [n for n in found.selected.notes if n.startswith("round")] == [
        f"round {number} removed nothing" for number in idle
    ]


def _narrows(found, number):
    before = found.dense.model if number == 1 else found.cuts[number - 2].model
    return found.cuts[number - 1].model[0].out_channels < before[0].out_channels


def test_shrink_says_so_too(caplog):
    model = chain()
    graph = ChannelGraph.trace(model, X)
    ones = {group.name: torch.ones(len(group.units)) for group in graph.groups}
    with caplog.at_level(logging.WARNING):
        prunekit.shrink(model, graph, ones)
    (record,) = caplog.records
    assert record.getMessage() == (
        "shrink: nothing was removed: no unit that may go scores exactly zero"
    )
    tied = chain(over_all)
    with pytest.raises(ConfigError, match="hang together as one unit"):
        prunekit.shrink(tied, ChannelGraph.trace(tied, X), {"0": torch.ones(1)}, PerLayer(0.5))
