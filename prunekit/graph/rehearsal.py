"""Later passes over recorded runs: make sure that narrowed versions of it work."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import count
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import TraceError
from prunekit.graph.calls import Call, shapes_equal
from prunekit.graph.discovery import Dependencies
from prunekit.graph.partition import FROZEN
from prunekit.graph.recording.steps import Kind, Step, without_repeats
from prunekit.graph.run import Replay
from prunekit.graph.values import LabeledTensor, compress, map_only, resize, values_in


def validate(deps: Dependencies) -> None:
    """Freeze what hinders narrowed versions of the network, until nothing does.

    Where no operation depends on sizes, labels alone are exact. Raises TraceError where nothing
    more can be frozen and a rehearsal still fails.
    """
    exact = _exact(deps)
    if len(exact) == len(deps.steps):
        return
    choices = [half_of_units, end_units]
    if any(step.guard for step in deps.steps):  # any threshold lies between all and one
        choices.append(all_but_one)
    clean = 0
    for seed in count():
        roots = deps.parts.roots()
        run = NarrowedReplay(deps, roots, choices[clean](deps, roots, seed), exact)
        run.play()
        if not run.failed:
            clean += 1
            if clean == len(choices):
                return
            continue
        clean = 0
        if not freeze_neighbours(deps, run.failed):
            raise TraceError(
                f"{type(deps.network).__name__} cannot be narrowed: "
                f"{run.failed[0]} depends on channel numbers in a way that "
                "is not understood; take sizes from the shapes of the tensors at hand"
            )


def _exact(deps: Dependencies) -> set[Step]:
    """The steps of which labels tell exactly what they do in narrowed versions.

    There are none where a parameter may have been used before it got labels.
    """
    if deps.parameters_labeled_late:
        return set()
    changing = _changing_numbers(deps)
    return {step for step in deps.steps if _follows_labels(step, deps, changing)}


def _follows_labels(step: Step, deps: Dependencies, changing: Collection[Step]) -> bool:
    """Whether an operation does to any narrowed input what it did to the labels."""
    if step not in deps.calls or step.is_query:
        return step not in changing
    entry = deps.calls[step].entry
    if entry is not None and entry.moves and not entry.size_agnostic:
        return False
    return not any(source in changing for source in step.sources)


def _changing_numbers(deps: Dependencies) -> set[Step]:
    """The numbers that are others in narrowed versions: computed from how many channels there are.

    A shape that is read as a whole is none of them, only what is taken of it.
    """
    found: set[Step] = set()
    for step in deps.steps:
        if step.is_query and any(
            one in found or _counts_channels(step, one, deps) for one in step.sources
        ):
            found.add(step)
    return found


def _counts_channels(step: Step, source: Step, deps: Dependencies) -> bool:
    """Whether a step counts entries of a tensor along dimensions that hold channels."""
    index = next((arg for arg in step.args[1:] if isinstance(arg, int)), None)
    tensor = source
    if source.is_query:  # an item of a shape
        if step.name != "getitem" or source.name not in ("getattr", "size", "stride"):
            return False
        tensor = source.sources[0]
    elif step.name in ("getattr", "size") and index is None:
        return False
    if "stride" in (step.name, source.name):
        index = None  # how far entries are apart depends on all dimensions behind
    if tensor.kind is Kind.TENSOR:
        return True  # a parameter, which may be narrowed with a layer
    values = values_in(deps.results[tensor])
    return any(
        bool(value.varying) and (index is None or index % value.meta.ndim in value.varying)
        for value in values
    )


def freeze_neighbours(deps: Dependencies, failed: list[Step]) -> bool:
    """Freeze what goes into the steps and what comes out; whether that changed anything."""
    changed = False
    for step in failed:
        why = f"{step}, which works for these sizes only"
        for value in contributing_values([step], deps.results):
            lost = deps.parts.freeze(value.labels)
            if lost:
                changed = True
                deps.note(lost, why)
        values = values_in(deps.results[step])
        changed |= any([bool(deps.parts.freeze(value.labels)) for value in values])
    return changed


def half_of_units(deps: Dependencies, roots: Tensor, seed: int = 0) -> Tensor:
    """Units to leave out in a rehearsal: half of all, at random."""
    chance = torch.rand(len(roots), generator=torch.Generator().manual_seed(seed)) < 0.5
    drop = torch.zeros(len(roots), dtype=torch.bool)
    for labels in deps.producers.values():
        drop[roots[labels]] = chance[roots[labels]]
    return _without_all(deps, roots, drop)


def end_units(deps: Dependencies, roots: Tensor, seed: int = 0) -> Tensor:
    """The first and the last unit of every layer."""
    drop = torch.zeros(len(roots), dtype=torch.bool)
    for labels in deps.producers.values():
        drop[roots[labels[[0, -1]]]] = True
    return _without_all(deps, roots, drop)


def all_but_one(deps: Dependencies, roots: Tensor, seed: int = 0) -> Tensor:
    """All units but the first of every layer."""
    drop = torch.zeros(len(roots), dtype=torch.bool)
    for labels in deps.producers.values():
        drop[roots[labels]] = True
    for labels in deps.producers.values():
        drop[roots[labels[0]]] = False
    return _without_all(deps, roots, drop)


def _without_all(deps: Dependencies, roots: Tensor, drop: Tensor) -> Tensor:
    """Units to leave out with which something is left of every value."""
    drop[FROZEN] = False
    labels, owner = deps.all_labels
    left = torch.bincount(owner[~drop[roots[labels]]], minlength=int(owner[-1]) + 1)
    for empty in (left == 0).nonzero().flatten().tolist():
        units = roots[labels[owner == empty]]
        if bool(drop[units].all()):
            drop[units[-1]] = False
    return drop


class NarrowedReplay(Replay):
    """A later pass: runs the network as it would be without some units, and finds what fails.

    Constants in the user's code (sizes, indices, parameters of their own) show up here, because the
    narrowed network then computes on other channels than the labels promise.
    """

    def __init__(
        self, deps: Dependencies, roots: Tensor, drop: Tensor, exact: Collection[Step] = ()
    ) -> None:
        super().__init__(deps.network, without_repeats(deps.recordings), deps.over_norms)
        self.deps = deps
        self.roots = roots
        self.drop = drop
        self.failed: list[Step] = []
        self._exact = exact  # steps that need no rehearsal
        self._changed: set[Step] = set()  # those whose results are others than in the first pass
        self._narrowed_values: dict[
            Any, tuple[Tensor, Tensor]
        ] = {}  # by labels, which the first pass holds

    def play(self) -> None:
        """Run the network, and note every step whose result is not what it should be."""
        for step in self.steps:
            before = self.deps.repeats.originals.get(step)
            if before in self.results:
                self._keep(step, self.results[before])
                continue
            expected = map_only(self.deps.results[step], self.narrow_value, LabeledTensor)
            if self._needless(step):
                self._keep(step, expected)
                continue
            try:
                result = self.evaluate_step(step)
                right = _same(result, expected) and _steers_alike(step, result, expected)
            except Exception:  # whatever a narrowed network stumbles over is a constant in its way
                right = False
            self._keep(step, result if right else expected)
            if not right and not self.is_unused(step):
                self.failed.append(step)

    def _needless(self, step: Step) -> bool:
        """Whether it is known that a step does what its labels promise.

        It does where nothing it works on is narrowed. Shapes that are read as a whole have to be
        read again otherwise, although nothing may be taken of them that changes.
        """
        if step in self._exact and not step.is_query:
            return True
        return step in self.deps.calls and self._changed.isdisjoint(step.sources)

    def _keep(self, step: Step, result: Any) -> None:
        self.results[step] = result
        if not shapes_equal(result, self.deps.results[step]):
            self._changed.add(step)

    def is_unused(self, step: Step) -> bool:
        """Whether a tensor was made that nothing reads."""
        call = self.deps.calls.get(step)
        makes = call is not None and call.entry is not None and call.entry.creates
        return makes and not step.users

    def evaluate(self, call: Call) -> Any:
        """Only operations that move entries may depend on sizes that change."""
        before = self.deps.calls[call.step]
        alike = _shapes(call) == _shapes(before)
        if any(source.is_query for source in call.step.sources):
            sized = call.entry is not None and call.entry.takes_sizes
            if call.values and not sized and _differ(call, before):
                raise _Mismatch
            alike = shapes_equal((call.args, call.kwargs), (before.args, before.kwargs))
        return super().evaluate(replace(call, recorded=alike))

    def execute(self, call: Call) -> Any:
        """What comes of other sizes."""
        return call.meta_result()

    def unite(self, a: Tensor, b: Tensor, call: Call) -> None:
        """Labels that meet must be the same by now."""
        if not _equal(*torch.broadcast_tensors(a, b)):
            raise _Mismatch

    def freeze(self, labels: Tensor, call: Call | None, why: str | None) -> None:
        """Nothing is left to freeze."""
        if bool((labels != FROZEN).any()):
            raise _Mismatch

    def visit_layer(self, call: Call, incoming: Tensor) -> tuple[Tensor, Tensor]:
        """The layer will have been narrowed to what is kept."""
        name = call.layer
        self._check(self.deps.ins[name], incoming)
        return self.deps.results[call.step].meta, self._kept(self.deps.outs[name])

    def blank_labels(self, call: Call, meta: Tensor, dim: int) -> Tensor | None:
        """The labels that these channels got in the first pass."""
        return self.narrow_value(self.deps.results[call.step]).along(dim)

    def picked_labels(
        self, call: Call, value: LabeledTensor, dim: int, index: LabeledTensor
    ) -> Tensor | None:
        """What is left of the buffer will have been numbered anew."""
        return self.narrow_value(self.deps.results[call.step]).along(dim)

    def full_values(self, call: Call) -> list[LabeledTensor]:
        """The values of the same call in the first pass."""
        return self.deps.calls[call.step].values

    def unfollowed_result(self, call: Call) -> Any:
        """What is not followed is frozen, so it gives what it gave."""
        return map_only(self.deps.results[call.step], lambda value: value.meta, LabeledTensor)

    def visit_norm(self, call: Call, labels: Tensor) -> None:
        """The layer will have been narrowed to what is kept."""
        self._check(self.deps.ins[call.layer], labels)

    def visit_tensor(self, step: Step) -> Any:
        """It will have been narrowed to what is kept."""
        return map_only(self.deps.results[step], self.narrow_value, LabeledTensor)

    def narrow_value(self, value: LabeledTensor) -> LabeledTensor:
        """The value that the narrowed network should compute."""
        key = id(value.labels), value.meta.shape, value.meta.dtype, value.meta.stride()
        if key not in self._narrowed_values:
            self._narrowed_values[key] = self._narrowed(value)
        labels, meta = self._narrowed_values[key]
        return LabeledTensor(meta, labels, value.source)

    def _narrowed(self, value: LabeledTensor) -> tuple[Tensor, Tensor]:
        labels = compress(self.roots[value.labels])
        meta = value.meta
        for dim, size in enumerate(labels.shape):
            if size > 1:
                others = [d for d in range(labels.ndim) if d != dim]
                gone = self.drop[labels].all(dim=others) if others else self.drop[labels]
                kept = (~gone).nonzero().flatten()
                labels = labels.index_select(dim, kept)
                meta = resize(meta, dim, len(kept))
        return compress(labels), meta

    def _kept(self, labels: Tensor) -> Tensor:
        labels = self.roots[labels]
        return labels[~self.drop[labels]]

    def _check(self, expected: Tensor, labels: Tensor) -> None:
        if not _equal(self._kept(expected), labels):
            raise _Mismatch


class _Mismatch(Exception):
    """The narrowed network would not compute what the labels promise."""


def contributing_values(steps: Iterable[Step], results: dict[Step, Any]) -> list[LabeledTensor]:
    """The values that steps work on, also through numbers computed from their shapes."""
    found: list[LabeledTensor] = []
    queue = [source for step in steps for source in step.sources]
    seen: set[Step] = set()
    while queue:
        step = queue.pop()
        if step in seen:
            continue
        seen.add(step)
        values = values_in(results[step])
        found.extend(values)
        if not values:
            queue.extend(step.sources)
    return found


def _shapes(call: Call) -> list[torch.Size]:
    return [value.meta.shape for value in call.values]


def _differ(call: Call, before: Call) -> bool:
    return repr(call.constants) != repr(before.constants)


def _steers_alike(step: Step, result: Any, expected: Any) -> bool:
    """Sizes that the forward branches on must be what they were."""
    return not step.guard or bool(values_in(expected)) or result == expected


def _same(result: Any, expected: Any) -> bool:
    values, others = values_in(result), values_in(expected)
    return len(values) == len(others) and all(
        a.meta.shape == b.meta.shape and _equal(a.labels, b.labels)
        for a, b in zip(values, others, strict=True)
    )


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
