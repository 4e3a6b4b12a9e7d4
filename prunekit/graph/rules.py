"""How labels pass through operations that compute: a table from names in torch to a few rules.

A rule gets the run and the call and returns the result, in which values stand for tensors.
Whatever is in no table is unknown, and freezes what it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prunekit.graph.calls import Call
from prunekit.graph.steps import Kind, Step, tensors_among
from prunekit.graph.values import Value, aligned, compress, each, fixed

if TYPE_CHECKING:
    from prunekit.graph.labels import Run

Rule = Callable[["Run", Call], Any]


def unknown(run: Run, call: Call, why: str = "it is not known what it does to channels") -> Any:
    """Freeze everything that goes in; nothing that comes out can vanish."""
    for value in call.values:
        run.freeze(value.labels, call, why)
    return each(run.outcome(call), fixed, Tensor)


def activation(run: Run, call: Call) -> Any:
    """One tensor in, the same shape and type out: nothing needs to be computed."""
    value, *others = call.values
    return pointwise(run, call) if others else value


def pointwise(run: Run, call: Call) -> Any:
    """Entries that meet in arithmetic share their fate."""
    call = run.adopt(call)
    meta = _pointwise_meta(call)
    if not isinstance(meta, Tensor):
        return meta
    now = aligned(call.values, meta.ndim)
    full = aligned(run.originals(call), meta.ndim)
    result = (*full[0], now[0][1])
    for (shape, before), (_, labels) in zip(full[1:], now[1:], strict=True):
        result = _unite(run, call, result, (shape, before, labels))
    return Value(meta, compress(result[2]))


def _pointwise_meta(call: Call) -> Any:
    """The result's shape and type; known at once for tensors that are alike."""
    first, *others = (value.meta for value in call.values)
    plain = call.name in _ARITHMETIC and first.is_floating_point()
    if plain and all(o.shape == first.shape and o.dtype == first.dtype for o in others):
        return first
    if plain and all(o.is_contiguous() and o.dtype == first.dtype for o in (first, *others)):
        return first.new_empty(torch.broadcast_shapes(*(m.shape for m in (first, *others))))
    return call.on_meta()


Operand = tuple[list[int], Tensor, Tensor]  # shape and labels in the full network, labels now


def _unite(run: Run, call: Call, a: Operand, b: Operand) -> Operand:
    """Broadcasting is judged by the full network: a last channel left does not become a gate."""
    shape = list(torch.broadcast_shapes(a[0], b[0]))
    varying = [d for d in range(len(shape)) if a[1].shape[d] > 1 or b[1].shape[d] > 1]
    a_spans, b_spans = (all(side[0][d] > 1 for d in varying) for side in (a, b))
    if a_spans and b_spans:
        run.unite(a[2], b[2], call)
        return (shape, *(torch.broadcast_tensors(a[i], b[i])[0] for i in (1, 2)))
    for spans, one, other in ((a_spans, a, b), (b_spans, b, a)):
        if spans and other[1].numel() == 1:  # one entry for all channels stays with any of them
            run.freeze(other[2], call, None)
            return (shape, one[1], one[2])
    for side in (a, b):
        run.freeze(side[2], call, "it combines channels with other channels")
    return (shape, *(torch.zeros_like(a[i]) for i in (1, 2)))


def spatial(rank: int | None) -> Rule:
    """A rule for operations that work on every channel alone, over the last `rank` dimensions."""

    def rule(run: Run, call: Call) -> Any:
        value = call.values[0]
        last = rank if rank is not None else value.meta.ndim - 2
        return _within(run, call, range(value.meta.ndim - last, value.meta.ndim))

    return rule


def normalise(default: int | None) -> Rule:
    """A rule for operations that mix the entries of one dimension and keep the shape."""

    def rule(run: Run, call: Call) -> Any:
        dim = call.argument(1 if call.name != "normalize" else 2, "dim", default=default)
        return (
            _within(run, call, [dim % call.values[0].meta.ndim])
            if dim is not None
            else unknown(run, call)
        )

    return rule


def layer_norm(run: Run, call: Call) -> Any:
    """Mix the last dimensions, as many as there are normalised sizes."""
    rank = call.values[0].meta.ndim
    return _within(run, call, range(rank - len(call.argument(1, "normalized_shape")), rank))


def _within(run: Run, call: Call, dims: Iterable[int]) -> Any:
    value, *others = call.values
    if set(dims) & set(value.varying) or any(o.varying and not o.source for o in others):
        return unknown(run, call, "it mixes channels")
    for other in others:
        run.freeze(other.labels, call, None)
    if call.name in _SAME_SHAPE or isinstance(call.module, _NORMS):
        return Value(value.meta, value.labels)
    return each(call.on_meta(), lambda meta: Value(meta, value.labels), Tensor)


def reduce(run: Run, call: Call) -> Any:
    """Sums and the like over dimensions that hold no channels leave the channels alone."""
    if len(call.values) > 1:
        return pointwise(run, call)
    value = call.values[0]
    asked = call.argument(2 if call.name == "norm" else 1, "dim", "axis")
    asked = None if isinstance(asked, bool) else asked  # std(x, True): not a dimension
    dims = range(value.meta.ndim) if asked is None else [asked] if isinstance(asked, int) else asked
    dims = {dim % value.meta.ndim for dim in dims}
    if dims & set(value.varying):
        return unknown(run, call, "it mixes channels")
    left = [size for dim, size in enumerate(value.labels.shape) if dim not in dims]
    return each(
        call.on_meta(),
        lambda meta: Value(
            meta, value.labels if meta.ndim == value.meta.ndim else value.labels.reshape(left)
        ),
        Tensor,
    )


def like(run: Run, call: Call) -> Any:
    """Only the first tensor's channels matter; others lend their type or device."""
    return Value(call.on_meta(), call.values[0].labels)


def question(run: Run, call: Call) -> Any:
    """Ask a tensor for its size, type or device."""
    return call.on_meta()


def structure(run: Run, call: Call) -> Any:
    """Named tuples and the like only hold what they are given."""
    return call.op(*call.args, **call.kwargs)


def ignored(run: Run, call: Call) -> None:
    """Assertions hold for the example that the user gave."""


def table(rule: Rule, names: str) -> dict[str, Rule]:
    """The same rule under several names."""
    return dict.fromkeys(names.split(), rule)


_ARITHMETIC = frozenset({"add", "sub", "mul", "div", "truediv", "maximum", "minimum"})
_SAME_SHAPE = frozenset({"layer_norm", "rms_norm", "softmax", "log_softmax"})
_NORMS = (nn.LayerNorm, nn.Softmax, nn.LogSoftmax)

QUESTIONS = frozenset(
    {"size", "dim", "numel", "nelement", "ndimension", "is_floating_point", "stride", "get_device"}
)


def asks(step: Step) -> bool:
    """Whether a step asks for a size or a type: nothing of the channels goes on."""
    return step.kind is Kind.CALL and not tensors_among((step.result,))


STILL: dict[str, Rule] = {
    **table(
        activation,
        "relu relu6 leaky_relu elu selu celu gelu silu mish sigmoid tanh logsigmoid hardtanh "
        "hardsigmoid hardswish softplus dropout dropout1d dropout2d dropout3d alpha_dropout "
        "feature_dropout feature_alpha_dropout detach clone",
    ),
    **table(
        pointwise,
        "add sub subtract mul multiply div divide truediv true_divide floordiv floor_divide mod "
        "remainder fmod pow neg pos negative abs absolute exp exp2 expm1 log log2 log10 log1p "
        "sqrt rsqrt square reciprocal sin cos tan asin acos atan sinh cosh erf erfc sign "
        "round floor ceil trunc frac clamp clip clamp_min clamp_max hardshrink "
        "softshrink softsign tanhshrink threshold rrelu contiguous "
        "float half double bfloat16 type eq ne lt le gt ge not logical_and logical_or "
        "logical_not logical_xor and or xor where masked_fill maximum minimum fmax fmin lerp "
        "addcmul addcdiv isnan isinf isfinite nan_to_num expand_as requires_grad "
        "stochastic_depth",
    ),
    **table(like, "to type_as zeros_like ones_like"),
    **table(reduce, "mean sum amax amin prod std var logsumexp norm max min argmax argmin any all"),
    **table(normalise(None), "softmax log_softmax softmin cumsum cumprod"),
    **table(normalise(-1), "glu"),
    **table(normalise(1), "normalize"),
    **table(layer_norm, "layer_norm rms_norm"),
    **table(question, " ".join(QUESTIONS)),
    **table(ignored, "_assert"),
    **table(spatial(None), "interpolate upsample"),
    **{
        f"{kind}_pool{rank}d": spatial(rank)
        for kind in ("max", "avg", "lp", "adaptive_max", "adaptive_avg")
        for rank in (1, 2, 3)
    },
}
