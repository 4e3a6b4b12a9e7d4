"""Steps that recordings share are replayed once, and later replays leave out exact steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.graph import ChannelGraph
from prunekit.graph.dependencies import Dependencies
from prunekit.graph.recording.steps import Kind
from prunekit.graph.replay import Repeats
from prunekit.graph.validation import NarrowedReplay

IMAGES = torch.zeros(1, 3, 16, 16)


class DropPath(nn.Module):
    """Residual blocks whose branches are scaled in train mode, one of them through a view."""

    def __init__(self, depth=4):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth))
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            branch = torch.relu(block(x))
            x = x + (branch * 0.5 if self.training else branch)
        x = x.view(x.shape[0], x.shape[1], -1).mean(2)
        return self.head(x)


@pytest.fixture
def played(monkeypatch):
    """The steps that the first replay evaluates, in order."""
    steps, play = [], Dependencies._play

    def counting(self, step):
        steps.append(step)
        play(self, step)

    monkeypatch.setattr(Dependencies, "_play", counting)
    return steps


@pytest.mark.parametrize("depth", [2, 10])
def test_steps_of_train_mode_that_eval_mode_has_are_not_played_again(played, depth):
    graph = ChannelGraph.trace(DropPath(depth), IMAGES)
    usual, trained = (recording.steps for recording in graph.recordings)
    assert [step for step in played if step in set(usual)] == usual
    again = [step for step in played if step in set(trained)]
    calls = [step.name for step in again if step.kind in (Kind.CALL, Kind.LAYER)]
    assert calls == ["mul"] * depth


def test_what_is_found_is_the_same_where_every_step_is_played(monkeypatch):
    network = DropPath()
    once = ChannelGraph.trace(network, IMAGES)
    monkeypatch.setattr(Repeats, "repeated", lambda self, step: None)
    every = ChannelGraph.trace(network, IMAGES)
    assert str(once) == str(every) and once.notes == every.notes
    for name, units in every.ins.items():
        assert torch.equal(once.ins[name], units) and torch.equal(once.outs[name], every.outs[name])


def test_rehearsals_play_what_labels_leave_open(monkeypatch):
    rehearsed, step_of = set(), NarrowedReplay.evaluate_step

    def counting(self, step):
        rehearsed.add(step.name or step.kind.value)
        return step_of(self, step)

    monkeypatch.setattr(NarrowedReplay, "evaluate_step", counting)
    ChannelGraph.trace(DropPath(), IMAGES)
    assert "view" in rehearsed and not rehearsed & {"relu", "add", "mul", "layer", "mean"}


def test_numbers_that_are_computed_otherwise_are_no_repetition():
    class Halves(nn.Module):
        """A network that computes one size in two ways: half of the channels, or a constant."""

        def __init__(self):
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(4, 5)

        def forward(self, x):
            x = self.conv(x)
            size = 4 if self.training else x.shape[1] // 2
            return self.head(torch.split(x, size, dim=1)[0].mean((2, 3)))

    graph = ChannelGraph.trace(Halves(), IMAGES)
    assert len(graph.recordings) == 2
    assert "the sizes of its parts are constants" in " ".join(graph.notes)
