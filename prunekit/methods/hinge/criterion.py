"""The norms of sparsity-inducing matrices, which are singular values where an SVD made them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from prunekit.criteria.base import CRITERIA, Criterion, Scores, seen_groups
from prunekit.methods.hinge.target import Matrices
from prunekit.rows import unit_norms

if TYPE_CHECKING:
    from prunekit.data import Data
    from prunekit.graph import ChannelGraph


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
