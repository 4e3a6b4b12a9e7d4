"""The target of Hinge: rows, columns or conv groups of the sparsity-inducing matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from prunekit.errors import ConfigError
from prunekit.graph.channels import ChannelGraph
from prunekit.methods.hinge.module import Hinged
from prunekit.rows import Rows, Slice
from prunekit.targets import TARGETS, Target, removable, span


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
