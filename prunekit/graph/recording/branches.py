"""Find input sizes at which branches of the forward on sizes take their other sides.

Comparisons are computed again for other sizes from the recorded steps, so few sizes have to be
tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from prunekit.graph.recording.conditions import (
    Conditions,
    ForwardPass,
    ImageInputs,
    describe_size,
    with_two_examples,
)
from prunekit.graph.recording.nests import leaves_in
from prunekit.graph.recording.steps import Kind, Recording, Step, steps_in, with_results

_MOST_SIZES = 8  # besides half and double size
_ATTEMPTS = 3  # for the other side of one branch
_DEPTH = 9  # steps of a computation by which formulas are compared
_NEIGHBOURS = 3  # lines

Sizes = tuple[int, ...]


@dataclass(eq=False)
class Branch:
    """A comparison in the code of one module, with all outcomes so far.

    `reads` are the sizes that are compared, for every tried size of the inputs.
    """

    guard: Step
    outcomes: set[bool] = field(default_factory=set)
    reads: dict[Sizes, list[int]] = field(default_factory=dict)

    @property
    def compared_dims(self) -> int:
        """The number of image dimensions that are compared."""
        changing = [len(set(numbers)) > 1 for numbers in zip(*self.reads.values(), strict=False)]
        reads = zip(self.sizes, changing, strict=False)
        return len({tuple(leaves_in(read.args, int)) for read, changes in reads if changes})

    @property
    def depends(self) -> bool:
        """True if the comparison depends on the size of the inputs."""
        return len({tuple(numbers) for numbers in self.reads.values()}) > 1

    @property
    def one_sided(self) -> bool:
        """True if it depends on the size and has had one outcome only."""
        return self.depends and len(self.outcomes) == 1

    def flips_at(self, usual: Sizes, size: Sizes) -> bool:
        """Return whether the outcome is likely another at a size, interpolated from two sizes."""
        reads = self.reads[usual]
        other = next(size for size in self.reads if self.reads[size] != reads)
        numbers = [
            _interpolate(usual[0], a, other[0], b, size[0])
            for a, b in zip(reads, self.reads[other], strict=False)
        ]
        results: dict[Step, Any] = dict(zip(self.sizes, numbers, strict=False))
        with suppress(ArithmeticError, TypeError, ValueError, KeyError):
            for step in self._computation:
                args, kwargs = with_results((step.args, step.kwargs), results)
                results[step] = step.target(*args, **kwargs)
            return bool(results[self.guard]) not in self.outcomes
        return False

    @cached_property
    def _computation(self) -> list[Step]:
        """The steps from the sizes that are read to the comparison, which is the last."""
        return _computation_of(self.guard, {*self.sizes})

    @cached_property
    def sizes(self) -> list[Step]:
        """The sizes, each read off a tensor, that are compared."""
        return _reads(self.guard)

    @cached_property
    def formula(self) -> Any:
        """How the comparison is computed, without the dimensions that sizes are read off."""
        return _formula(self.guard)


class BranchSearch:
    """Records a network at other sizes of its inputs, if its forward branches on them."""

    def __init__(
        self, first: ForwardPass, record_pass: Callable[[Conditions], ForwardPass]
    ) -> None:
        self.first = first
        self.record_pass = record_pass
        self.branches: dict[Any, Branch] = {}
        self._tried_sizes: set[Sizes] = set()
        self._attempts: Counter[Any] = Counter()
        self._failing: set[Any] = set()  # comparisons and outcomes at which passes ended
        self._nearest: dict[Any, Sizes | None] = {}  # that flips a comparison, or None
        self._allow_large = not first.conditions.numbers  # shapes alone cost nothing

    def passes(self) -> Iterator[ForwardPass]:
        """Yield passes that work; note branches that keep one side in the first recording.

        A pass that fails, as by an assertion, means that the network does not accept that size.
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
            forward_pass = self.record_pass(
                replace(self.first.conditions, example=inputs.resized(size), under=under)
            )
            self._register(forward_pass.recording, size)
            worked |= forward_pass.works
            if forward_pass.works:
                yield forward_pass
        if worked:
            self._note_open(inputs)

    def _two_examples(self) -> Iterator[ForwardPass]:
        """Yield a pass on two examples, if the forward branches on how many there are."""
        if any(_index(read) == 0 for guard in self._size_guards for read in guard[1]):
            example = with_two_examples(self.first.conditions.example)
            forward_pass = self.record_pass(
                replace(self.first.conditions, example=example, under="two examples")
            )
            if forward_pass.works:
                yield forward_pass

    @cached_property
    def _size_guards(self) -> list[tuple[Step, list[Step]]]:
        """The guards, each with the sizes of computed tensors that it depends on."""
        guards = [step for step in self.first.recording.steps if step.guard]
        computed = _from_inputs(self.first.recording) if guards else set()
        return [(guard, [read for read in _reads(guard) if read in computed]) for guard in guards]

    @cached_property
    def _spatial_guards(self) -> list[Step]:
        """The guards that depend on sizes which may be those of the inputs."""
        return [guard for guard, reads in self._size_guards if any(map(_spatial, reads))]

    def _sizes(self, inputs: ImageInputs) -> Iterator[Sizes]:
        yield inputs.scaled(0.5)
        compared = all(isinstance(guard.result, bool) for guard in self._spatial_guards)
        tried_all = all(len(branch.reads) > 1 for branch in self.branches.values())
        dependent = any(branch.depends for branch in self.branches.values())
        if dependent or not compared or not tried_all or not self.first.conditions.sizes:
            yield inputs.scaled(2)
        for _ in range(_MOST_SIZES):
            size = next(self._target_sizes(inputs), None)
            if size is None:
                return
            yield size

    def _target_sizes(self, inputs: ImageInputs) -> Iterator[Sizes]:
        """Yield sizes at which open branches take their other sides."""
        for branch in self.branches.values():
            line = branch.guard.line  # the same in every module of a class
            if self._is_open(branch) and self._attempts[line] < _ATTEMPTS:
                self._attempts[line] += 1
                yield from self._flipping_size(inputs, branch)

    def _is_open(self, branch: Branch) -> bool:
        """Return whether one side is missing, and the forward does not fail there.

        Height and width are often asserted in neighbouring lines, and by every module with the same
        code.
        """
        (file, line), formula = branch.guard.line or ("", 0), branch.formula
        failures = (
            (place or ("", 0))
            for place, other_formula, outcome in self._failing
            if other_formula == formula and outcome not in branch.outcomes
        )
        return branch.one_sided and not any(
            name == file and abs(other_line - line) <= _NEIGHBOURS for name, other_line in failures
        )

    def _flipping_size(self, inputs: ImageInputs, branch: Branch) -> Iterator[Sizes]:
        sizes = (
            size for size in self._flipping_sizes(inputs, branch) if size not in self._tried_sizes
        )
        size = next(sizes, None)
        if size is not None:
            yield size
        elif branch.compared_dims > 1 and inputs.uneven() not in self._tried_sizes:
            yield inputs.uneven()

    def _flipping_sizes(self, inputs: ImageInputs, branch: Branch) -> Iterator[Sizes]:
        """Yield sizes at which a branch likely takes its missing side, the nearest first."""
        if inputs.size not in branch.reads:
            return
        key = (branch.formula, str(branch.reads), *branch.outcomes)
        if self._nearest.get(key, inputs.size) is None:
            return
        for size in inputs.nearby(self._allow_large):
            if branch.flips_at(inputs.size, size):
                self._nearest.setdefault(key, size)
                yield size
        self._nearest.setdefault(key, None)

    def _can_flip(self, inputs: ImageInputs, branch: Branch) -> bool:
        """Return whether there is such a size."""
        key = (branch.formula, str(branch.reads), *branch.outcomes)
        if key not in self._nearest:
            return any(True for _ in self._flipping_sizes(inputs, branch))
        return self._nearest[key] is not None

    def _register(self, recording: Recording, size: Sizes) -> None:
        """Add the outcomes of a recording."""
        for step in recording.steps:
            if step.guard and isinstance(step.result, bool):
                path = step.calls[-1][1] if step.calls else ""
                branch = self.branches.setdefault((step.line, path, _formula(step)), Branch(step))
                branch.outcomes.add(step.result)
                branch.reads.setdefault(size, _numbers(step))
        last = recording.steps[-2:-1] if recording.failed is not None else []
        self._failing.update(
            (step.line, _formula(step), step.result) for step in last if step.guard
        )

    def _note_open(self, inputs: ImageInputs) -> None:
        for branch in self.branches.values():
            if self._is_open(branch) and self._can_flip(inputs, branch):
                note = (
                    f"the forward branches on the size of its inputs at {branch.guard.where}, "
                    "of which only one side was seen"
                )
                self.first.recording.notes[note] = None


def _from_inputs(recording: Recording) -> set[Step]:
    """Return the steps that compute from inputs."""
    steps: set[Step] = set()
    for step in recording.steps:
        if step.kind is Kind.INPUT or any(source in steps for source in step.sources):
            steps.add(step)
    return steps


def _reads(step: Step) -> list[Step]:
    """Return the sizes, each read off a tensor, that a number was computed from, in order."""
    reads: dict[Step, None] = {}

    def visit(current: Step) -> None:
        for source in steps_in((current.args, current.kwargs)):
            if source not in visited and source.is_query:
                visited.add(source)
                reads.update({source: None}) if _is_read(source) else visit(source)

    visited: set[Step] = set()
    visit(step)
    return [*reads]


def _is_read(step: Step) -> bool:
    """Return whether a step reads a single size; from a whole shape, taking an item reads it."""
    inner = [source for source in step.sources if source.is_query]
    is_item = step.name == "getitem" and len(inner) == 1 and not _is_read(inner[0])
    return (not inner and isinstance(step.result, int)) or (is_item and not inner[0].guard)


def _spatial(read: Step) -> bool:
    """Return whether a size may change with the size of the inputs; that of the batch does not."""
    (source,) = read.sources[:1]
    tensor = source.sources[0] if source.is_query else source
    index = _index(read)
    return index != 0 and not (tensor.kind is Kind.INPUT and index == 1)


def _index(read: Step) -> int | None:
    """Return the dimension whose size a step reads; None for the number of all entries."""
    return next((arg for arg in read.args[1:] if isinstance(arg, int)), None)


def _numbers(guard: Step) -> list[int]:
    return [read.result for read in _reads(guard)]


def _formula(step: Step, depth: int = 0) -> Any:
    """Return how a number is computed, without the dimension of the image that it is read off."""
    if _is_read(step) or not step.is_query or depth > _DEPTH:
        return "read"
    args = [_formula(arg, depth + 1) if isinstance(arg, Step) else repr(arg) for arg in step.args]
    return (step.name, *args)


def _computation_of(step: Step, done: set[Step]) -> list[Step]:
    """Return a step and the steps that it needs, in order, without those that are done."""
    if step in done:
        return []
    done.add(step)
    inner = [inner_step for source in step.sources for inner_step in _computation_of(source, done)]
    return [*inner, step]


def _interpolate(usual: int, value: int, other: int, other_value: int, size: int) -> int:
    """Return a number at a size: proportional, squared or linear between two known sizes."""
    for power in (1, 2):
        if abs(other_value * usual**power - value * other**power) < max(usual, other) ** power:
            return round(value * (size / usual) ** power)
    slope = (other_value - value) / (other - usual) if other != usual else 0
    return round(value + slope * (size - usual))
