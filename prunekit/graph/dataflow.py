"""Follow the flow of data through recordings: what a step is computed from, and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from typing import Any

from torch import nn

from prunekit.graph.labels import LabeledTensor, values_in
from prunekit.graph.layers import channel_dim, is_batch_norm, is_weighted, widths
from prunekit.graph.ops.norms import norm_owner
from prunekit.graph.ops.weights import weight_path
from prunekit.graph.recording.steps import STORED, Kind, Recording, Step
from prunekit.graph.table import named_arguments, named_operation

Branches = tuple[list[Step], list[Step]]
StepsByName = Mapping[str, Sequence[Step]]

_LEFT, _RIGHT, _BOTH = 1, 2, 3
_OUTSIDE = -1


def input_steps(step: Step) -> list[Step]:
    """Return the sources of a step without parameters, constants, sizes and types."""
    return [source for source in step.sources if source.kind not in STORED and not source.is_query]


def chain_before(step: Step) -> Iterator[Step]:
    """Yield the steps before this one, latest first, until one has several inputs or none."""
    while len(before := input_steps(step)) == 1:
        step = before[0]
        yield step


def combines_two(step: Step, name: str) -> bool:
    """Return whether a step is the operation of this name on two computed tensors."""
    return step.name == name and len(input_steps(step)) == 2


def operand_branches(step: Step, positions: Mapping[Step, int]) -> Branches:
    """Return the steps that only one of the two operands of a step is computed from, latest first.

    `positions` are those of all steps. Steps that both operands are computed from are in neither
    branch, nor is anything before the point where all paths have met.
    """
    marks: dict[Step, int] = {}
    heap: list[tuple[int, Step]] = []
    branches: Branches = ([], [])
    pending = 0  # steps in the heap that only one operand is computed from
    for mark, operand in zip((_LEFT, _RIGHT), input_steps(step), strict=True):
        pending += _mark(operand, mark, marks, heap, positions)
    while pending:
        latest = heappop(heap)[1]
        mark = marks[latest]
        if mark != _BOTH:
            pending -= 1
            branches[mark - 1].append(latest)
        for source in input_steps(latest):
            pending += _mark(source, mark, marks, heap, positions)
    return branches


def _mark(
    step: Step,
    mark: int,
    marks: dict[Step, int],
    heap: list[tuple[int, Step]],
    positions: Mapping[Step, int],
) -> int:
    """Mark a step, and return the change in the number of steps of one operand alone."""
    before = marks.get(step, 0)
    marks[step] = before | mark
    if not before:
        heappush(heap, (-positions[step], step))
    return (marks[step] in (_LEFT, _RIGHT)) - (before in (_LEFT, _RIGHT))


def steps_reaching(
    recording: Recording, is_goal: Callable[[Step], bool], passes: Callable[[Step], bool]
) -> set[Step]:
    """Return the steps whose result reaches a goal, directly or through steps that pass it on."""
    reaching: set[Step] = set()
    for step in reversed(recording.steps):
        if any(is_goal(user) or (user in reaching and passes(user)) for user in step.users):
            reaching.add(step)
    return reaching


def producing_layers(
    step: Step, layers: Collection[Step], within: Collection[Step] | None = None
) -> set[Step]:
    """Return the nearest of the `layers` that a step is computed from, all inside `within`."""
    producers: set[Step] = set()
    visited: set[Step] = set()
    queue = input_steps(step)
    while queue:
        source = queue.pop()
        if within is not None and source not in within:
            continue
        if source in layers:
            producers.add(source)
        elif source not in visited:
            visited.add(source)
            queue.extend(input_steps(source))
    return producers


def steps_after(starts: Iterable[Step], passes: Callable[[Step], bool]) -> Iterator[Step]:
    """Yield the steps that read the starts, directly or through steps that pass them on."""
    visited: set[Step] = set()
    queue = [*starts]
    while queue:
        for user in queue.pop().users:
            if user not in visited and not user.is_query:
                visited.add(user)
                yield user
                if passes(user):
                    queue.append(user)


def needed_only_by(end: Step, branch: Sequence[Step]) -> set[Step]:
    """Return the steps of a branch, given latest first, whose results only `end` needs."""
    needed: set[Step] = set()
    for step in branch:
        if all(user is end or user in needed or user.is_query for user in step.users):
            needed.add(step)
    return needed


def followers(model: nn.Module, recordings: Sequence[Recording]) -> dict[str, str]:
    """Return for layers the batch norm with statistics that alone reads them, and nothing else.

    A layer that is a parameter of a user's own module has the name of the parameter.
    """
    following: dict[str, str] = {}
    excluded: set[str] = set()
    for recording in recordings:
        layers = _steps_by_name(model, recording, weighted_layer)
        norms = _steps_by_name(model, recording, batch_norm)
        norm_of = {step: name for name, steps in norms.items() for step in steps}
        for name, steps in layers.items():
            users = [user for step in steps for user in step.users if not user.is_query]
            norm = norm_of.get(users[0]) if users and len(users) == len(steps) else None
            if norm and {*users} == {*norms[norm]} and following.get(name, norm) == norm:
                following[name] = norm
            else:
                excluded.add(name)
    return {name: norm for name, norm in following.items() if name not in excluded}


def lent_biases(model: nn.Module, recordings: Sequence[Recording]) -> dict[str, str]:
    """Return for layers whose weights are passed to a function the bias passed with them.

    Biases that are also used elsewhere are left out.
    """
    biases: dict[str, str] = {}
    for recording in recordings:
        for name, steps in _steps_by_name(model, recording, _functional_layer).items():
            passed = {_bias(step) for step in steps}
            bias = passed.pop() if len(passed) == 1 else None
            if bias is not None and {*bias.users} <= {*steps}:
                biases[name] = str(bias.target)
    return biases


def _steps_by_name(
    model: nn.Module, recording: Recording, name_of: Callable[[nn.Module, Step], str | None]
) -> StepsByName:
    steps: dict[str, list[Step]] = {}
    for step in recording.steps:
        name = name_of(model, step)
        if name is not None:
            steps.setdefault(name, []).append(step)
    return steps


def weighted_layer(model: nn.Module, step: Step) -> str | None:
    """Return the convolution or linear layer that a step calls, or whose weight it is given."""
    if step.kind is Kind.LAYER:
        return str(step.target) if is_weighted(model.get_submodule(step.target)) else None
    return _functional_layer(model, step)


def _functional_layer(model: nn.Module, step: Step) -> str | None:
    path = weight_path(model, step)
    if path is None:
        return None
    owner = path.rpartition(".")[0]
    return owner if is_weighted(model.get_submodule(owner)) else path


def batch_norm(model: nn.Module, step: Step) -> str | None:
    """Return the batch norm with statistics that a step calls, or that calls it."""
    owner = str(step.target) if step.kind is Kind.LAYER else norm_owner(model, step)
    norm = None if owner is None else model.get_submodule(owner)
    has_statistics = norm is not None and is_batch_norm(norm) and norm.running_mean is not None
    inside = step.kind is Kind.LAYER or (bool(step.calls) and step.calls[-1][1] == owner)
    return owner if has_statistics and inside else None


def _bias(step: Step) -> Step | None:
    entry = named_operation(step.name)
    if entry is None:
        return None
    bias = named_arguments(entry, step.args, step.kwargs).get("bias")
    return bias if isinstance(bias, Step) and bias.kind is Kind.TENSOR else None


class ModuleValues:
    """The values that the forwards of modules have, for layers that no recording calls."""

    def __init__(self, recordings: Sequence[Recording], results: Mapping[Step, Any]) -> None:
        self.steps = [step for recording in recordings for step in recording.steps]
        self.results = results
        self._called = {path for step in self.steps for _, path in step.calls}
        self._values: dict[str, list[LabeledTensor]] = {}

    def reachable(self, name: str) -> list[LabeledTensor]:
        """Return the values that a layer could get: those in the nearest module around it.

        Modules that are never called themselves, such as lists of layers, are passed over.
        """
        parent = name.rpartition(".")[0]
        while parent and parent not in self._called:
            parent = parent.rpartition(".")[0]
        if parent not in self._values:
            self._values[parent] = [
                value
                for step in self.steps
                if step.kind not in (*STORED, Kind.OUTPUT) and _is_available(step, parent)
                for value in values_in(self.results[step])
            ]
        return self._values[parent]


def could_read(layer: nn.Module, value: LabeledTensor) -> bool:
    """Return whether a value has a rank and a number of channels that a layer accepts."""
    rank = value.meta.ndim
    kernel_size: Any = getattr(layer, "kernel_size", ())
    if not (rank > 1 if isinstance(layer, nn.Linear) else rank == len(kernel_size) + 2):
        return False
    dim = channel_dim(layer, rank)
    return dim in value.varying and value.meta.shape[dim] == widths(layer)[0]


def _is_available(step: Step, parent: str) -> bool:
    """Return whether the forward of a module has the result of a step at hand.

    It has not if the step and all its readers are in one call inside the forward, or outside.
    """
    positions = {_position(item, parent) for item in (step, *step.users)}
    inside = any(number != _OUTSIDE for number, _ in positions)
    return inside and (len(positions) > 1 or all(child is None for _, child in positions))


def _position(step: Step, parent: str) -> tuple[int, int | None]:
    """Return the call of the module in which a step happened, and the call inside it, or None."""
    for depth, (number, path) in enumerate(step.calls):
        if path == parent:
            inner = step.calls[depth + 1 :]
            return number, inner[0][0] if inner else None
    return _OUTSIDE, None
