"""How a network ends: its last maps, what makes them flat, and the layers of its classifier."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.layers import is_weighted
from prunekit.graph.recording.twin import copy_network
from prunekit.graph.recording.runs import record_eval
from prunekit.graph.recording.steps import Kind, Step
from prunekit.graph.table import layer_operation
from prunekit.graph.walks import chain_before, input_steps


@dataclass(frozen=True)
class Ending:
    """The modules at the end of a network, by name, in order of execution.

    `last` makes the logits. In front of it stand `hidden` and the flattening to `features` numbers;
    what is flattened are `channels` maps behind `pools`. Functions between them have no name, and
    modules that are called elsewhere too are left out.
    """

    last: str
    hidden: tuple[str, ...]
    features: int
    pools: tuple[str, ...]
    channels: int


def last_layer(model: nn.Module, example: Example) -> str:
    """The convolution or linear layer whose outputs are the logits.

    Nothing is computed. SurgeryError where several layers make the output, or a function whose
    weights are parameters does; TraceError like `ChannelGraph.trace`.
    """
    return str(_End(model, example).last.target)


def ending(model: nn.Module, example: Example) -> Ending:
    """The whole end of a network whose classifier reads flattened maps; errors as `last_layer`."""
    return _End(model, example).whole()


class _End:
    """A recorded run, and the step of its last layer."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.name = type(model).__name__
        recording = record_eval(model, Arguments.of(example))
        self.network = copy_network(model)
        found = [
            one
            for one in chain_before(recording.output)
            if one.kind is Kind.LAYER and is_weighted(self._at(str(one.target)))
        ]
        if not found:
            raise SurgeryError(
                f"the output of {self.name} is not made by one convolution or linear layer, but by "
                f"{' and '.join(map(str, input_steps(recording.output)))}; a new classifier has to be "
                "put there by hand"
            )
        self.last = found[0]
        callee = [step for step in recording.steps if step.kind is Kind.LAYER]
        self.calls = Counter(step.target for step in callee)

    def whole(self) -> Ending:
        """What is named from the last maps on."""
        behind = [*chain_before(self.last)]
        hidden = [*takewhile(_behind_flattening, behind)]
        flat, *before = behind[len(hidden) :]
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
            tuple(name for name in self._modules(pools) if _pools(self._at(name))),
            _shape(maps)[1],
        )

    def _modules(self, steps: list[Step]) -> tuple[str, ...]:
        return tuple(str(one.target) for one in reversed(steps) if self._once(one))

    def _pools(self, step: Step) -> bool:
        if not self._once(step):
            return False
        module = self._at(str(step.target))
        entry = layer_operation(module)
        between = isinstance(module, nn.Identity) or (entry is not None and entry.is_dropout)
        return between or _pools(module)

    def _once(self, step: Step) -> bool:
        """Whether it calls a module that has no other part in the network."""
        return step.kind is Kind.LAYER and self.calls[step.target] == 1

    def _weighs(self, step: Step) -> bool:
        return step.kind is Kind.LAYER and is_weighted(self._at(str(step.target)))

    def _at(self, name: str) -> nn.Module:
        return self.network.get_submodule(name)


def _pools(module: nn.Module) -> bool:
    entry = layer_operation(module)
    return entry is not None and entry.pools


def _behind_flattening(step: Step) -> bool:
    """Whether a step makes a row of numbers of a row of numbers."""
    return {_rank(step), *map(_rank, input_steps(step))} == {2} and step.kind is not Kind.INPUT


def _shape(step: Step) -> torch.Size:
    return step.result.shape if isinstance(step.result, Tensor) else torch.Size()


def _rank(step: Step) -> int:
    return len(_shape(step))
