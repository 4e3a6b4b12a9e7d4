"""Branches on sizes: which sides of them were seen, and at which input sizes the others are.

What a forward compares is computed again for other sizes, so that few of them have to be tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from prunekit.graph.recording.circumstances import (
    Conditions,
    ForwardPass,
    ImageInputs,
    describe_size,
    with_two_examples,
)
from prunekit.graph.recording.nests import leaves_in
from prunekit.graph.recording.steps import Kind, Recording, Step, steps_in, with_results

_MOST = 8  # runs beside those at half and at double size
_ATTEMPTS = 3  # at the other side of one branch

_DEEPEST = 9  # numbers that are computed in more steps are told apart no further
_NEIGHBOURS = 3  # lines

Sizes = tuple[int, ...]


@dataclass(eq=False)
class Branch:
    """A comparison in the code of one module, with all that was seen of it.

    `reads` are the numbers it was made of, at every size of the inputs.
    """

    guard: Step
    outcomes: set[bool] = field(default_factory=set)
    reads: dict[Sizes, list[int]] = field(default_factory=dict)

    @property
    def compared_dims(self) -> int:
        """How many dimensions of an image are compared."""
        changing = [len(set(numbers)) > 1 for numbers in zip(*self.reads.values(), strict=False)]
        reads = zip(_reads(self.guard), changing, strict=False)
        return len({tuple(leaves_in(read.args, int)) for read, moves in reads if moves})

    @property
    def depends(self) -> bool:
        """Whether what is compared changes with the size of the inputs."""
        return len({tuple(numbers) for numbers in self.reads.values()}) > 1

    @property
    def one_sided(self) -> bool:
        """Whether it depends on the size, and only one side was seen."""
        return self.depends and len(self.outcomes) == 1

    def flips_at(self, usual: Sizes, size: Sizes) -> bool:
        """Whether the other side is likely taken at a size, judged by two that were seen."""
        here = self.reads[usual]
        other = next(one for one in self.reads if self.reads[one] != here)
        numbers = [
            _interpolate(usual[0], a, other[0], b, size[0])
            for a, b in zip(here, self.reads[other], strict=False)
        ]
        known: dict[Step, Any] = dict(zip(_reads(self.guard), numbers, strict=False))
        with suppress(ArithmeticError, TypeError, ValueError, KeyError):
            for step in self._computation:
                args, kwargs = with_results((step.args, step.kwargs), known)
                known[step] = step.target(*args, **kwargs)
            return bool(known[self.guard]) not in self.outcomes
        return False

    @cached_property
    def _computation(self) -> list[Step]:
        """The steps from the sizes that are read to the comparison, which is the last."""
        return _computation_of(self.guard, {*_reads(self.guard)})


class BranchSearch:
    """Runs a network at other sizes of its inputs, where its forward goes by these."""

    def __init__(
        self, first: ForwardPass, record_pass: Callable[[Conditions], ForwardPass]
    ) -> None:
        self.first = first
        self.record_pass = record_pass
        self.branches: dict[Any, Branch] = {}
        self._tried_sizes: set[Sizes] = set()
        self._attempts: Counter[Any] = Counter()
        self._failing: set[Any] = set()  # comparisons and outcomes at which runs ended
        self._nearest: dict[Any, Sizes | None] = {}  # what turns a comparison; None: no size does
        self._allow_large = (
            not first.conditions.numbers
        )  # where nothing is computed large inputs cost nothing

    def passes(self) -> Iterator[ForwardPass]:
        """The runs that the network takes; what stays open becomes a note of the first recording.

        Where a run fails, as by an assertion, the network does not take that size.
        """
        yield from self._two_examples()
        inputs = ImageInputs.of(self.first.conditions.example)
        if inputs is None or not (self._spatial_guards or not self.first.conditions.sizes):
            return
        self._register(self.first.recording, inputs.size)
        worked = False
        for size in self._sizes(inputs):
            self._tried_sizes.add(size)
            under = describe_size(size)
            found = self.record_pass(
                replace(self.first.conditions, example=inputs.resized(size), under=under)
            )
            self._register(found.recording, size)
            worked |= found.works
            if found.works:
                yield found
        if worked:
            self._note_open(inputs)

    def _two_examples(self) -> Iterator[ForwardPass]:
        """A run on two examples, where the forward goes by how many there are."""
        if any(_index(one) == 0 for guard in self._size_guards for one in guard[1]):
            example = with_two_examples(self.first.conditions.example)
            found = self.record_pass(
                replace(self.first.conditions, example=example, under="two examples")
            )
            if found.works:
                yield found

    @cached_property
    def _size_guards(self) -> list[tuple[Step, list[Step]]]:
        """What the forward decided by sizes, with those that it read off what was computed."""
        guards = [step for step in self.first.recording.steps if step.guard]
        made = _from_inputs(self.first.recording) if guards else set()
        return [(guard, [one for one in _reads(guard) if one in made]) for guard in guards]

    @cached_property
    def _spatial_guards(self) -> list[Step]:
        """What the forward decided by sizes that may be those of the inputs."""
        return [guard for guard, reads in self._size_guards if any(map(_spatial, reads))]

    def _sizes(self, inputs: ImageInputs) -> Iterator[Sizes]:
        yield inputs.scaled(0.5)
        compared = all(isinstance(guard.result, bool) for guard in self._spatial_guards)
        record_pass = all(len(branch.reads) > 1 for branch in self.branches.values())
        moved = any(branch.depends for branch in self.branches.values())
        if moved or not compared or not record_pass or not self.first.conditions.sizes:
            yield inputs.scaled(2)
        for _ in range(_MOST):
            size = next(self._target_sizes(inputs), None)
            if size is None:
                return
            yield size

    def _target_sizes(self, inputs: ImageInputs) -> Iterator[Sizes]:
        """Sizes at which branches that are open take their other sides."""
        for branch in self.branches.values():
            line = branch.guard.line  # the same in every module of a class
            if self._is_open(branch) and self._attempts[line] < _ATTEMPTS:
                self._attempts[line] += 1
                yield from self._flipping_size(inputs, branch)

    def _is_open(self, branch: Branch) -> bool:
        """Whether one side was not seen, and the forward does not end there, as by an assertion.

        Height and width are mostly asserted in neighbouring lines, and by every module alike.
        """
        (file, line), words = branch.guard.line or ("", 0), _formula(branch.guard)
        end_units = (
            (other or ("", 0))
            for other, compared, outcome in self._failing
            if compared == words and outcome not in branch.outcomes
        )
        return branch.one_sided and not any(
            name == file and abs(number - line) <= _NEIGHBOURS for name, number in end_units
        )

    def _flipping_size(self, inputs: ImageInputs, branch: Branch) -> Iterator[Sizes]:
        near = (
            size for size in self._flipping_sizes(inputs, branch) if size not in self._tried_sizes
        )
        size = next(near, None)
        if size is not None:
            yield size
        elif branch.compared_dims > 1 and inputs.uneven() not in self._tried_sizes:
            yield inputs.uneven()

    def _flipping_sizes(self, inputs: ImageInputs, branch: Branch) -> Iterator[Sizes]:
        """Sizes at which a branch likely takes the side that was not seen, the nearest first."""
        if inputs.size not in branch.reads:
            return
        alike = (_formula(branch.guard), str(branch.reads), *branch.outcomes)
        if self._nearest.get(alike, inputs.size) is None:
            return
        for size in inputs.nearby(self._allow_large):
            if branch.flips_at(inputs.size, size):
                self._nearest.setdefault(alike, size)
                yield size
        self._nearest.setdefault(alike, None)

    def _can_flip(self, inputs: ImageInputs, branch: Branch) -> bool:
        """Whether there is such a size."""
        alike = (_formula(branch.guard), str(branch.reads), *branch.outcomes)
        if alike not in self._nearest:
            return any(True for _ in self._flipping_sizes(inputs, branch))
        return self._nearest[alike] is not None

    def _register(self, recording: Recording, size: Sizes) -> None:
        for step in recording.steps:
            if step.guard and isinstance(step.result, bool):
                path = step.calls[-1][1] if step.calls else ""
                branch = self.branches.setdefault((step.line, path, _formula(step)), Branch(step))
                branch.outcomes.add(step.result)
                branch.reads.setdefault(size, _numbers(step))
        last = recording.steps[-2:-1] if recording.failed is not None else []
        self._failing.update((s.line, _formula(s), s.result) for s in last if s.guard)

    def _note_open(self, inputs: ImageInputs) -> None:
        for branch in self.branches.values():
            if self._is_open(branch) and self._can_flip(inputs, branch):
                note = (
                    f"the forward branches on the size of its inputs at {branch.guard.where}, "
                    "of which only one side was seen"
                )
                self.first.recording.notes[note] = None


def _from_inputs(recording: Recording) -> set[Step]:
    """The steps that compute from inputs."""
    found: set[Step] = set()
    for step in recording.steps:
        if step.kind is Kind.INPUT or any(source in found for source in step.sources):
            found.add(step)
    return found


def _reads(step: Step) -> list[Step]:
    """The sizes that a number was computed from, each read off a tensor; in order."""
    found: dict[Step, None] = {}

    def visit(one: Step) -> None:
        for source in steps_in((one.args, one.kwargs)):
            if source not in seen and source.is_query:
                seen.add(source)
                found.update({source: None}) if _is_read(source) else visit(source)

    seen: set[Step] = set()
    visit(step)
    return [*found]


def _is_read(step: Step) -> bool:
    """Whether a step reads a single size; one of all sizes is read by taking an item of it."""
    inner = [source for source in step.sources if source.is_query]
    taken = step.name == "getitem" and len(inner) == 1 and not _is_read(inner[0])
    return (not inner and isinstance(step.result, int)) or (taken and not inner[0].guard)


def _spatial(read: Step) -> bool:
    """Whether what a step reads may change with the size of the inputs; the batch stays."""
    (source,) = read.sources[:1]
    tensor = source.sources[0] if source.is_query else source
    index = _index(read)
    return index != 0 and not (tensor.kind is Kind.INPUT and index == 1)


def _index(read: Step) -> int | None:
    """The dimension whose size a step reads; None for the number of all entries."""
    return next((arg for arg in read.args[1:] if isinstance(arg, int)), None)


def _numbers(guard: Step) -> list[int]:
    return [read.result for read in _reads(guard)]


def _formula(step: Step, depth: int = 0) -> Any:
    """How a number is computed, from whichever side of an image."""
    if _is_read(step) or not step.is_query or depth > _DEEPEST:
        return "read"
    args = [_formula(arg, depth + 1) if isinstance(arg, Step) else repr(arg) for arg in step.args]
    return (step.name, *args)


def _computation_of(step: Step, before: set[Step]) -> list[Step]:
    """A step behind those that it needs, without those that are there before."""
    if step in before:
        return []
    before.add(step)
    inner = [one for source in step.sources for one in _computation_of(source, before)]
    return [*inner, step]


def _interpolate(usual: int, here: int, other: int, there: int, size: int) -> int:
    """A number at a size, from two sizes at which it was seen: proportional, squared or linear."""
    for power in (1, 2):
        if abs(there * usual**power - here * other**power) < max(usual, other) ** power:
            return round(here * (size / usual) ** power)
    slope = (there - here) / (other - usual) if other != usual else 0
    return round(here + slope * (size - usual))
