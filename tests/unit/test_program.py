"""Results of steps to come, without going there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from prunekit.graph.arguments import Arguments
from prunekit.graph.program import Program
from prunekit.graph.recording.passes import record_batch


class Branches(nn.Module):
    """Two convolutions, a shortcut in place, and one with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.conv, self.side = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        first, second = self.conv(x), self.side(x)
        return first + self.act(x[:, :, ::2].flip(2)).repeat_interleave(2, 2) + second


def halfway() -> tuple[Program, dict, int]:
    """The program, in front of `conv`, and its values there."""
    torch.manual_seed(0)
    batch = Arguments.of(torch.randn(2, 3, 4, 4))
    network = Branches().eval()
    program = Program(network, record_batch(network, batch))
    stop = next(i for i, step in enumerate(program.steps) if step.target == "conv")
    values = program.start(batch)
    with torch.no_grad():
        program.run(values, 0, stop)
    return program, values, stop


def test_a_step_without_parameters_in_front_of_it_is_foreseen_and_nothing_changes() -> None:
    program, values, stop = halfway()
    before = {step: value.clone() for step, value in values.items() if isinstance(value, Tensor)}
    act = next(step for step in program.steps if step.target == "act")
    with torch.no_grad():
        foreseen = program.preview(values, act)
        assert all(torch.equal(values[step], value) for step, value in before.items())
        assert act not in values
        program.run(values, stop, program.position[act] + 1)
    assert torch.equal(foreseen, values[act])


def test_a_step_with_parameters_in_front_of_it_is_not() -> None:
    program, values, _ = halfway()
    side = next(step for step in program.steps if step.target == "side")
    assert program.preview(values, side) is None


def test_a_value_that_is_there_is_returned() -> None:
    program, values, _ = halfway()
    enter = next(step for step in program.steps if step.target == "enter")
    assert torch.equal(program.preview(values, enter), values[enter])
