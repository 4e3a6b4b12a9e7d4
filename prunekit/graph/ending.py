"""How a network ends: its last maps, what makes them flat, and the layers of its classifier."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from prunekit.errors import SurgeryError, TraceError
from prunekit.graph import symbolic
from prunekit.graph.channels import Example, shapes_of
from prunekit.graph.junctions import sources
from prunekit.graph.layers import CONSUMERS

_POOLS = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.LPPool2d, nn.FractionalMaxPool2d),
    *(nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool2d),
)
_BETWEEN = (nn.Identity, nn.Dropout, nn.Dropout2d)


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
    """A traced network, the shapes of its steps, and the step of its last layer."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        self.name, inputs = type(model).__name__, shapes_of(example)
        self.twin = symbolic.shapes_only(model)
        with torch.no_grad():
            graph = symbolic.trace(self.twin, inputs)
            self._note_shapes(graph, inputs)
        output = next(iter(graph.find_nodes(op="output")))
        found = [one for one in _back(output) if self._is(one, CONSUMERS)]
        if not found:
            raise SurgeryError(
                f"the output of {self.name} is not made by one convolution or linear layer, but by "
                f"{' and '.join(symbolic.describe(one) for one in sources(output))}; a new "
                "classifier has to be put there by hand"
            )
        self.last = found[0]
        self.calls = Counter(one.target for one in graph.find_nodes(op="call_module"))

    def _note_shapes(self, graph: fx.Graph, inputs: Sequence[Tensor]) -> None:
        try:
            ShapeProp(fx.GraphModule(self.twin, graph)).propagate(*inputs)
        except Exception as error:
            shapes = ", ".join(str(tuple(one.shape)) for one in inputs)
            reason = str(error.__cause__ or error).splitlines()[0]
            raise TraceError(f"{self.name} fails on an example of {shapes}: {reason}") from error

    def whole(self) -> Ending:
        """What is named from the last maps on."""
        back = [*_back(self.last)]
        hidden = [*takewhile(_behind_flattening, back)]
        flat, *before = back[len(hidden) :]
        pools = [*takewhile(self._pools, before)]
        maps = before[len(pools)] if len(before) > len(pools) else flat
        if (_rank(flat), _rank(maps)) != (2, 4):
            raise SurgeryError(
                f"{self.last.target} of {self.name} does not read flattened maps, but what "
                f"{symbolic.describe(flat)} puts out"
            )
        return Ending(
            str(self.last.target),
            self._modules(hidden),
            _shape(flat)[1],
            tuple(name for name in self._modules(pools) if isinstance(self._at(name), _POOLS)),
            _shape(maps)[1],
        )

    def _modules(self, steps: list[fx.Node]) -> tuple[str, ...]:
        return tuple(str(one.target) for one in reversed(steps) if self._once(one))

    def _pools(self, step: fx.Node) -> bool:
        return self._once(step) and self._is(step, (*_POOLS, *_BETWEEN))

    def _once(self, step: fx.Node) -> bool:
        """Whether it calls a module that has no other part in the network."""
        return step.op == "call_module" and self.calls[step.target] == 1

    def _is(self, step: fx.Node, kinds: tuple[type[nn.Module], ...]) -> bool:
        return step.op == "call_module" and isinstance(self._at(str(step.target)), kinds)

    def _at(self, name: str) -> nn.Module:
        return self.twin.get_submodule(name)


def _back(step: fx.Node) -> Iterator[fx.Node]:
    """The steps before, as long as each computes from one alone; late to early."""
    while len(before := sources(step)) == 1:
        step = before[0]
        yield step


def _behind_flattening(step: fx.Node) -> bool:
    """Whether a step makes a row of numbers of a row of numbers."""
    return {_rank(step), *map(_rank, sources(step))} == {2} and step.op != "placeholder"


def _shape(step: fx.Node) -> torch.Size:
    known = step.meta.get("tensor_meta")
    return getattr(known, "shape", torch.Size())


def _rank(step: fx.Node) -> int:
    return len(_shape(step))
