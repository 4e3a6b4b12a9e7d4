"""Find the end of a network: its last maps, their flattening, and the classifier's layers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.dataflow import chain_before, input_steps
from prunekit.graph.layers import is_weighted
from prunekit.graph.recording.copies import copy_network
from prunekit.graph.recording.passes import record_eval
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import layer_operation


@dataclass(frozen=True)
class Ending:
    """The modules at the end of a network, by name, in order of execution.

    `last` computes the logits, `hidden` are the layers between it and the flattening to `features`
    numbers. The flattening reads `channels` maps, which `pools` have pooled. Functions are left
    out, and modules that are also called elsewhere.
    """

    last: str
    hidden: tuple[str, ...]
    features: int
    pools: tuple[str, ...]
    channels: int


def last_layer(model: nn.Module, example: Example) -> str:
    """Return the convolution or linear layer whose outputs are the logits.

    The network is only recorded. Raises SurgeryError where several layers compute the output, or a
    function whose weights are parameters does, and TraceError like `ChannelGraph.trace`.
    """
    return str(_End(model, example).last.target)


def ending(model: nn.Module, example: Example) -> Ending:
    """Return the end of a network with flattened maps; raises like `last_layer`."""
    return _End(model, example).ending()


class _End:
    """A recording in eval mode, and the step of its last layer."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.name = type(model).__name__
        recording = record_eval(model, Arguments.of(example))
        self.network = copy_network(model)
        layers = [step for step in chain_before(recording.output) if self._is_weighted(step)]
        if not layers:
            sources = " and ".join(map(str, input_steps(recording.output)))
            raise SurgeryError(
                f"the output of {self.name} is not made by one convolution or linear layer, but by "
                f"{sources}; a new classifier has to be put there by hand"
            )
        self.last = layers[0]
        self.calls = Counter(step.target for step in recording.steps if step.kind is Kind.LAYER)

    def ending(self) -> Ending:
        """Return the names of the modules from the last maps on."""
        chain = [*chain_before(self.last)]
        hidden = [*takewhile(_is_flat, chain)]
        flat, *before = chain[len(hidden) :]
        pools = [*takewhile(self._pools, before)]
        maps = before[len(pools)] if len(before) > len(pools) else flat
        if (_rank(flat), _rank(maps)) != (2, 4):
            raise SurgeryError(
                f"{self.last.target} of {self.name} does not read flattened maps, but what "
                f"{flat} puts out"
            )
        return Ending(
            str(self.last.target),
            self._modules(hidden),
            _shape(flat)[1],
            tuple(name for name in self._modules(pools) if _pools(self._module(name))),
            _shape(maps)[1],
        )

    def _modules(self, steps: list[Step]) -> tuple[str, ...]:
        return tuple(str(step.target) for step in reversed(steps) if self._is_called_once(step))

    def _pools(self, step: Step) -> bool:
        if not self._is_called_once(step):
            return False
        module = self._module(step.target)
        entry = layer_operation(module)
        if isinstance(module, nn.Identity) or (entry is not None and entry.is_dropout):
            return True
        return _pools(module)

    def _is_called_once(self, step: Step) -> bool:
        """Return whether a step calls a module that is not called elsewhere."""
        return step.kind is Kind.LAYER and self.calls[step.target] == 1

    def _is_weighted(self, step: Step) -> bool:
        return step.kind is Kind.LAYER and is_weighted(self._module(step.target))

    def _module(self, name: str) -> nn.Module:
        return self.network.get_submodule(name)


def _pools(module: nn.Module) -> bool:
    entry = layer_operation(module)
    return entry is not None and entry.pools


def _is_flat(step: Step) -> bool:
    """Return whether a step computes a matrix (batch, features) from such matrices."""
    return {_rank(step), *map(_rank, input_steps(step))} == {2} and step.kind is not Kind.INPUT


def _shape(step: Step) -> torch.Size:
    return step.result.shape if isinstance(step.result, Tensor) else torch.Size()


def _rank(step: Step) -> int:
    return len(_shape(step))
