"""Steps that several recordings share: what was found for the first of them holds for all."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import named_operation
from prunekit.graph.values import LabeledTensor, values_in


class Repeats:
    """Finds, for a step, one before it that calls the same on the same values.

    `results` are those of the first pass, which may still grow. `first` maps every step that
    repeats another to the earliest that it repeats.
    """

    def __init__(self, results: Mapping[Step, Any]) -> None:
        self.originals: dict[Step, Step] = {}
        self._results = results
        self._steps: dict[Hashable, Step] = {}
        self._earliest: dict[Step, Step] = {}
        self._labels: dict[
            LabeledTensor, Hashable
        ] = {}  # holds values, so that no address is used twice

    def remember(self, step: Step) -> Step:
        """Remember a step; returns the earliest that is equal."""
        key = self._key(step)
        if key is not None:
            self._earliest[step] = self._steps.setdefault(key, step)
        return self.earliest(step)

    def earliest(self, step: Step) -> Step:
        """The earliest step that calls the same on the same, mostly itself."""
        return self._earliest.get(step, step)

    def repeated(self, step: Step) -> Step | None:
        """The step that this one repeats; where there is none, it is remembered itself."""
        before = self.remember(step)
        if before is step:
            return None
        self.originals[step] = before
        return before

    def _key(self, step: Step) -> Hashable | None:
        """What a step calls on what; None where it has to be played each time.

        Tensors that a forward makes have labels of their own, what it hands out is named by run.
        """
        if step.kind not in (Kind.LAYER, Kind.CALL):
            return None
        entry = named_operation(step.name)
        if entry is not None and entry.creates:
            return None
        key = (
            *(step.kind, step.name, step.target, step.guard),
            *(self._argument_key(step.args), self._argument_key(step.kwargs)),
        )
        try:
            hash(key)
        except TypeError:
            return None
        return key

    def _argument_key(self, item: Any) -> Any:
        """An argument as a key: literals with their types, tensors by shapes and labels."""
        if isinstance(item, Step):
            return self._source_key(item)
        if isinstance(item, tuple | list):
            return (type(item), *map(self._argument_key, item))
        if isinstance(item, dict):
            return tuple((name, self._argument_key(inner)) for name, inner in item.items())
        if isinstance(item, slice):
            return (slice, *map(self._argument_key, (item.start, item.stop, item.step)))
        return type(item), item

    def _source_key(self, step: Step) -> Any:
        """What a step has made; numbers are told apart by how they were computed."""
        path = step.target if step.kind is Kind.TENSOR else None
        result = self._results[step]
        if isinstance(result, LabeledTensor):
            return path, self._value_key(result)
        values = values_in(result)
        if not values:
            return path, id(self.earliest(step))
        return path, type(result), *map(self._value_key, values)

    def _value_key(self, value: LabeledTensor) -> Hashable:
        if value not in self._labels:
            meta, labels = value.meta, value.labels
            self._labels[value] = (
                meta.shape,
                meta.stride(),
                meta.dtype,
                value.source,
                labels_key(labels),
            )
        return self._labels[value]


def concatenate_labels(values: Iterable[LabeledTensor]) -> tuple[Tensor, Tensor]:
    """The labels of values in one vector, and for each entry the number of the value it is from.

    Equal ones stand there once; the first entry is fixed.
    """
    distinct = {labels_key(value.labels): value.labels for value in values}
    flat = [torch.zeros(1, dtype=torch.long), *(one.flatten() for one in distinct.values())]
    sizes = torch.tensor([len(one) for one in flat])
    return torch.cat(flat), torch.repeat_interleave(torch.arange(len(flat)), sizes)


def labels_key(labels: Tensor) -> Hashable:
    """A key of labels, which are never changed."""
    if labels.numel() == 1:
        return labels.item()
    return labels.data_ptr(), labels.shape, labels.stride()
