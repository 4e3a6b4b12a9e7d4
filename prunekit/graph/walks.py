"""Walks over a recorded run: where paths part and meet again, what comes before and behind."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush

from prunekit.graph.recording.steps import STORED, Recording, Step

Branches = tuple[list[Step], list[Step]]

_LEFT, _RIGHT, _BOTH = 1, 2, 3


def input_steps(step: Step) -> list[Step]:
    """The tensors that a step computes from, without parameters, constants, sizes and types."""
    return [one for one in step.sources if one.kind not in STORED and not one.is_query]


def chain_before(step: Step) -> Iterator[Step]:
    """The steps before, as long as each computes from one alone; late to early."""
    while len(before := input_steps(step)) == 1:
        step = before[0]
        yield step


def combines_two(step: Step, name: str) -> bool:
    """Whether a step is the operation of this name on two tensors that were computed."""
    return step.name == name and len(input_steps(step)) == 2


def operand_branches(step: Step, place: Mapping[Step, int]) -> Branches:
    """What lies between the two operands of a step and their latest common origins, late to early.

    `place` is the position of every step. What both operands come from is on neither side, nor is
    anything before it: the latest step is looked at first, until all paths have met.
    """
    marks: dict[Step, int] = {}
    heap: list[tuple[int, Step]] = []
    found: Branches = ([], [])
    apart = 0  # steps ahead that only one operand comes from
    for mark, operand in zip((_LEFT, _RIGHT), input_steps(step), strict=True):
        apart += _reach(operand, mark, marks, heap, place)
    while apart:
        one = heappop(heap)[1]
        mark = marks[one]
        if mark != _BOTH:
            apart -= 1
            found[mark - 1].append(one)
        for source in input_steps(one):
            apart += _reach(source, mark, marks, heap, place)
    return found


def _reach(
    step: Step,
    mark: int,
    marks: dict[Step, int],
    heap: list[tuple[int, Step]],
    place: Mapping[Step, int],
) -> int:
    """Mark a step; returns by how much the number of steps of one operand alone grows."""
    before = marks.get(step, 0)
    marks[step] = before | mark
    if not before:
        heappush(heap, (-place[step], step))
    return (marks[step] in (_LEFT, _RIGHT)) - (before in (_LEFT, _RIGHT))


def steps_reaching(
    recording: Recording, goal: Callable[[Step], bool], passes: Callable[[Step], bool]
) -> set[Step]:
    """The steps whose result gets to a step of that kind, at once or through what lets it pass."""
    found: set[Step] = set()
    for step in reversed(recording.steps):
        if any(goal(user) or (user in found and passes(user)) for user in step.users):
            found.add(step)
    return found


def producing_layers(
    step: Step, layers: Collection[Step], within: Collection[Step] | None = None
) -> set[Step]:
    """The nearest of the `layers` before a step whose results get there, inside `within`."""
    found, seen, queue = set(), set(), input_steps(step)
    while queue:
        one = queue.pop()
        if within is not None and one not in within:
            continue
        if one in layers:
            found.add(one)
        elif one not in seen:
            seen.add(one)
            queue.extend(input_steps(one))
    return found


def steps_after(starts: Iterable[Step], passes: Callable[[Step], bool]) -> Iterator[Step]:
    """The steps that results of these get to, behind one another as long as they pass."""
    seen: set[Step] = set()
    queue = [*starts]
    while queue:
        for user in queue.pop().users:
            if user not in seen and not user.is_query:
                seen.add(user)
                yield user
                if passes(user):
                    queue.append(user)


def needed_only_by(end: Step, side: Sequence[Step]) -> set[Step]:
    """The steps of a side, given late to early, that nothing but `end` needs."""
    found: set[Step] = set()
    for step in side:
        if all(user is end or user in found or user.is_query for user in step.users):
            found.add(step)
    return found
