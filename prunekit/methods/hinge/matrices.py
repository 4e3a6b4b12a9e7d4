"""Convolutions with a sparsity-inducing matrix: module, target, criterion and cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit.criteria.base import CRITERIA, Criterion, Scores, seen_groups
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure.cost import CostModel, register_cost_model
from prunekit.measure.latency_table import LatencySetup
from prunekit.rows import Rows, Slice, unit_norms
from prunekit.targets import TARGETS, Target, removable, span

if TYPE_CHECKING:
    from prunekit.data import Data


SIDES = ("rows", "columns", "groups")
STARTS = ("svd", "identity", "svd_weight")


@dataclass(frozen=True)
class Site:
    """A place for a sparsity-inducing matrix A: the convolution `layer`.

    `sides` says what of A may vanish: "rows" (its inputs: the layer is decomposed), "columns" (its
    outputs: filters are pruned), both, or "groups" (whole convolution groups, with the other layer
    of the same block). `start` is how a new A begins behind the layer: "svd" (W becomes U, A is
    S V^T), "svd_weight" (W becomes U S, A is V^T), "identity"; None where the layer, a 1 x 1
    convolution, is the matrix itself. `block` is the residual block, or the layer alone, `role`
    "first" or "second" for the two matrices of a block and "" for others.
    """

    layer: str
    sides: tuple[str, ...]
    start: str | None = None
    block: str = ""
    role: str = ""


class Hinged(nn.Module):
    """What stands in the place of the layer of a `Site`: the convolution, then the matrix A.

    `conv` is None where the layer itself is the matrix. A has no nonlinearity in front of it, so
    both together are a convolution.
    """

    def __init__(self, conv: nn.Module | None, matrix: nn.Module, site: Site) -> None:
        super().__init__()
        self.conv, self.matrix, self.site = conv, matrix, site

    def forward(self, x: Tensor) -> Tensor:
        """The output of the layer whose place it takes."""
        return self.matrix(x if self.conv is None else self.conv(x))

    def extra_repr(self) -> str:
        """What may vanish."""
        return " and ".join(self.site.sides)


@TARGETS.register("matrices")
@dataclass(frozen=True, kw_only=True)
class Matrices(Target):
    """Rows, columns or conv groups of the sparsity-inducing matrices that were attached.

    Which of them says the site of every matrix; of one with both, rows come first. ConfigError
    where there is no matrix, or where what should go cannot.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """A block for every side, "layer.rows" or "layer.columns", and for every grouped block."""
        hinged = [(n, m) for n, m in model.named_modules() if isinstance(m, Hinged)]
        if not hinged:
            raise ConfigError(
                "target=matrices: the network has no sparsity-inducing matrices; attach some, by "
                "placement=auto"
            )
        single = [(n, m) for n, m in hinged if "groups" not in m.site.sides]
        found = [
            _matrix_side(name, module, side, graph)
            for name, module in single
            for side in module.site.sides
        ]
        return [*found, *_conv_groups([pair for pair in hinged if pair not in single], graph)]


def _matrix_side(name: str, module: Hinged, side: str, graph: ChannelGraph) -> Rows:
    """Rows are what the 1 x 1 convolution reads, columns what it puts out."""
    units = (graph.ins if side == "rows" else graph.outs).get(f"{name}.matrix")
    if units is None or not removable(units):
        why = graph.frozen.get(f"{name}.matrix", "the forward does not call it")
        raise ConfigError(f"{side} of the matrix of {name} cannot be removed: {why}")
    part = Slice(module.matrix.weight, 1 if side == "rows" else 0)
    return Rows(f"{name}.{side}", (part,), units, role=module.site.role)


def _conv_groups(hinged: Sequence[tuple[str, Hinged]], graph: ChannelGraph) -> list[Rows]:
    """For each block one row per conv group: what feeds the group, then what reads it."""
    blocks: dict[str, dict[str, tuple[str, Hinged]]] = {}
    for name, module in hinged:
        blocks.setdefault(module.site.block, {})[module.site.role] = (name, module)
    found = []
    for block, roles in blocks.items():
        (feeds, first), (_, second) = roles["first"], roles["second"]
        units = graph.outs[f"{feeds}.matrix"]
        if not removable(units):
            raise ConfigError(
                f"groups of {block} cannot be removed: {graph.frozen.get(f'{feeds}.matrix', '')}"
            )
        width = span(units)
        parts = (Slice(first.matrix.weight, 0, width), Slice(second.matrix.weight, 1, width))
        found.append(Rows(f"{block}.groups", parts, units[::width]))
    return found


@CRITERIA.register("matrix")
@dataclass(frozen=True)
class MatrixNorm(Criterion):
    """The 2-norm of a row, column or conv group of an attached matrix (Li et al. 2020).

    The rows of a matrix that starts as S V^T of its convolution are as long as its singular values,
    so that keeping the longest r of a layer is its truncated SVD (Eckart and Young 1936).
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Groups whose units have no matrix have no score; ConfigError if none has."""
        blocks = Matrices().rows(model, graph)
        norms = unit_norms(blocks, [block.read().detach() for block in blocks], graph.count)
        seen = torch.zeros(graph.count)
        seen[torch.cat([block.units.cpu() for block in blocks])] = 1
        return seen_groups(graph, norms, seen, "has a matrix for each of its channels")


@register_cost_model(Hinged)
class FoldedCost(CostModel):
    """Counts every matrix as merged into its convolution where that takes no more multiply-adds.

    So with nothing dropped it is the network before matrices were attached. `pairs` are the names
    of the channel groups of the two matrices of every block that has two.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, latency: LatencySetup | None = None
    ) -> None:
        super().__init__(model, graph, latency)
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
