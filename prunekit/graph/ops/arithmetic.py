"""Arithmetic, comparisons, reductions and questions."""

from __future__ import annotations

from prunekit.graph.ops.passing import along_dim, elementwise, ignore, like_first, query, reduction
from prunekit.graph.ops.results import reduced_shape
from prunekit.graph.table import register_operation

register_operation(elementwise, "add sub mul div truediv maximum minimum", broadcasts=True)
register_operation(
    elementwise,
    "subtract multiply divide true_divide floordiv floor_divide mod remainder fmod pow eq ne lt le "
    "gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor and or xor where "
    "masked_fill fmax fmin lerp addcmul addcdiv expand_as rsub copy float_power atan2 hypot",
)
register_operation(
    elementwise,
    "neg pos negative abs absolute exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square "
    "reciprocal sin cos tan asin acos atan sinh cosh erf erfc sign round floor ceil trunc frac "
    "detach alias requires_grad fill zero zero_grad uniform normal bernoulli "
    "exponential random",
    same_shape=True,
)
register_operation(
    elementwise,
    "clamp clip clamp_min clamp_max isnan isinf isfinite nan_to_num logical_not bitwise_not not "
    "invert float half double bfloat16 int long bool type contiguous clone",
)
register_operation(
    like_first, "to type_as cpu cuda zeros_like ones_like empty_like full_like rand_like randn_like"
)
register_operation(like_first, "randint_like")
register_operation(reduction(), "mean sum amax amin", result_shape=reduced_shape)
register_operation(reduction(), "prod std var logsumexp max min argmax argmin any all median")
register_operation(reduction(), "std_mean var_mean aminmax nansum nanmean count_nonzero")
register_operation(reduction(2), "norm")
register_operation(along_dim(None), "cumsum cumprod cummax cummin")
register_operation(query, "size dim numel nelement ndimension is_floating_point stride get_device")
register_operation(ignore, "_assert")
