"""Later replays: make sure that narrowed versions of the network work."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import TraceError
from prunekit.graph.calls import Call, shapes_equal
from prunekit.graph.dependencies import Dependencies
from prunekit.graph.labels import (
    FROZEN,
    LabeledTensor,
    broadcast_shape,
    compress,
    map_only,
    resize,
    values_in,
)
from prunekit.graph.recording.steps import Kind, Step, without_repeats
from prunekit.graph.replay import Replay, labels_key


def validate(deps: Dependencies) -> None:
    """Freeze channels until replays of narrowed versions of the network succeed.

    Nothing is replayed where no operation depends on sizes, since labels alone are exact there.
    Raises TraceError where a replay fails and nothing more can be frozen.
    """
    exact = _exact_steps(deps)
    if len(exact) == len(deps.steps):
        return
    choices = [half_of_units, end_units]
    if any(step.guard for step in deps.steps):  # any threshold lies between all and one
        choices.append(all_but_one)
    passed = 0
    for seed in count():
        roots = deps.parts.roots()
        replay = NarrowedReplay(deps, roots, choices[passed](deps, roots, seed), exact)
        replay.play()
        if not replay.failed:
            passed += 1
            if passed == len(choices):
                return
            continue
        passed = 0
        if not freeze_neighbours(deps, replay.failed):
            raise TraceError(
                f"{type(deps.network).__name__} cannot be narrowed: "
                f"{replay.failed[0]} depends on channel numbers in a way that "
                "is not understood; take sizes from the shapes of the tensors at hand"
            )


def _exact_steps(deps: Dependencies) -> set[Step]:
    """Return the steps whose labels are exact in every narrowed version.

    There are none where a parameter may have been used before it got labels.
    """
    if deps.labeled_late:
        return set()
    numbers = _channel_numbers(deps)
    return {step for step in deps.steps if _follows_labels(step, deps, numbers)}


def _follows_labels(step: Step, deps: Dependencies, numbers: Collection[Step]) -> bool:
    """Return whether an operation does to any narrowed input what it did to the labels."""
    if step not in deps.calls or step.is_query:
        return step not in numbers
    entry = deps.calls[step].entry
    if entry is not None and entry.moves and not entry.size_agnostic:
        return False
    return not any(source in numbers for source in step.sources)


def _channel_numbers(deps: Dependencies) -> set[Step]:
    """Return the numbers that are computed from how many channels there are.

    A shape that is read as a whole is none of them, only the items that are taken from it.
    """
    numbers: set[Step] = set()
    for step in deps.steps:
        if step.is_query and any(
            source in numbers or _counts_channels(step, source, deps) for source in step.sources
        ):
            numbers.add(step)
    return numbers


def _counts_channels(step: Step, source: Step, deps: Dependencies) -> bool:
    """Return whether a step counts entries of a tensor along dimensions with channels."""
    index = next((arg for arg in step.args[1:] if isinstance(arg, int)), None)
    tensor = source
    if source.is_query:  # an item of a shape
        if step.name != "getitem" or source.name not in ("getattr", "size", "stride"):
            return False
        tensor = source.sources[0]
    elif step.name in ("getattr", "size") and index is None:
        return False
    if "stride" in (step.name, source.name):
        index = None  # a stride depends on all dimensions behind
    if tensor.kind is Kind.TENSOR:
        return True  # a parameter, which may be narrowed with a layer
    values = values_in(deps.results[tensor])
    return any(
        bool(value.varying) and (index is None or index % value.meta.ndim in value.varying)
        for value in values
    )


def freeze_neighbours(deps: Dependencies, failed: Iterable[Step]) -> bool:
    """Freeze the inputs and results of steps, and return whether that changed anything."""
    changed = False
    for step in failed:
        reason = f"{step}, which works for these sizes only"
        for value in contributing_values([step], deps.results):
            ids = deps.parts.freeze(value.labels)
            if ids:
                changed = True
                deps.log.note(ids, reason)
        values = values_in(deps.results[step])
        changed |= any([bool(deps.parts.freeze(value.labels)) for value in values])
    return changed


def half_of_units(deps: Dependencies, roots: Tensor, seed: int = 0) -> Tensor:
    """Return a mask over labels that removes half of all units at random."""
    chance = torch.rand(len(roots), generator=torch.Generator().manual_seed(seed)) < 0.5
    drop = torch.zeros(len(roots), dtype=torch.bool)
    for labels in deps.producers.values():
        drop[roots[labels]] = chance[roots[labels]]
    return _leaving_some(deps, roots, drop)


def end_units(deps: Dependencies, roots: Tensor, seed: int = 0) -> Tensor:
    """Return a mask over labels that removes the first and the last unit of every layer."""
    drop = torch.zeros(len(roots), dtype=torch.bool)
    for labels in deps.producers.values():
        drop[roots[labels[[0, -1]]]] = True
    return _leaving_some(deps, roots, drop)


def all_but_one(deps: Dependencies, roots: Tensor, seed: int = 0) -> Tensor:
    """Return a mask over labels that removes all units but the first of every layer."""
    drop = torch.zeros(len(roots), dtype=torch.bool)
    for labels in deps.producers.values():
        drop[roots[labels]] = True
    for labels in deps.producers.values():
        drop[roots[labels[0]]] = False
    return _leaving_some(deps, roots, drop)


def _leaving_some(deps: Dependencies, roots: Tensor, drop: Tensor) -> Tensor:
    """Return the mask changed such that some entries of every value are kept."""
    drop[FROZEN] = False
    labels, owner = deps.all_labels
    kept = torch.bincount(owner[~drop[roots[labels]]], minlength=int(owner[-1]) + 1)
    for empty in (kept == 0).nonzero().flatten().tolist():
        units = roots[labels[owner == empty]]
        if bool(drop[units].all()):
            drop[units[-1]] = False
    return drop


class NarrowedReplay(Replay):
    """Replays the network as it would be without some units, and collects the steps that fail.

    `drop` is a mask over labels. Constants in the user's code (sizes, indices, unlabeled
    parameters) make a step fail, because the narrowed network then computes on other channels than
    the labels promise.
    """

    def __init__(
        self, deps: Dependencies, roots: Tensor, drop: Tensor, exact: Collection[Step] = ()
    ) -> None:
        super().__init__(deps.network, without_repeats(deps.recordings), deps.over_norms)
        self.deps = deps
        self.roots = roots
        self.drop = drop
        self.failed: list[Step] = []
        self._exact = exact
        self._changed: set[Step] = set()  # steps with other results than in the full network
        self._narrowed: dict[Any, tuple[Tensor, Tensor]] = {}  # by labels, which `deps` holds

    def play(self) -> None:
        """Replay the network, and collect every step whose result is not the expected one."""
        for step in self.steps:
            original = self.deps.repeats.originals.get(step)
            if original in self.results:
                self._keep(step, self.results[original])
                continue
            expected = map_only(self.deps.results[step], self.narrow_value, LabeledTensor)
            if self._is_certain(step):
                self._keep(step, expected)
                continue
            try:
                result = self.evaluate_step(step)
                right = _same(result, expected) and _same_guard(step, result, expected)
            except Exception:  # any error of a narrowed network comes from a constant in the code
                right = False
            self._keep(step, result if right else expected)
            if not right and not self.is_unused(step):
                self.failed.append(step)

    def _is_certain(self, step: Step) -> bool:
        """Return whether a step certainly does what its labels promise.

        It does where none of its inputs is narrowed. Shapes that are read as a whole are read
        again all the same, since the items taken from them may change.
        """
        if step in self._exact and not step.is_query:
            return True
        return step in self.deps.calls and self._changed.isdisjoint(step.sources)

    def _keep(self, step: Step, result: Any) -> None:
        self.results[step] = result
        if not shapes_equal(result, self.deps.results[step]):
            self._changed.add(step)

    def is_unused(self, step: Step) -> bool:
        """Return whether a step creates a tensor that nothing reads."""
        call = self.deps.calls.get(step)
        creates = call is not None and call.entry is not None and call.entry.creates
        return creates and not step.users

    def evaluate(self, call: Call) -> Any:
        """Return the result; only operations that move entries may get sizes that change."""
        before = self.deps.calls[call.step]
        same = _shapes(call) == _shapes(before)
        if any(source.is_query for source in call.step.sources):
            takes_sizes = call.entry is not None and call.entry.takes_sizes
            if call.values and not takes_sizes and _constants_differ(call, before):
                raise _Mismatch
            same = shapes_equal((call.args, call.kwargs), (before.args, before.kwargs))
        return super().evaluate(replace(call, recorded=same))

    def execute(self, call: Call) -> Any:
        """Return the result for the sizes of the narrowed network."""
        return call.meta_result()

    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Raise _Mismatch unless labels that meet are the same by now."""
        shape = broadcast_shape(a.shape, b.shape)
        if not torch.equal(a.expand(shape), b.expand(shape)):
            raise _Mismatch

    def freeze(self, labels: Tensor, call: Call | None, reason: str | None) -> None:
        """Raise _Mismatch unless the labels are frozen by now."""
        if bool((labels != FROZEN).any()):
            raise _Mismatch

    def visit_layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer produces once it is narrowed to the kept channels."""
        name = call.layer
        self._check(self.deps.ins[name], incoming)
        return self.deps.results[call.step].meta, self._kept(self.deps.outs[name])

    def visit_norm(self, call: Call, labels: Tensor) -> None:
        """Check that the layer gets the channels that it is narrowed to."""
        self._check(self.deps.ins[call.layer], labels)

    def visit_tensor(self, step: Step) -> Any:
        """Return the parameter narrowed to the kept channels."""
        return map_only(self.deps.results[step], self.narrow_value, LabeledTensor)

    def blank_labels(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """Return the kept ones of the labels from the first replay."""
        return self.narrow_value(self.deps.results[call.step]).along(dim)

    def picked_labels(
        self, call: Call, value: LabeledTensor, dim: int, index: LabeledTensor
    ) -> Tensor | None:
        """Return the kept ones of the labels, since the kept indices are renumbered."""
        return self.narrow_value(self.deps.results[call.step]).along(dim)

    def full_values(self, call: Call) -> list[LabeledTensor]:
        """Return the labeled tensors of the same call in the first replay."""
        return self.deps.calls[call.step].values

    def unfollowed_result(self, call: Call) -> Any:
        """Return the result of the first replay, since all inputs are frozen."""
        return map_only(self.deps.results[call.step], lambda value: value.meta, LabeledTensor)

    def narrow_value(self, value: LabeledTensor) -> LabeledTensor:
        """Return the value that the narrowed network should compute."""
        meta = value.meta
        key = labels_key(value.labels), meta.shape, meta.dtype, meta.stride()
        if key not in self._narrowed:
            self._narrowed[key] = self._narrow(value)
        labels, meta = self._narrowed[key]
        return LabeledTensor(meta, labels, value.source)

    def _narrow(self, value: LabeledTensor) -> tuple[Tensor, Tensor]:
        labels = compress(self.roots[value.labels])
        meta = value.meta
        for dim, size in enumerate(labels.shape):
            if size > 1:
                others = [d for d in range(labels.ndim) if d != dim]
                removed = self.drop[labels].all(dim=others) if others else self.drop[labels]
                kept = (~removed).nonzero().flatten()
                labels = labels.index_select(dim, kept)
                meta = resize(meta, dim, len(kept))
        return compress(labels), meta

    def _kept(self, labels: Tensor) -> Tensor:
        labels = self.roots[labels]
        return labels[~self.drop[labels]]

    def _check(self, full: Tensor, labels: Tensor) -> None:
        if not torch.equal(self._kept(full), labels):
            raise _Mismatch


class _Mismatch(Exception):
    """The narrowed network would not compute what the labels promise."""


def contributing_values(steps: Iterable[Step], results: dict[Step, Any]) -> list[LabeledTensor]:
    """Return the inputs of steps, and the tensors from whose shapes their numbers are computed."""
    values: list[LabeledTensor] = []
    queue = [source for step in steps for source in step.sources]
    visited: set[Step] = set()
    while queue:
        step = queue.pop()
        if step in visited:
            continue
        visited.add(step)
        own = values_in(results[step])
        values.extend(own)
        if not own:
            queue.extend(step.sources)
    return values


def _shapes(call: Call) -> list[torch.Size]:
    return [value.meta.shape for value in call.values]


def _constants_differ(call: Call, before: Call) -> bool:
    return repr(call.constants) != repr(before.constants)


def _same_guard(step: Step, result: Any, expected: Any) -> bool:
    """Return whether a number that the forward branches on is unchanged."""
    return not step.guard or bool(values_in(expected)) or result == expected


def _same(result: Any, expected: Any) -> bool:
    values, others = values_in(result), values_in(expected)
    return len(values) == len(others) and all(
        a.meta.shape == b.meta.shape and torch.equal(a.labels, b.labels)
        for a, b in zip(values, others, strict=True)
    )
