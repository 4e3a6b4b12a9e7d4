"""Convolutions with a sparsity-inducing matrix: module, target, criterion and cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from prunekit.criteria.base import CRITERIA, Criterion, Scores, scores_of_complete_groups
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.measure.cost import CostModel, register_cost_model
from prunekit.measure.latency_table import LatencySetup
from prunekit.rows import Rows, Slice, unit_norms
from prunekit.targets import TARGETS, Target, removable, span

if TYPE_CHECKING:
    from prunekit.data import Data

Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
SIDES = ("rows", "columns", "groups")
STARTS = ("svd", "identity", "svd_weight")


@dataclass(frozen=True)
class Site:
    """The convolution `layer`, which gets a sparsity-inducing matrix A.

    `sides` says what of A may vanish: "rows" (its inputs: the layer is decomposed), "columns" (its
    outputs: filters are pruned), both, or "groups" (whole convolution groups, together with the
    other matrix of the block). `start` says how A is initialised behind weights W: "svd" (W becomes
    U and A is S V^T), "svd_weight" (W becomes U S and A is V^T) or "identity"; None means that the
    layer, a 1 x 1 convolution, is the matrix itself. `block` is the residual block, or the layer
    alone. `role` is "first" or "second" for the two matrices of a block, else "".
    """

    layer: str
    sides: tuple[str, ...]
    start: str | None = None
    block: str = ""
    role: str = ""


class Hinged(nn.Module):
    """Replaces the layer of a `Site` by a convolution followed by the matrix A.

    `conv` is None if the layer is itself the matrix. There is no nonlinearity in between, so that
    both are equivalent to one convolution.
    """

    def __init__(self, conv: Conv | None, matrix: Conv, site: Site) -> None:
        super().__init__()
        self.conv, self.matrix, self.site = conv, matrix, site

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the replaced layer."""
        output: Tensor = self.matrix(x if self.conv is None else self.conv(x))
        return output

    def extra_repr(self) -> str:
        """Name the sides that may vanish."""
        return " and ".join(self.site.sides)


def hinged_modules(model: nn.Module) -> dict[str, Hinged]:
    """Return the modules with a matrix by name, in the order of registration."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Hinged)}


@TARGETS.register("matrices")
@dataclass(frozen=True, kw_only=True)
class Matrices(Target):
    """The rows, columns or convolution groups of the sparsity-inducing matrices in a network.

    The site of a matrix says which; if it has rows and columns, rows come first. Raises ConfigError
    if there is no matrix, or if something that should vanish cannot be removed.
    """

    def blocks(self, model: nn.Module, graph: ChannelGraph) -> list[Rows]:
        """Return a block per side, "layer.rows" or "layer.columns", and per grouped block."""
        hinged = hinged_modules(model)
        if not hinged:
            raise ConfigError(
                "target=matrices: the network has no sparsity-inducing matrices; attach some, by "
                "placement=auto"
            )
        grouped = {name: m for name, m in hinged.items() if "groups" in m.site.sides}
        sides = [
            _matrix_side(name, module, side, graph)
            for name, module in hinged.items()
            if name not in grouped
            for side in module.site.sides
        ]
        return [*sides, *_conv_groups(grouped, graph)]


def _matrix_side(name: str, module: Hinged, side: str, graph: ChannelGraph) -> Rows:
    """Return the inputs ("rows") or outputs ("columns") of the 1 x 1 convolution."""
    units = (graph.ins if side == "rows" else graph.outs).get(f"{name}.matrix")
    if units is None or not removable(units):
        reason = graph.frozen.get(f"{name}.matrix", "the forward does not call it")
        raise ConfigError(f"{side} of the matrix of {name} cannot be removed: {reason}")
    part = Slice(module.matrix.weight, 1 if side == "rows" else 0)
    return Rows(f"{name}.{side}", (part,), units, role=module.site.role)


def _conv_groups(hinged: Mapping[str, Hinged], graph: ChannelGraph) -> list[Rows]:
    """Return a matrix per block: a row is what feeds a convolution group and what reads it."""
    blocks: dict[str, dict[str, tuple[str, Hinged]]] = {}
    for name, module in hinged.items():
        blocks.setdefault(module.site.block, {})[module.site.role] = (name, module)
    groups = []
    for block, roles in blocks.items():
        (name, first), (_, second) = roles["first"], roles["second"]
        units = graph.outs[f"{name}.matrix"]
        if not removable(units):
            raise ConfigError(
                f"groups of {block} cannot be removed: {graph.frozen.get(f'{name}.matrix', '')}"
            )
        width = span(units)
        parts = (Slice(first.matrix.weight, 0, width), Slice(second.matrix.weight, 1, width))
        groups.append(Rows(f"{block}.groups", parts, units[::width]))
    return groups


@CRITERIA.register("matrix")
@dataclass(frozen=True)
class MatrixNorm(Criterion):
    """Scores a row, column or convolution group of a matrix by its 2-norm (Li et al. 2020).

    The row norms of a matrix that starts as S V^T are the singular values of its convolution, so
    that keeping the r longest rows is a truncated SVD (Eckart and Young 1936).
    """

    def scores(
        self, model: nn.Module, graph: ChannelGraph, data: Data | None, device: str = "cpu"
    ) -> Scores:
        """Return the scores of groups whose units have a matrix; raises ConfigError without any."""
        blocks = Matrices().rows(model, graph)
        norms = unit_norms(blocks, [block.read().detach() for block in blocks], graph.count)
        scored = torch.zeros(graph.count)
        scored[torch.cat([block.units.cpu() for block in blocks])] = 1
        return scores_of_complete_groups(
            graph, norms, scored, "has a matrix for each of its channels"
        )


@register_cost_model(Hinged)
class FoldedCost(CostModel):
    """Counts multiply-adds and parameters as they will be once matrices are folded.

    A matrix counts as merged into its convolution if that takes no more multiply-adds, so nothing
    is added while no unit is removed. `pairs` has, for every block with two matrices, the names of
    their channel groups.
    """

    def __init__(
        self, model: nn.Module, graph: ChannelGraph, latency: LatencySetup | None = None
    ) -> None:
        super().__init__(model, graph, latency)
        hinged = hinged_modules(model)
        index = {name: i for i, name in enumerate(self._names)}
        both = [n for n, m in hinged.items() if m.conv is not None and f"{n}.conv" in index]
        self._convs = torch.tensor([index[f"{n}.conv"] for n in both], dtype=torch.long)
        self._matrices = torch.tensor([index[f"{n}.matrix"] for n in both], dtype=torch.long)
        self.pairs = tuple(_group_pairs(hinged, graph))

    def macs(self, drop: Tensor | None = None) -> int:
        """Return the multiply-adds of convolutions and linear layers."""
        uses = self._uses[self._convs]
        return super().macs(drop) - int((uses * self._saved(drop)).sum())

    def params(self, drop: Tensor | None = None) -> int:
        """Return the parameters of the whole network; shared ones count once."""
        own = self._own[self._convs]
        return super().params(drop) - int((own * self._saved(drop)).sum())

    def _saved(self, drop: Tensor | None) -> Tensor:
        """Return the weights that merging saves for every convolution with a matrix, at least 0."""
        ins, outs = self._kept(drop)
        depth = self._area[self._convs] * ins[self._convs]
        inner, outer = outs[self._convs], outs[self._matrices]
        return (inner * (depth + outer) - depth * outer).clamp_min(0)


def _group_pairs(hinged: Mapping[str, Hinged], graph: ChannelGraph) -> Iterator[tuple[str, str]]:
    """Yield the channel groups of the first and the second matrix of every block with both."""
    owner = {int(unit): group.name for group in graph.groups for unit in group.units}
    by_block: dict[str, dict[str, str]] = {}
    for name, module in hinged.items():
        side = graph.ins if module.site.sides == ("rows",) else graph.outs
        unit = int(side.get(f"{name}.matrix", torch.zeros(1, dtype=torch.long))[0])
        if module.site.role and "groups" not in module.site.sides and unit in owner:
            by_block.setdefault(module.site.block, {})[module.site.role] = owner[unit]
    for groups in by_block.values():
        if len(groups) == 2:
            yield groups["first"], groups["second"]
