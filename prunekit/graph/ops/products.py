"""Products of matrices that are no layers, attention and bilinear maps: only their costs are known.

Channels that meet one of them are kept, so that no cut changes these costs.
"""

from __future__ import annotations

from torch import nn

from prunekit.graph.calls import Call
from prunekit.graph.ops.rules import not_followed
from prunekit.graph.table import register_operation


def _attention(call: Call) -> int:
    """Return the multiply-adds of query times key, and of the weights times value."""
    query, key, value = call.values[:3]
    rows = call.meta_result().numel() // value.meta.shape[-1]
    return int(rows * key.meta.shape[-2] * (query.meta.shape[-1] + value.meta.shape[-1]))


def _projections(call: Call) -> int:
    """Return the multiply-adds of the projections of nn.MultiheadAttention.

    Torch's fused kernel hides them from its counter.
    """
    module, (query, key, value, *_) = call.module, call.values
    inputs = (query, module.embed_dim), (key, module.kdim), (value, module.vdim)
    embed_dim: int = module.embed_dim
    tokens = query.meta.numel() // embed_dim
    projected: int = sum(tensor.meta.numel() // width * width for tensor, width in inputs)
    return projected * embed_dim + tokens * embed_dim * embed_dim


def _heads(call: Call) -> int:
    """Return the multiply-adds of the two products in nn.MultiheadAttention."""
    module, (query, key, *_) = call.module, call.values
    batched = module.batch_first and key.meta.ndim == 3
    read = key.meta.shape[1 if batched else 0]
    read += int(module.bias_k is not None) + int(module.add_zero_attn)
    return int(2 * query.meta.numel() * read)


def _bilinear(call: Call) -> int:
    """Return the multiply-adds of x W y for every output, which torch's counter leaves out."""
    first, second = call.values[:2]
    return int(call.meta_result().numel() * first.meta.shape[-1] * second.meta.shape[-1])


register_operation(
    not_followed,
    "matmul rmatmul imatmul linalg_matmul mm spmm dsmm hsmm bmm addmm addbmm baddbmm inner "
    "tensordot einsum chain_matmul linalg_multi_dot matrix_power linalg_matrix_power",
    product=True,
)
register_operation(
    not_followed,
    "scaled_dot_product_attention",
    dropout_rate_position=4,
    product_macs=_attention,
)
register_operation(not_followed, "", nn.MultiheadAttention, macs=_projections, product_macs=_heads)
register_operation(not_followed, "bilinear", nn.Bilinear, product_macs=_bilinear)
