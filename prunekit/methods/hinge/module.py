"""A convolution with a sparsity-inducing matrix behind it (Li et al. 2020, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

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
