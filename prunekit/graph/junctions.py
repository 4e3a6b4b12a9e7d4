"""Where paths of a traced network meet again: additions, multiplications, concatenations."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import heappop, heappush

from torch import fx

from prunekit.graph.calls import Call
from prunekit.graph.shared import asks

Sides = tuple[list[fx.Node], list[fx.Node]]

_LEFT, _RIGHT, _BOTH = 1, 2, 3


def operation(node: fx.Node) -> str | None:
    """The name in torch of the function or method that a step calls; None for other steps."""
    if node.op not in ("call_function", "call_method"):
        return None
    return Call(node, node.target, (), {}).name


def sources(node: fx.Node) -> list[fx.Node]:
    """The tensors that a step computes from, without parameters, sizes and types."""
    return [one for one in node.all_input_nodes if one.op != "get_attr" and not asks(one)]


def meets(node: fx.Node, name: str) -> bool:
    """Whether a step is the operation of this name on two tensors that were computed."""
    return operation(node) == name and len(sources(node)) == 2


def sides(node: fx.Node, place: Mapping[fx.Node, int]) -> Sides:
    """What lies between the two operands of a step and their latest common origins, late to early.

    `place` is the position of every step. What both operands come from is on neither side, nor is
    anything before it: the latest step is looked at first, until all paths have met.
    """
    marks: dict[fx.Node, int] = {}
    heap: list[tuple[int, fx.Node]] = []
    found: Sides = ([], [])
    apart = 0  # steps ahead that only one operand comes from
    for mark, operand in zip((_LEFT, _RIGHT), sources(node), strict=True):
        apart += _reach(operand, mark, marks, heap, place)
    while apart:
        one = heappop(heap)[1]
        mark = marks[one]
        if mark != _BOTH:
            apart -= 1
            found[mark - 1].append(one)
        for source in sources(one):
            apart += _reach(source, mark, marks, heap, place)
    return found


def _reach(
    node: fx.Node,
    mark: int,
    marks: dict[fx.Node, int],
    heap: list[tuple[int, fx.Node]],
    place: Mapping[fx.Node, int],
) -> int:
    """Mark a step; returns by how much the number of steps of one operand alone grows."""
    before = marks.get(node, 0)
    marks[node] = before | mark
    if not before:
        heappush(heap, (-place[node], node))
    return (marks[node] in (_LEFT, _RIGHT)) - (before in (_LEFT, _RIGHT))


def reaching(
    graph: fx.Graph, goal: Callable[[fx.Node], bool], passes: Callable[[fx.Node], bool]
) -> set[fx.Node]:
    """The steps whose result gets to a step of that kind, at once or through what lets it pass."""
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if any(goal(user) or (user in found and passes(user)) for user in node.users):
            found.add(node)
    return found


def makers(node: fx.Node, within: Collection[fx.Node], layers: Collection[fx.Node]) -> set[fx.Node]:
    """The nearest of the `layers` before a step whose results get there inside `within`."""
    found, seen, queue = set(), set(), sources(node)
    while queue:
        one = queue.pop()
        if one in layers and one in within:
            found.add(one)
        elif one in within and one not in seen:
            seen.add(one)
            queue.extend(sources(one))
    return found


def alone(end: fx.Node, side: Sequence[fx.Node]) -> set[fx.Node]:
    """The steps of a side, given late to early, that nothing but `end` needs."""
    found: set[fx.Node] = set()
    for node in side:
        if all(user is end or user in found or asks(user) for user in node.users):
            found.add(node)
    return found
