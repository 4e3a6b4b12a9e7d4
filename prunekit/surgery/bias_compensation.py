"""Bias compensation: constants of removed channels go into the next bias or running mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from prunekit.errors import SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.layers import layer_named
from prunekit.modes import evaluating
from prunekit.surgery.constants import (
    EmittedConstants,
    ObservedOffset,
    record_block_ends,
    record_offsets,
)
from prunekit.surgery.edits import BiasMaps, Edit, NewBiases
from prunekit.surgery.equivalence import Gap, check_inputs, compute_outputs, rounding
from prunekit.surgery.known_constants import KnownConstants, find_known_constants
from prunekit.surgery.remove_block import ChannelBias, EmptyBlock


@dataclass(frozen=True)
class AbsorbedLayer:
    """A layer that lost inputs, and the bias or running mean that absorbed their constants.

    `reason` says why the result is not exact; it is empty if it is.
    """

    layer: str
    into: str
    exact: bool
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.layer} -> {self.into}: {'exact' if self.exact else self.reason}"


@dataclass(frozen=True)
class OutputChange:
    """The change of the outputs by absorption in eval mode, relative to the largest output.

    `moved` is the change of the narrow network itself; `before` and `after` are its distances to
    the dense network whose removed channels still put out their constants.
    """

    moved: float
    before: float
    after: float


@dataclass(frozen=True)
class Absorbed:
    """The result of absorption; `edits` come after those that made the network narrow.

    `per_position` says whether biases for every position were allowed.
    """

    edits: tuple[Edit, ...]
    layers: tuple[AbsorbedLayer, ...]
    change: OutputChange
    per_position: bool = False

    @property
    def exact(self) -> bool:
        """True if the narrow network equals the dense one with constant removed channels."""
        return all(layer.exact for layer in self.layers)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for every layer where it is not exact."""
        return tuple(
            f"constants absorbed at {layer.layer} ({layer.into}) are not exact: {layer.reason}"
            for layer in self.layers
            if not layer.exact
        )

    def __str__(self) -> str:
        if not self.layers:
            return "nothing to absorb: removed channels emit nothing"
        exact = sum(layer.exact for layer in self.layers)
        change = self.change
        return (
            f"constants absorbed at {len(self.layers)} layers, exactly at {exact}; outputs moved "
            f"by {change.moved:.2%}, their distance to the network that still emits them from "
            f"{change.before:.2%} to {change.after:.2%}"
        )


@dataclass(frozen=True, eq=False)
class ConstantOffset:
    """One value in place of the offsets of all calls, and reasons why it is not exact.

    `value` has an entry per channel, or per channel and position if `per_position` is set.
    """

    value: Tensor
    per_position: bool
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, calls: Sequence[ObservedOffset], per_position: bool) -> ConstantOffset | None:
        """Return the mean over calls, and over positions unless `per_position`; None for zeros."""
        if not any(bool(call.offset.any()) for call in calls):
            return None
        means = [_mean_and_odd_share(call.by_channel) for call in calls]
        share, reasons = max(odd for _, odd in means), _differences(calls)
        if per_position and share > 0 and len({call.offset.shape for call in calls}) == 1:
            return cls(torch.stack([call.offset for call in calls]).mean(0), True, reasons)
        if share:
            border = f"{share:.0%} of positions (borders) get another constant, the mean is taken"
            reasons = (border, *reasons)
        return cls(torch.stack([mean for mean, _ in means]).mean(0), False, reasons)


@dataclass(frozen=True, eq=False)
class _Plan:
    """The constant of one layer, and the tensor at `path` that absorbs it.

    It is added to biases and subtracted from running means.
    """

    layer: str
    value: Tensor
    per_position: bool
    into: str
    path: str
    reason: str

    @property
    def outcome(self) -> AbsorbedLayer:
        return AbsorbedLayer(self.layer, self.into, not self.reason, self.reason)


def absorb(
    model: nn.Module,
    narrow: nn.Module,
    graph: ChannelGraph,
    removed: Tensor,
    batch: Example,
    per_position: bool = False,
    shifts: Mapping[str, ConstantOffset] | None = None,
    known: KnownConstants | None = None,
    only_known: bool = False,
) -> Absorbed:
    """Add to `narrow`, in place, the constants that `removed` channels still put out in `model`.

    A constant goes into the bias of the layer that would read it, else into the running mean of the
    batch norm that alone follows, else into a new bias. This is exact where the constant is the
    same at all positions and for all examples of the batch. It is not at zero padding: there the
    mean over positions is taken, or with `per_position` one bias for every position, which fixes
    the input size. `shifts` holds the constants of blocks that were removed whole
    (`branch_constants`), for which `narrow` already has room. `known` are the channels whose
    constants are known (found if None); with `only_known` all others are taken to put out nothing.
    Raises SurgeryError.
    """
    inputs = check_inputs(batch)
    if known is None:
        known = find_known_constants(model, graph, removed, inputs)
    emitted = record_offsets(model, graph, removed, inputs, known, only_known)
    before = _outputs(narrow, inputs)
    candidates = [
        _plan(name, calls, emitted, narrow, per_position and name not in graph.functional)
        for name, calls in emitted.offsets.items()
        if _has_layer(narrow, name)
    ]
    candidates += [_shift_plan(narrow, block, shift) for block, shift in (shifts or {}).items()]
    plans = [plan for plan in candidates if plan is not None]
    edits = _edits(plans)
    for edit in edits:
        edit.apply(narrow)
    _add_constants(narrow, plans)
    after = _outputs(narrow, inputs)
    moved = Gap.between(after, before).relative
    reference = _outputs(model, inputs, "the dense network") if only_known else emitted.outputs
    distances = [Gap.between(outputs, reference).relative for outputs in (before, after)]
    layers = tuple(plan.outcome for plan in plans)
    return Absorbed(edits, layers, OutputChange(moved, *distances), per_position)


def branch_constants(
    model: nn.Module,
    graph: ChannelGraph,
    removed: Tensor,
    blocks: Sequence[EmptyBlock],
    batch: Example,
    per_position: bool = False,
    known: KnownConstants | None = None,
    only_known: bool = False,
) -> dict[str, ConstantOffset]:
    """Return what the branches of blocks that are removed whole still put out, by block.

    Values cover the kept channels and broadcast over the block's output. Blocks whose branches put
    out zeros are left out, and with `only_known` those whose constants are not `known`.
    """
    known = known or KnownConstants()
    if only_known:
        blocks = [block for block in blocks if block.end in known.ends]
    if not blocks:
        return {}
    end_layers = {block.end: block.end_layer for block in blocks}
    ends = record_block_ends(model, graph, removed, end_layers, check_inputs(batch), known)
    constants = {block.block: _broadcast(ends[block.end], per_position) for block in blocks}
    return {name: constant for name, constant in constants.items() if constant is not None}


def _broadcast(end: ObservedOffset, per_position: bool) -> ConstantOffset | None:
    constant = ConstantOffset.of([end], per_position)
    if constant is None or constant.per_position:
        return constant
    shape = [-1 if dim == end.dim else 1 for dim in range(end.offset.ndim)]
    return replace(constant, value=constant.value.reshape(shape))


def _plan(
    name: str,
    calls: list[ObservedOffset],
    emitted: EmittedConstants,
    narrow: nn.Module,
    per_position: bool,
) -> _Plan | None:
    if not calls:
        return _Plan(name, torch.zeros(0), False, "nothing", "", "its input was never seen")
    constant = ConstantOffset.of(calls, per_position)
    if constant is None:
        return None
    into, path = _destination(name, emitted, narrow)
    if constant.per_position:
        into, path = "bias map", f"{name}.1.bias_map"
    reasons = constant.reasons
    if into == "nothing":
        blocked = "its bias is computed, or used elsewhere too, or a function gets none"
        reasons = (blocked, *reasons)
    return _Plan(name, constant.value, constant.per_position, into, path, "; ".join(reasons))


def _shift_plan(narrow: nn.Module, block: str, constant: ConstantOffset) -> _Plan:
    path = f"{block}.shift"
    leaf = "bias" if isinstance(narrow.get_submodule(path), ChannelBias) else "bias_map"
    return _Plan(
        block, constant.value, False, "shift", f"{path}.{leaf}", "; ".join(constant.reasons)
    )


def _has_layer(narrow: nn.Module, name: str) -> bool:
    """Return whether the network still has a layer, or a parameter that is used as one."""
    try:
        return layer_named(narrow, name) is not None
    except SurgeryError:
        return False


def _differences(calls: Sequence[ObservedOffset]) -> tuple[str, ...]:
    """Return the reasons, other than positions, why offsets are not one constant."""
    reasons = []
    varies = max(call.varies for call in calls)
    if varies:
        reasons.append(f"it varies between examples by {varies:.1%}, the mean is taken")
    first = calls[0].by_channel
    limit = rounding(first.dtype) * max(float(call.offset.abs().max()) for call in calls)
    for call in calls[1:]:
        other = call.by_channel
        if other.shape != first.shape or float((other - first).abs().max()) > limit:
            reasons.append(f"it differs between {len(calls)} calls, the mean is taken")
            break
    return tuple(reasons)


def _mean_and_odd_share(offset: Tensor) -> tuple[Tensor, float]:
    """Return the mean of a matrix (channels, positions) over positions, and the odd share.

    That is the share of positions that differ from the median. The mean is used rather than the
    value of the interior, since a batch norm that follows would see the mean; it brought 8 of 10
    networks closer to their dense ones.
    """
    limit = rounding(offset.dtype) * float(offset.abs().max())
    usual = offset.median(1, keepdim=True).values
    odd = ((offset - usual).abs() > limit).any(0)
    return offset.mean(1), float(odd.float().mean())


def _destination(name: str, emitted: EmittedConstants, narrow: nn.Module) -> tuple[str, str]:
    """Return where the constant of a layer goes, in words and as a path."""
    norm = emitted.following_norms.get(name)
    path = emitted.function_biases.get(name, f"{name}.bias")
    owner, _, leaf = path.rpartition(".")
    parameters = _parameters(narrow, owner)
    bias = parameters.get(leaf)
    if bias is not None and _count_owners(narrow, bias) == 1:
        return "bias", path
    if norm is not None:
        return f"running mean of {norm}", f"{norm}.running_mean"
    return ("new bias", path) if leaf in parameters and bias is None else ("nothing", "")


def _parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter | None]:
    try:
        return model.get_submodule(name)._parameters
    except AttributeError:
        return {}  # a layer that is only a parameter


def _count_owners(model: nn.Module, parameter: nn.Parameter) -> int:
    return sum(p is parameter for m in model.modules() for p in m._parameters.values())


def _outputs(model: nn.Module, inputs: Arguments, who: str = "the narrow network") -> object:
    with evaluating(model):
        return compute_outputs(model, inputs, who)


def _edits(plans: list[_Plan]) -> tuple[Edit, ...]:
    new = tuple(plan.layer for plan in plans if plan.into == "new bias")
    shapes = {plan.layer: tuple(plan.value.shape) for plan in plans if plan.per_position}
    return (*([NewBiases(new)] if new else []), *([BiasMaps(shapes)] if shapes else []))


@torch.no_grad()
def _add_constants(narrow: nn.Module, plans: list[_Plan]) -> None:
    for plan in plans:
        if plan.path:
            owner, _, leaf = plan.path.rpartition(".")
            tensor = getattr(narrow.get_submodule(owner), leaf)
            tensor.add_(-plan.value if leaf == "running_mean" else plan.value)
