"""Two networks side by side: which batches are run, and with which states."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunekit.graph.arguments import Arguments
from prunekit.graph.program import Program
from prunekit.graph.recording.passes import record_batch
from prunekit.surgery.reconstruction.paired_run import PairedRun

COUNT = 6


def paired(memory: float) -> tuple[PairedRun, list[Arguments], nn.Module]:
    """Two equal networks of three layers, on six batches."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 4), nn.Tanh()).eval()
    batches = [Arguments.of(torch.randn(5, 4)) for _ in range(COUNT)]
    programs = [Program(network, record_batch(network, batches[0])) for _ in range(2)]
    return PairedRun(*programs, lambda: batches, COUNT, memory), batches, network


def bytes_at(run: PairedRun, step: int) -> int:
    """The bytes of both states of one batch in front of a step."""
    return run.dense.live_bytes(step) + run.narrow.live_bytes(step)


def test_all_batches_are_run_where_their_states_fit() -> None:
    run, _, _ = paired(1e9)
    assert run.activate(2, 2, 1, 1) == COUNT


@pytest.mark.parametrize(
    ("room", "least", "wanted", "active"),
    [(3, 1, 2, 2), (3, 1, 5, 3), (3, 4, 5, 4), (0, 1, 5, 1), (5, 9, 9, 6)],
    ids=["wanted", "room", "least", "no room", "no more"],
)
def test_otherwise_as_many_as_are_needed_or_fit(
    room: int, least: int, wanted: int, active: int
) -> None:
    run, _, _ = paired(0)
    step = len(run.dense.steps) - 2
    run.memory = (room + 0.5) * bytes_at(run, step)
    assert run.activate(step, step, least, wanted) == active
    assert run.activate(step, step, 1, 1) == max(1, min(active, room))  # as many as are there


@pytest.mark.parametrize("memory", [0.0, 2.5, 1e9], ids=["none", "some", "all"])
def test_batches_that_join_later_have_the_states_of_those_that_were_there(memory: float) -> None:
    run, batches, network = paired(0)
    last = len(run.dense.steps) - 1
    run.memory = memory * bytes_at(run, 2) if memory < 1e9 else memory
    seen = []
    with torch.no_grad():
        for step, wanted in ((1, 1), (2, 2), (last, COUNT)):
            active = run.activate(step, step, wanted, wanted)
            states = [*run.advance(step, step)]
            assert len(states) == active
            seen.append(active)
        outputs = [[*state.dense.values()][-1] for state in states]
        for batch, output in zip(batches, outputs, strict=True):
            torch.testing.assert_close(output, network(batch.tensors[0]))
    assert seen[-1] == COUNT and seen == sorted(seen)
