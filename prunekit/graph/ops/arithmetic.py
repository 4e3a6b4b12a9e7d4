"""Arithmetic, comparisons, reductions and questions."""

from __future__ import annotations

from prunekit.graph.ops.passing import along, ignored, like, pointwise, question, reduction
from prunekit.graph.ops.results import of_reduced
from prunekit.graph.table import operation

operation(pointwise, "add sub mul div truediv maximum minimum", broadcasts=True)
operation(
    pointwise,
    "subtract multiply divide true_divide floordiv floor_divide mod remainder fmod pow eq ne lt le "
    "gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor and or xor where "
    "masked_fill fmax fmin lerp addcmul addcdiv expand_as rsub copy float_power atan2 hypot",
)
operation(
    pointwise,
    "neg pos negative abs absolute exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square "
    "reciprocal sin cos tan asin acos atan sinh cosh erf erfc sign round floor ceil trunc frac "
    "detach alias requires_grad fill zero zero_grad uniform normal bernoulli "
    "exponential random",
    alike=True,
)
operation(
    pointwise,
    "clamp clip clamp_min clamp_max isnan isinf isfinite nan_to_num logical_not bitwise_not not "
    "invert float half double bfloat16 int long bool type contiguous clone",
)
operation(
    like, "to type_as cpu cuda zeros_like ones_like empty_like full_like rand_like randn_like"
)
operation(like, "randint_like")
operation(reduction(), "mean sum amax amin", shape=of_reduced)
operation(reduction(), "prod std var logsumexp max min argmax argmin any all median")
operation(reduction(), "std_mean var_mean aminmax nansum nanmean count_nonzero")
operation(reduction(2), "norm")
operation(along(None), "cumsum cumprod cummax cummin")
operation(question, "size dim numel nelement ndimension is_floating_point stride get_device")
operation(ignored, "_assert")
