"""Run a dense and a narrow network side by side, from step to step, for all batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

from prunekit.graph.arguments import Arguments
from prunekit.graph.dataflow import weighted_layer
from prunekit.graph.program import Program, Values, cloned
from prunekit.graph.recording.steps import Kind, Step

Batches = Callable[[], Iterable[Arguments]]  # the same batches in every call


@dataclass(frozen=True, eq=False)
class State:
    """What both networks have computed for one batch, as far as later steps read it."""

    dense: Values
    narrow: Values

    def cloned(self) -> State:
        """Return a state whose tensors can be changed in place."""
        return State(*(_cloned(values) for values in (self.dense, self.narrow)))


@dataclass(eq=False)
class PairedRun:
    """Both networks, stopped before the steps in `position`, and their states for batches.

    `count` is the number of batches, which have the shapes of the recordings; the first `active` of
    them are run. States are kept where they fit into `memory` (bytes); else the run starts again
    from the last ones that did, at first from the images.
    """

    dense: Program
    narrow: Program
    batches: Batches
    count: int
    memory: float
    position: tuple[int, int] = (0, 0)
    active: int = 1
    _states: list[State] = field(default_factory=list)

    @property
    def pairs(self) -> dict[Step, Step]:
        """The call of the dense network for every call of the same layer of the narrow one."""
        counterparts = dict(_numbered_calls(self.dense))
        return {
            step: counterparts[key]
            for step, key in ((step, key) for key, step in _numbered_calls(self.narrow))
            if key in counterparts
        }

    def activate(self, dense: int, narrow: int, least: int, wanted: int) -> int:
        """Return how many batches are run up to these steps.

        It is as many as fit into memory with their states from here on; otherwise those `wanted`
        that fit, at least the `least`. This number only grows from step to step, but for what
        a layer itself needs, so that nearly every batch passes each step once.
        """
        most = self.dense.most_live_bytes(dense) + self.narrow.most_live_bytes(narrow)
        room = int(self.memory // max(most, 1))
        number = (
            self.count if room >= self.count else max(least, min(max(wanted, self.active), room))
        )
        self.active = min(max(number, 1), self.count)
        del self._states[self.active :]
        return self.active

    def advance(self, dense: int, narrow: int) -> Iterator[State]:
        """Yield the states of all active batches before these steps."""
        fits = self._bytes(dense, narrow) * self.active <= self.memory
        kept: list[State] | None = [] if fits else None
        for number, (state, start) in enumerate(self._starts()):
            stored = number < len(self._states)
            state = state.cloned() if stored and kept is None else state
            self.resume(state, start, (dense, narrow))
            yield state
            if kept is not None:
                kept.append(state)
        if kept is not None:
            self._states, self.position = kept, (dense, narrow)

    def _bytes(self, dense: int, narrow: int) -> int:
        """Return the bytes of the state of one batch before these steps."""
        return self.dense.live_bytes(dense) + self.narrow.live_bytes(narrow)

    def resume(self, state: State, start: tuple[int, int], stop: tuple[int, int]) -> None:
        """Run both networks on, from one position to another."""
        self.dense.run(state.dense, start[0], stop[0])
        self.narrow.run(state.narrow, start[1], stop[1])

    def _starts(self) -> Iterator[tuple[State, tuple[int, int]]]:
        """Yield where every active batch starts: at its stored state, or from its images."""
        for state in self._states:
            yield state, self.position
        if len(self._states) < self.active:
            for batch in islice(self.batches(), len(self._states), self.active):
                yield State(self.dense.start(batch), self.narrow.start(batch)), (0, 0)


def _cloned(values: Values) -> Values:
    return {step: cloned(value) for step, value in values.items()}


def _numbered_calls(program: Program) -> Iterator[tuple[tuple[str, int], Step]]:
    """Yield the calls of layers by the name of the layer and the number of the call."""
    counts: dict[str, int] = {}
    for step in program.steps:
        is_layer = step.kind is Kind.LAYER
        path = str(step.target) if is_layer else weighted_layer(program.network, step)
        if path is not None:
            counts[path] = counts.get(path, -1) + 1
            yield (path, counts[path]), step
