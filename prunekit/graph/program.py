"""Execute a recording on numbers, from any step to any other."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from prunekit.graph.arguments import Arguments
from prunekit.graph.recording.nests import tree_map
from prunekit.graph.recording.steps import Kind, Recording, Step, with_results

Values = dict[Step, Any]  # the results that later steps still read
Observers = Mapping[Step, Callable[..., None]]  # called with the arguments of a step


class Program:
    """The steps of a recorded forward pass, executed on a network with the same modules.

    Where a pass is resumed at a step, only the results that later steps read are needed. Inputs
    have the shapes of the recording, since Python may have read any of them as a plain number.
    """

    def __init__(self, network: nn.Module, recording: Recording) -> None:
        self.network = network
        self.recording, self.steps = recording, recording.steps
        self.position = {step: index for index, step in enumerate(self.steps)}
        self._last_use = {
            source: self.position[step] for step in self.steps for source in step.sources
        }

    def start(self, inputs: Arguments) -> Values:
        """Return the values before the first step: the network's inputs."""
        tensors = inputs.tensors
        return {step: tensors[step.target] for step in self.steps if step.kind is Kind.INPUT}

    def run(self, values: Values, start: int, stop: int, observers: Observers | None = None) -> Any:
        """Execute the steps from `start` up to `stop`, excluded, and update `values`.

        Returns what the network returns if `stop` is behind the last step. An observer is called
        with the arguments of its step before this is executed.
        """
        modules = dict(self.network.named_modules())
        result = None
        for index in range(start, stop):
            step = self.steps[index]
            args, kwargs = with_results((step.args, step.kwargs), values)
            if observers and step in observers:
                observers[step](*args, **kwargs)
            if step.kind is Kind.OUTPUT:
                result = args[0]
            elif step.kind is not Kind.INPUT:
                values[step] = self._execute(step, args, kwargs, modules)
            for source in (*step.sources, step):
                if self._last_use.get(source, -1) <= index:
                    values.pop(source, None)
        return result

    def preview(self, values: Values, step: Step) -> Any:
        """Return what a step puts out, without going there; None where a parameter decides it.

        `values` stay as they are.
        """
        missing: list[Step] = []
        waiting = [step]
        while waiting:
            ancestor = waiting.pop()
            if ancestor in values or ancestor in missing:
                continue
            if ancestor.kind is Kind.INPUT or self._has_parameters(ancestor):
                return None
            missing.append(ancestor)
            waiting.extend(ancestor.sources)
        modules = dict(self.network.named_modules())
        # copies, since a step may change its argument in place
        known = {
            source: cloned(values[source]) for source in {step, *_sources(missing)} & {*values}
        }
        for ancestor in sorted(missing, key=self.position.__getitem__):
            args, kwargs = with_results((ancestor.args, ancestor.kwargs), known)
            known[ancestor] = self._execute(ancestor, args, kwargs, modules)
        return known[step]

    def _has_parameters(self, step: Step) -> bool:
        if step.kind is Kind.LAYER:
            return any(True for _ in self.network.get_submodule(step.target).parameters())
        return step.kind in (Kind.TENSOR, Kind.OUTPUT)

    def live_bytes(self, index: int) -> int:
        """Return the bytes of the results that are needed from a step on."""
        return self._live[index]

    def most_live_bytes(self, index: int = 0) -> int:
        """Return the largest number of bytes that are needed from this step or a later one on."""
        return self._most_live[index]

    @cached_property
    def _live(self) -> list[int]:
        """The bytes in front of every step, and behind the last."""
        changes = [0] * (len(self.steps) + 2)
        for index, step in enumerate(self.steps):
            last = self._last_use.get(step, -1)
            if step.kind in (Kind.INPUT, Kind.LAYER, Kind.CALL) and last > index:
                size = sum(t.numel() * t.element_size() for t in _tensors(step.result))
                changes[index + 1] += size
                changes[last + 1] -= size
        return [*accumulate(changes[:-1])]

    @cached_property
    def _most_live(self) -> list[int]:
        return [*accumulate(reversed(self._live), max)][::-1]

    def _execute(self, step: Step, args: Any, kwargs: Any, modules: Mapping[str, nn.Module]) -> Any:
        if step.kind is Kind.TENSOR:
            owner, _, leaf = str(step.target).rpartition(".")
            return getattr(modules[owner], leaf)
        if step.kind is Kind.CONSTANT:
            return step.target.clone()  # it may be changed in place
        if step.kind is Kind.LAYER:
            layer = modules[step.target]
            return layer(*_own_arguments(layer, args, kwargs), **kwargs)
        result = step.target(*args, **kwargs)
        return args[0] if result is None and args else result  # __setitem__ returns nothing


def _own_arguments(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    """Return the arguments without tensors of the layer itself, which are recorded behind them."""
    with suppress(TypeError, ValueError):
        parameters = inspect.signature(layer.forward).parameters.values()
        kinds = [parameter.kind for parameter in parameters if parameter.name not in kwargs]
        if inspect.Parameter.VAR_POSITIONAL not in kinds:
            return args[: len(kinds)]
    return args


def _sources(steps: Iterable[Step]) -> set[Step]:
    return {source for step in steps for source in step.sources}


def cloned(value: Any) -> Any:
    """Return a result whose tensors are copies."""
    return tree_map(value, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def _tensors(result: Any) -> list[Tensor]:
    found: list[Tensor] = []
    tree_map(result, lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None)
    return found
