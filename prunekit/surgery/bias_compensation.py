"""Constants that removed channels still emit, moved into the next bias or running mean."""

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
from prunekit.surgery.biases import BiasMaps, NewBiases
from prunekit.surgery.constants import Emission, Heard, hear_ends, listen, slack
from prunekit.surgery.edits import Edit
from prunekit.surgery.equivalence import Gap, inputs_of, run_on
from prunekit.surgery.residual import EmptyBlock
from prunekit.surgery.skip import Shift


@dataclass(frozen=True)
class Row:
    """Where the constants that a layer would have read went; `why` they are not exact there."""

    layer: str
    into: str
    exact: bool
    why: str = ""

    def __str__(self) -> str:
        return f"{self.layer} -> {self.into}: {'exact' if self.exact else self.why}"


@dataclass(frozen=True)
class Change:
    """By how much absorption moves the outputs, relative to the largest, in eval mode.

    `moved` is the change of the narrow network itself; `before` and `after` are its distances to
    the dense network whose removed channels still emit their constants.
    """

    moved: float
    before: float
    after: float


@dataclass(frozen=True)
class Absorbed:
    """What was absorbed: `edits` belong into the model file behind those that made it narrow.

    `maps` says whether a bias for every position was allowed.
    """

    edits: tuple[Edit, ...]
    rows: tuple[Row, ...]
    change: Change
    maps: bool = False

    @property
    def exact(self) -> bool:
        """Whether the narrow network equals the dense one with emitting channels."""
        return all(row.exact for row in self.rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """A sentence for every layer where it is not exact."""
        return tuple(
            f"constants absorbed at {row.layer} ({row.into}) are not exact: {row.why}"
            for row in self.rows
            if not row.exact
        )

    def __str__(self) -> str:
        if not self.rows:
            return "nothing to absorb: removed channels emit nothing"
        exact = sum(row.exact for row in self.rows)
        change = self.change
        return (
            f"constants absorbed at {len(self.rows)} layers, exactly at {exact}; outputs moved by "
            f"{change.moved:.2%}, their distance to the network that still emits them from "
            f"{change.before:.2%} to {change.after:.2%}"
        )


@dataclass(frozen=True, eq=False)
class Constant:
    """What stands for something heard: a number per channel, or `mapped` one per position too.

    `why` says why it is not exact.
    """

    value: Tensor
    mapped: bool
    why: tuple[str, ...]

    @classmethod
    def of(cls, calls: Sequence[Heard], maps: bool) -> Constant | None:
        """The mean over calls and, unless they may differ, over positions; None for zeros."""
        if not any(bool(call.offset.any()) for call in calls):
            return None
        parts = [_constant_part(call.by_channel) for call in calls]
        share, why = max(part[1] for part in parts), _varying(calls)
        if maps and share > 0 and len({call.offset.shape for call in calls}) == 1:
            return cls(torch.stack([call.offset for call in calls]).mean(0), True, why)
        if share:
            why = (
                f"{share:.0%} of positions (borders) get another constant, the mean is taken",
                *why,
            )
        return cls(torch.stack([part[0] for part in parts]).mean(0), False, why)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What one layer is given: `value` per channel, or per channel and position if `mapped`.

    `path` is where it is added, or subtracted if that is a running mean.
    """

    layer: str
    value: Tensor
    mapped: bool
    into: str
    path: str
    why: str

    @property
    def row(self) -> Row:
        return Row(self.layer, self.into, not self.why, self.why)


def absorb(
    model: nn.Module,
    narrow: nn.Module,
    graph: ChannelGraph,
    drop: Tensor,
    batch: Example,
    maps: bool = False,
    shifts: Mapping[str, Constant] | None = None,
) -> Absorbed:
    """Give `narrow` the constants that the channels in `drop` would still emit in `model`.

    `narrow` is changed in place. A constant goes into the bias of the layer that would read it,
    else the running mean of the batch norm that alone follows, else a new bias. That is exact where
    the emission is the same at all positions and for all examples of the batch. At zero padding it
    is not: there the mean over positions is taken, or with `maps` one bias for every position,
    which binds the network to this size of input. `shifts` are constants for blocks that were
    removed whole (`branch_constants`), of which `narrow` has the places. Raises SurgeryError.
    """
    given = inputs_of(batch)
    emission = listen(model, graph, drop, given)
    before = _outputs(narrow, given)
    planned = [
        _plan(name, calls, emission, narrow, maps and name not in graph.functional)
        for name, calls in emission.heard.items()
        if _has(narrow, name)
    ]
    planned += [_shift(narrow, block, shift) for block, shift in (shifts or {}).items()]
    plans = [plan for plan in planned if plan is not None]
    edits = _edits(plans)
    for edit in edits:
        edit.apply(narrow)
    _fill(narrow, plans)
    after = _outputs(narrow, given)
    moved = Gap.between(after, before).relative
    distances = [Gap.between(outputs, emission.outputs).relative for outputs in (before, after)]
    return Absorbed(edits, tuple(plan.row for plan in plans), Change(moved, *distances), maps)


def branch_constants(
    model: nn.Module,
    graph: ChannelGraph,
    drop: Tensor,
    blocks: Sequence[EmptyBlock],
    batch: Example,
    maps: bool = False,
) -> dict[str, Constant]:
    """What the branches of blocks that are removed whole still put out, shaped to be added.

    By the name of the block, over the channels that stay; blocks that put out zeros are left out.
    """
    makers = {block.end: block.maker for block in blocks}
    heard = hear_ends(model, graph, drop, makers, inputs_of(batch)) if makers else {}
    found = {block.block: _broadcast(heard[block.end], maps) for block in blocks}
    return {name: constant for name, constant in found.items() if constant is not None}


def _broadcast(heard: Heard, maps: bool) -> Constant | None:
    found = Constant.of([heard], maps)
    if found is None or found.mapped:
        return found
    shape = [-1 if dim == heard.dim else 1 for dim in range(heard.offset.ndim)]
    return replace(found, value=found.value.reshape(shape))


def _plan(
    name: str, calls: list[Heard], emission: Emission, narrow: nn.Module, maps: bool
) -> _Plan | None:
    if not calls:
        return _Plan(name, torch.zeros(0), False, "nothing", "", "its input was never seen")
    found = Constant.of(calls, maps)
    if found is None:
        return None
    into, path = _place(name, emission, narrow)
    if found.mapped:
        into, path = "bias map", f"{name}.1.bias_map"
    why = found.why
    if into == "nothing":
        why = ("its bias is computed, or used elsewhere too, or a function gets none", *why)
    return _Plan(name, found.value, found.mapped, into, path, "; ".join(why))


def _shift(narrow: nn.Module, block: str, found: Constant) -> _Plan:
    path = f"{block}.shift"
    leaf = "bias" if isinstance(narrow.get_submodule(path), Shift) else "bias_map"
    return _Plan(block, found.value, False, "shift", f"{path}.{leaf}", "; ".join(found.why))


def _has(narrow: nn.Module, name: str) -> bool:
    """Whether a layer, or a parameter used as one, is still there."""
    try:
        return layer_named(narrow, name) is not None
    except SurgeryError:
        return False


def _varying(calls: Sequence[Heard]) -> tuple[str, ...]:
    """Why no constant can stand for what was heard, whatever the position."""
    found = []
    varies = max(call.varies for call in calls)
    if varies:
        found.append(f"it varies between examples by {varies:.1%}, the mean is taken")
    first = calls[0].by_channel
    limit = slack(first.dtype) * max(float(call.offset.abs().max()) for call in calls)
    for call in calls[1:]:
        other = call.by_channel
        if other.shape != first.shape or float((other - first).abs().max()) > limit:
            found.append(f"it differs between {len(calls)} calls, the mean is taken")
            break
    return tuple(found)


def _constant_part(offset: Tensor) -> tuple[Tensor, float]:
    """The mean of a matrix (channels, positions) over positions, and the share of odd positions.

    The mean rather than the value of the interior: it is what a batch norm behind would find, and
    brought 8 of 10 networks that were tried nearer to their dense ones.
    """
    limit = slack(offset.dtype) * float(offset.abs().max())
    usual = offset.median(1, keepdim=True).values
    odd = ((offset - usual).abs() > limit).any(0)
    return offset.mean(1), float(odd.float().mean())


def _place(name: str, emission: Emission, narrow: nn.Module) -> tuple[str, str]:
    """What the constants of a layer go into, in words, and the path of it."""
    norm = emission.follower.get(name)
    path = emission.given.get(name, f"{name}.bias")
    owner, _, leaf = path.rpartition(".")
    found = _parameters(narrow, owner)
    bias = found.get(leaf)
    if bias is not None and _owners(narrow, bias) == 1:
        return "bias", path
    if norm is not None:
        return f"running mean of {norm}", f"{norm}.running_mean"
    return ("new bias", path) if leaf in found and bias is None else ("nothing", "")


def _parameters(model: nn.Module, name: str) -> dict[str, nn.Parameter | None]:
    try:
        return model.get_submodule(name)._parameters
    except AttributeError:
        return {}  # a layer that is only a parameter


def _owners(model: nn.Module, parameter: nn.Parameter) -> int:
    return sum(p is parameter for m in model.modules() for p in m._parameters.values())


def _outputs(narrow: nn.Module, given: Arguments) -> object:
    with evaluating(narrow):
        return run_on(narrow, given, "the narrow network")


def _edits(plans: list[_Plan]) -> tuple[Edit, ...]:
    new = tuple(plan.layer for plan in plans if plan.into == "new bias")
    shapes = {plan.layer: tuple(plan.value.shape) for plan in plans if plan.mapped}
    return (*([NewBiases(new)] if new else []), *([BiasMaps(shapes)] if shapes else []))


@torch.no_grad()
def _fill(narrow: nn.Module, plans: list[_Plan]) -> None:
    for plan in plans:
        if plan.path:
            owner, _, leaf = plan.path.rpartition(".")
            place = getattr(narrow.get_submodule(owner), leaf)
            place.add_(-plan.value if leaf == "running_mean" else plan.value)
