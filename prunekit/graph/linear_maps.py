"""Convolutions and linear layers as matrices: rows of inputs, rows of outputs, and the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from prunekit.graph.layers import TRANSPOSED, weight_norm, widths
from prunekit.graph.ops.weights import put_weight, weight_of


@dataclass(frozen=True, eq=False)
class LinearMap:
    """A layer as one matrix per group: outputs (rows, o) = inputs (rows, p) @ matrix (p, o) + bias.

    A row is one position of one example. For a convolution, its p inputs are the patch that the
    kernel covers, all channels of the group in the order of the weight. Transposed convolutions are
    those with stride 1 over an input with zeros between its entries.
    """

    layer: Any

    @property
    def groups(self) -> int:
        """The number of matrices."""
        return getattr(self.layer, "groups", 1)

    @property
    def unknowns(self) -> int:
        """The number p of rows of each matrix."""
        return self.matrix().shape[1]

    @property
    def _transposed(self) -> bool:
        return isinstance(self.layer, TRANSPOSED)

    @property
    def _rank(self) -> int:
        """The number of spatial dimensions."""
        return len(getattr(self.layer, "kernel_size", ()))

    def matrix(self) -> Tensor:
        """Return the weights as (groups, p, o)."""
        weight = weight_of(self.layer)
        if self._transposed:
            kernel = tuple(range(2, weight.ndim))
            weight = weight.flip(kernel).reshape(self.groups, -1, *weight.shape[1:])
            return weight.movedim(2, -1).flatten(1, -2)
        return weight.reshape(self.groups, weight.shape[0] // self.groups, -1).transpose(1, 2)

    @torch.no_grad()
    def set_matrix(self, matrix: Tensor) -> None:
        """Write weights (groups, p, o) into the layer, in its number format.

        A parametrised weight is written through its parametrisation.
        """
        weight = weight_of(self.layer)
        if self._transposed:
            kernel = weight.shape[2:]
            split = matrix.reshape(self.groups, -1, *kernel, matrix.shape[-1]).movedim(-1, 2)
            values = split.reshape(weight.shape).flip(tuple(range(2, weight.ndim)))
        else:
            values = matrix.transpose(1, 2).reshape(weight.shape)
        if "weight" in self.layer._parameters:
            self.layer.weight.copy_(values)
        elif weight_norm(self.layer) is not None:
            put_weight(self.layer, values.to(weight))
        else:
            self.layer.weight = values.to(weight)

    def count_rows(self, output: Tensor) -> int:
        """Return the number of rows in an output."""
        return output.numel() // widths(self.layer)[1]

    def output_rows(self, output: Tensor, chosen: Tensor) -> Tensor:
        """Return rows of an output as (groups, rows, o); `chosen` are their numbers."""
        last = output if not self._rank else self._batched(output).movedim(1, -1)
        rows = last.reshape(-1, last.shape[-1])[chosen]
        return rows.reshape(len(chosen), self.groups, -1).transpose(0, 1)

    def input_rows(self, x: Tensor, output: Tensor, chosen: Tensor) -> Tensor:
        """Return the rows of an input that lead to these rows of the output, (groups, rows, p)."""
        if not self._rank:
            return x.reshape(-1, x.shape[-1])[chosen][None]
        sizes = self._batched(output).shape[2:]
        windows = self._windows(self._batched(x), sizes)  # (examples, C, positions..., kernel...)
        patches = windows.movedim(1, 1 + self._rank)
        index = torch.unravel_index(chosen, patches.shape[: 1 + self._rank])
        rows = patches[index]
        return rows.reshape(len(chosen), self.groups, -1).transpose(0, 1)

    def _batched(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0) if x.ndim == self._rank + 1 else x

    def _windows(self, x: Tensor, sizes: Any) -> Tensor:
        layer, rank = self.layer, self._rank
        stride = (1,) * rank if self._transposed else layer.stride
        x = self._stuffed(x, sizes) if self._transposed else self._padded(x)
        for dim in range(rank):
            reach = layer.dilation[dim] * (layer.kernel_size[dim] - 1) + 1
            x = x.unfold(2 + dim, reach, stride[dim])[..., :: layer.dilation[dim]]
        return x

    def _padded(self, x: Tensor) -> Tensor:
        layer = self.layer
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        return F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)

    def _stuffed(self, x: Tensor, sizes: Any) -> Tensor:
        """Return the input with zeros between entries and around, for outputs of these sizes."""
        layer = self.layer
        shape = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True)]
        stuffed = x.new_zeros((*x.shape[:2], *shape))
        entries = (slice(None), slice(None), *(slice(None, None, s) for s in layer.stride))
        stuffed[entries] = x
        padding: list[int] = []
        for dim in reversed(range(self._rank)):
            reach = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
            before = reach - layer.padding[dim]
            padding += [before, sizes[dim] + reach - shape[dim] - before]
        return F.pad(stuffed, padding)
