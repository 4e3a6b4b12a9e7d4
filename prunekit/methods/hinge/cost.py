"""Multiply-adds and parameters of a network with sparsity-inducing matrices, once these are folded.

A network without such matrices is counted as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from prunekit.graph import ChannelGraph
from prunekit.measure.cost import CostModel, counts
from prunekit.measure.latency_table import Clock
from prunekit.methods.hinge.module import Hinged


@counts(Hinged)
class FoldedCost(CostModel):
    """Counts every matrix as merged into its convolution where that takes no more multiply-adds.

    So with nothing dropped it is the network before matrices were attached. `pairs` are the names
    of the channel groups of the two matrices of every block that has two.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, clock: Clock | None = None) -> None:
        super().__init__(model, graph, clock)
        hinged = {n: m for n, m in model.named_modules() if isinstance(m, Hinged)}
        place = {name: index for index, name in enumerate(self._names)}
        two = [n for n, m in hinged.items() if m.conv is not None and f"{n}.conv" in place]
        self._first = torch.tensor([place[f"{n}.conv"] for n in two], dtype=torch.long)
        self._second = torch.tensor([place[f"{n}.matrix"] for n in two], dtype=torch.long)
        self.pairs = tuple(_pairs(hinged, graph))

    def macs(self, drop: Tensor | None = None) -> int:
        """Multiply-adds of convolutions and linear layers."""
        uses = self._uses[self._first]
        return super().macs(drop) - int((uses * self._saved(drop)).sum())

    def params(self, drop: Tensor | None = None) -> int:
        """Parameters of the whole network, shared ones once."""
        own = self._own[self._first]
        return super().params(drop) - int((own * self._saved(drop)).sum())

    def _saved(self, drop: Tensor | None) -> Tensor:
        """Weights that merging saves, of every convolution with a matrix; never less than none."""
        ins, outs = self._kept(drop)
        depth = self._area[self._first] * ins[self._first]
        inner, outer = outs[self._first], outs[self._second]
        return (inner * (depth + outer) - depth * outer).clamp_min(0)


def _pairs(hinged: dict[str, Hinged], graph: ChannelGraph) -> Iterator[tuple[str, str]]:
    """Names of the groups that the first and the second matrix of a block may lose units of."""
    owner = {int(unit): group.name for group in graph.groups for unit in group.units}
    by_block: dict[str, dict[str, str]] = {}
    for name, module in hinged.items():
        side = graph.ins if module.site.sides == ("rows",) else graph.outs
        units = side.get(f"{name}.matrix", torch.zeros(1, dtype=torch.long))
        if module.site.role and "groups" not in module.site.sides and int(units[0]) in owner:
            by_block.setdefault(module.site.block, {})[module.site.role] = owner[int(units[0])]
    for found in by_block.values():
        if len(found) == 2:
            yield found["first"], found["second"]
