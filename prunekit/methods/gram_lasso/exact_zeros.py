"""Zeros of a solution: small entries that an iterative solver leaves where the optimum is zero."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from prunekit.methods.gram_lasso.regression import DualPenalty, Quadratic, Solution

LEVELS = (torch.inf, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-9, 1e-11)  # of the largest entry


def with_exact_zeros(problem: Quadratic, penalty: DualPenalty, solution: Solution) -> Solution:
    """Return the solution in which entries are zero that need not be anything else.

    All entries below a level are set to zero, at the highest level at which that does not raise the
    objective: all of them where the objective is not below that of zero. The duality gap shrinks
    by as much as the objective falls.
    """
    beta = solution.beta
    size = beta.abs()
    largest = float(size.amax()) if size.numel() else 0.0
    if largest == 0:
        return solution
    residual, value = problem.residual(beta), float(penalty.value(beta))
    smallest = float(size[size > 0].amin())
    for level in LEVELS:
        if level * largest < smallest:
            break
        rest = torch.where(size < level * largest, 0.0, beta)
        rise = _quadratic_rise(problem, residual, beta - rest)
        rise += float(penalty.value(rest)) - value
        if rise <= 0:
            gap = None if solution.gap is None else max(0.0, solution.gap + rise)
            return replace(solution, beta=rest, objective=solution.objective + rise, gap=gap)
    return solution


def _quadratic_rise(problem: Quadratic, residual: Tensor, removed: Tensor) -> float:
    """Return by how much the quadratic part rises where `removed` is subtracted."""
    mapped = problem.cross - problem.residual(removed)  # G times what is removed
    return float((removed * (residual + mapped / 2)).sum())
