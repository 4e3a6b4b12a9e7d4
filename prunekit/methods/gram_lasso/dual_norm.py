"""The dual norm of the graph-structured lasso: the strength from which on zero is optimal."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from prunekit.methods.gram_lasso.proximal_gradient import descend

if TYPE_CHECKING:
    from prunekit.methods.gram_lasso.graph_lasso import Edges

ROUGH, STEPS = 4, 25  # rounds without a linear program, and gradient steps of each round
CLOSE = 1e-9  # relative: a bound that is closer counts as reached


def largest_dual_norm(rows: Tensor, edges: Edges, ratio: float) -> float:
    """Return the largest dual norm of any row for the norm |b|_1 + ratio |C b|_1.

    The dual norm of a is the smallest s for which there is a flow w along the edges with |w| <=
    ratio s and |a - C^T w| <= s. Any b bounds it from below by <a, b> over its norm. Rows
    whose dual norm is certainly not the largest are left out by a few proximal gradient steps for
    all rows at once; a linear program gives the exact value of those that remain.
    """
    best = float((rows.abs() / (1 + ratio * edges.degree)).amax())  # of single entries
    flows = _levelling_flows(rows, edges)
    for count in itertools.count(1):
        flows = _improved_flows(rows, flows, edges, ratio * best)
        left = rows - edges.adjoint(flows)
        best = max(best, _largest_ratio(rows, left, edges, ratio))
        bounds = left.abs().amax(1)
        if count > ROUGH:
            index = int(bounds.argmax())
            best = max(best, _dual_norm_by_linear_program(rows[index], edges, ratio))
            bounds[index] = best
        is_open = bounds > best * (1 + CLOSE)
        rows, flows = rows[is_open], flows[:, is_open]
        if not len(rows):
            break
    return best


def _levelling_flows(rows: Tensor, edges: Edges) -> Tensor:
    """Return the least flows that leave what no edge can change, (edges, rows)."""
    values, vectors = edges.spectrum
    inverse = torch.where(values > CLOSE * values[-1], 1 / values, 0.0)
    return edges.differences(rows @ (vectors * inverse) @ vectors.T)


def _largest_ratio(rows: Tensor, left: Tensor, edges: Edges, ratio: float) -> float:
    """Return the largest ratio <a, b> / norm(b), where b are level sets of what flows leave."""
    size = left.abs()
    largest = 0.0
    for level in (0.0, 0.5, 0.9, 0.99, 0.999, 0.999999):
        b = torch.where(size >= level * size.amax(1, keepdim=True), left.sign(), 0.0)
        norm = b.abs().sum(1) + ratio * edges.differences(b).abs().sum(0)
        ratios = (rows * b).sum(1) / norm.clamp_min(1e-300)
        largest = max(largest, float(ratios.amax()))
    return largest


def _improved_flows(rows: Tensor, flows: Tensor, edges: Edges, bound: float) -> Tensor:
    """Return flows within the bound that leave smaller rows, by steps of the proximal gradient."""
    curvature = max(float(edges.spectrum[0][-1]), 1e-300)
    steps = descend(
        lambda w: -edges.differences(rows - edges.adjoint(w)),
        lambda w, _: w.clamp(-bound, bound),
        1 / curvature,
        flows.clamp(-bound, bound),
    )
    return next(itertools.islice(steps, STEPS - 1, None))


def _dual_norm_by_linear_program(row: Tensor, edges: Edges, ratio: float) -> float:
    """Return the dual norm of a row, with its variables (s, w)."""
    from scipy.optimize import linprog  # imported late: few runs need it
    from scipy.sparse import coo_matrix, hstack, identity, vstack

    count, nodes = len(edges.weight), edges.nodes
    weight, sign = edges.weight.numpy(), edges.sign.numpy()
    ends = np.concatenate([edges.first.numpy(), edges.second.numpy()])
    values = np.concatenate([weight, -sign * weight])
    adjoint = coo_matrix((values, (ends, np.tile(np.arange(count), 2))), shape=(nodes, count))
    one, box = np.ones((nodes, 1)), np.full((count, 1), ratio)
    blocks = [
        (-one, -adjoint),
        (-one, adjoint),
        (-box, identity(count)),
        (-box, -identity(count)),
    ]
    target = row.numpy()
    result = linprog(
        np.eye(1, 1 + count)[0],
        A_ub=vstack([hstack(pair) for pair in blocks]).tocsr(),
        b_ub=np.concatenate([-target, target, np.zeros(2 * count)]),
        bounds=[(0, None)] + [(None, None)] * count,
        method="highs",
    )
    return float(result.fun)
