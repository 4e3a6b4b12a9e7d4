"""Run a dense and a narrow network side by side, from step to step, for all batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torch import Tensor

from prunekit.graph.arguments import Arguments
from prunekit.graph.dataflow import weighted_layer
from prunekit.graph.program import Program, Values
from prunekit.graph.recording.nests import tree_map
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
    """Both networks, stopped before the steps in `position`, and their states for all batches.

    `count` is the number of batches, which have the shapes of the recordings. States are kept where
    they fit into `memory` (bytes); else the run starts again from the last ones that did, at first
    from the images.
    """

    dense: Program
    narrow: Program
    batches: Batches
    count: int
    memory: float
    position: tuple[int, int] = (0, 0)
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

    def advance(self, dense: int, narrow: int) -> Iterator[State]:
        """Yield the states of all batches before these steps."""
        size = self.dense.live_bytes(dense) + self.narrow.live_bytes(narrow)
        kept: list[State] | None = [] if size * self.count <= self.memory else None
        stored = bool(self._states)
        for number, state in enumerate(self._stored_states()):
            state = state.cloned() if stored and kept is None else state
            self.resume(state, self.position, (dense, narrow))
            yield state
            if kept is not None:
                kept.append(state)
                if stored:
                    self._states[number] = state
        if kept is not None:
            self._states, self.position = kept, (dense, narrow)

    def resume(self, state: State, start: tuple[int, int], stop: tuple[int, int]) -> None:
        """Run both networks on, from one position to another."""
        self.dense.run(state.dense, start[0], stop[0])
        self.narrow.run(state.narrow, start[1], stop[1])

    def _stored_states(self) -> Iterator[State]:
        if self._states:
            yield from self._states
        else:
            for batch in self.batches():
                yield State(self.dense.start(batch), self.narrow.start(batch))


def _cloned(values: Values) -> Values:
    def clone(leaf: object) -> object:
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    return {step: tree_map(value, clone) for step, value in values.items()}


def _numbered_calls(program: Program) -> Iterator[tuple[tuple[str, int], Step]]:
    """Yield the calls of layers by the name of the layer and the number of the call."""
    counts: dict[str, int] = {}
    for step in program.steps:
        is_layer = step.kind is Kind.LAYER
        path = str(step.target) if is_layer else weighted_layer(program.network, step)
        if path is not None:
            counts[path] = counts.get(path, -1) + 1
            yield (path, counts[path]), step
