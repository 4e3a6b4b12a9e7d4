"""Which size a forward takes off a shape, and what is not repeated on a narrow copy for it."""

from __future__ import annotations

import operator

import pytest
import torch
from torch import nn

from prunekit.graph import ChannelGraph, narrowed_copy
from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.passes import record_eval

IMAGES = torch.zeros(1, 3, 8, 8)


class Reading(nn.Module):
    """Doubles its maps as often as a function says that reads their shape."""

    def __init__(self, read):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)
        self.read = read

    def forward(self, x):
        x = self.first(x)
        for _ in range(self.read(x)):
            x = x * 2
        return self.second(x)


class Named:
    """Has a property of the name of the attribute of tensors."""

    def __init__(self, x):
        self.x = x

    @property
    def shape(self):
        return self.x.shape[1:]


def through_a_variable(x):
    shape = x.shape
    return shape[0] + shape[1]


def by_a_variable(x, index=1):
    return x.shape[index]


def unpacked(x):
    _, channels, *_ = x.shape
    return channels


AT_ONCE = {
    "first": (lambda x: x.shape[0], 0),
    "second": (lambda x: x.shape[1], 1),
    "last": (lambda x: x.shape[-1], -1),
    "in an expression": (lambda x: (x + 1 if x.shape[3] else x).shape[2] * 2, 2),
}
OTHERWISE = {
    "through a variable": through_a_variable,
    "by a variable": by_a_variable,
    "unpacked": unpacked,
    "slice": lambda x: x.shape[:2][1],
    "passed on": lambda x: max(x.shape),
    "by a function": lambda x: operator.attrgetter("shape")(x)[0] + x.size()[0],
    "of another class": lambda x: Named(x).shape[0],
    "length": lambda x: len(x),
}


def queries(read):
    recording = record_eval(Reading(read), Arguments.of(IMAGES))
    return [step for step in recording.steps if step.name in ("getattr", "size") and step.is_query]


@pytest.mark.parametrize("kind", AT_ONCE)
def test_an_item_that_is_taken_at_once(kind):
    read, item = AT_ONCE[kind]
    assert queries(read)[-1].item == item


@pytest.mark.parametrize("kind", OTHERWISE)
def test_all_items_may_be_taken(kind):
    items = [step.item for step in queries(OTHERWISE[kind])]
    assert items and set(items) == {None}


@pytest.mark.parametrize("kind", ["first", "last"])
def test_a_size_without_channels_needs_no_narrow_copy(monkeypatch, kind):
    monkeypatch.setattr(narrowed_copy, "copy_network", None)
    graph = ChannelGraph.trace(Reading(AT_ONCE[kind][0]), IMAGES)
    assert [len(group.units) for group in graph.groups] == [4]


@pytest.mark.parametrize(
    "read", [AT_ONCE["second"][0], through_a_variable, by_a_variable, unpacked]
)
def test_channels_that_are_counted_are_frozen(read):
    assert not ChannelGraph.trace(Reading(read), IMAGES).groups
