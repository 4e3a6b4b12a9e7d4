"""The proof by numbers after a cut: the narrow network against the silenced one."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from prunekit.errors import SurgeryError, listed
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example
from prunekit.graph.recording.nests import tensors_within
from prunekit.graph.table import of_function
from prunekit.modes import duplicate, evaluating, muted, seeded, unchanged, uncompiled

_EXACT = 1e-9  # what doubles must agree to
_CLOSE = 1e-4  # and floats


@dataclass(frozen=True)
class Gap:
    """The largest difference of outputs, and the same relative to the largest output.

    `empty` says that the outputs had no entries, as where a detector finds nothing.
    """

    absolute: float
    relative: float
    empty: bool = False

    @classmethod
    def between(cls, found: Any, reference: Any) -> Gap:
        """Compare what two networks return, every tensor on the scale of its reference.

        Where a reference is zero throughout, the difference stands for itself. Raises
        SurgeryError when the two differ in structure, or one of them is not finite.
        """
        ours, theirs = floats_in(found), floats_in(reference)
        if [tuple(x.shape) for x in ours] != [tuple(x.shape) for x in theirs] or not theirs:
            raise SurgeryError(
                f"the outputs to compare are {_shapes(ours)} and {_shapes(theirs)}; "
                "they must be the same number of floating-point tensors, of the same shapes"
            )
        gaps = [_gap(x, y) for x, y in zip(ours, theirs, strict=True)]
        empty = not any(x.numel() for x in theirs)
        return cls(max(g.absolute for g in gaps), max(g.relative for g in gaps), empty)


@dataclass(frozen=True)
class Agreement:
    """How near a narrow network is to the silenced one; `train` is None where `note` says why."""

    eval: Gap
    train: Gap | None
    precision: str = "float32"
    note: str = ""

    @property
    def worst(self) -> float:
        """The largest relative difference in any mode."""
        return max(gap.relative for gap in (self.eval, self.train) if gap is not None)

    def __str__(self) -> str:
        if self.eval.empty:
            return (
                "narrow and silenced network put out nothing on this batch, so nothing was "
                "compared; give an example in which the network finds something"
            )
        modes = [("eval", self.eval), ("train", self.train)]
        told = ", ".join(
            f"{gap.relative:.1e} in {mode} mode (absolute {gap.absolute:.1e})"
            for mode, gap in modes
            if gap is not None
        )
        note = f"; {self.note}" if self.note else ""
        return f"narrow = silenced network up to {told}, {self.precision}{note}"


def compare(
    model: nn.Module,
    narrow: nn.Module,
    graph: ChannelGraph,
    drop: Tensor,
    batch: Example,
    tolerance: float | None = None,
    silent: Sequence[str] = (),
) -> Agreement:
    """Check that cutting the channels in `drop` equals silencing them in the dense `model`.

    In eval mode, then in train mode without dropout; both networks are left as they were, batch
    norm statistics and random states included. `tolerance` bounds the relative difference, by
    default 1e-4, and 1e-9 for doubles. Where that is missed in less than double precision, copies
    in double precision decide, so that rounding is not taken for an error; networks that insist on
    less than single precision are given the rounding of that. An input without contents, all
    entries equal, is replaced by noise; a single example becomes two in train mode.
    `silent` are modules that end the branches of blocks removed whole: in the dense network they
    put out zeros.
    Raises SurgeryError where the networks differ, or the dense one cannot run in eval mode.
    """
    case = _Case(model, narrow, graph, drop, inputs_of(batch), tuple(silent))
    with unchanged(model, narrow):
        return _compared(case, tolerance)


def _compared(case: _Case, tolerance: float | None) -> Agreement:
    model, graph, drop = case.model, case.graph, case.drop
    dtype = _precision(model)
    limit = (_EXACT if dtype == torch.float64 else _CLOSE) if tolerance is None else tolerance
    norms = [name for name in graph.inexact if bool(drop.cpu()[graph.ins[name]].any())]
    if norms:
        return _by_request(case.agreement(float("inf")), norms)
    found = case.agreement(limit)
    if found.worst > limit and dtype != torch.float64:
        wide = case.in_double()
        if wide is not None:
            found = wide.agreement(limit)
        elif tolerance is None and _rounding(model) > limit:
            limit = _rounding(model)
            found = case.agreement(limit)
    for mode, gap in (("eval", found.eval), ("train", found.train)):
        if gap is not None and gap.relative > limit:
            raise SurgeryError(
                f"the narrow network differs from the silenced one by {gap.relative:.2e} of the "
                f"largest output in {mode} mode (at most {limit:g}, {found.precision}); please "
                "report the network"
            )
    note = f"with zeros from {listed(case.silent)}" if case.silent else ""
    return dataclasses.replace(found, note="; ".join(filter(None, (note, found.note))))


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """A copy in which no part is idle: what training would have to wake up is random instead.

    Batch norms get random statistics; parameters that are constant (scales, shifts, biases, layer
    scale, zero heads) get random entries, scales around 1, and linear maps by their fan-in. A
    fresh network hides mistakes of surgery in branches that put out nothing.
    """
    twin = duplicate(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in twin.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and tensor.is_floating_point():
                    _wake(name, tensor)
    return twin


def inputs_of(batch: Example) -> Arguments:
    """The arguments of a forward; an input of equal entries, a placeholder, becomes noise."""
    return Arguments.of(batch).changed(_lively)


def run_on(model: nn.Module, given: Arguments, who: str) -> Any:
    """The outputs, without gradients, on a copy of the inputs; what is random comes from one seed.

    The network is afterwards what it was before. Raises SurgeryError, with the first line of the
    error, where the forward fails.
    """
    with unchanged(model), seeded(), uncompiled(), torch.no_grad():
        try:
            return given.changed(Tensor.clone).call(model)  # some forwards write into them
        except Exception as error:
            first = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
            raise SurgeryError(f"{who} fails on the batch: {first}") from error


def floats_in(output: Any) -> list[Tensor]:
    """All floating-point tensors in nests, dataclasses and objects that hold tensors, in order."""
    return [tensor for tensor in tensors_within(output) if tensor.is_floating_point()]


def trained(model: nn.Module, given: Arguments) -> tuple[Arguments | None, Any, str]:
    """Inputs on which the network runs in train mode, and its outputs; or None twice and why not.

    Dropout is off, and the network is left as it was.
    """
    trouble, doubled = "", _doubled(given)
    for inputs in (given,) if doubled is given else (doubled, given):
        try:
            with rehearsing(model):
                outputs = run_on(model, inputs, "the dense network")
        except SurgeryError as error:
            trouble = trouble or str(error)
            continue
        if all(bool(x.isfinite().all()) for x in floats_in(outputs)):
            return inputs, outputs, ""
        trouble = trouble or "the dense network itself puts out nan or inf"
    return None, None, trouble


@contextmanager
def rehearsing(model: nn.Module) -> Iterator[None]:
    """Inside it, a network is in train mode without dropout; afterwards modes are as before."""
    with evaluating(model), _NoDropout():
        model.train()
        for module in model.modules():
            if _drops(module):
                module.eval()
        yield


def _by_request(found: Agreement, norms: list[str]) -> Agreement:
    note = f"not exact, because norms over channels lost some: {listed(norms, 1)}"
    return dataclasses.replace(found, note="; ".join(filter(None, (note, found.note))))


@dataclass(frozen=True, eq=False)
class _Case:
    """What is compared: two networks, what one of them lost, and on which inputs."""

    model: nn.Module
    narrow: nn.Module
    graph: ChannelGraph
    drop: Tensor
    given: Arguments
    silent: tuple[str, ...] = ()

    def agreement(self, limit: float) -> Agreement:
        """The comparison in eval mode and, where that is within the limit, in train mode."""
        name = str(_precision(self.model)).removeprefix("torch.")
        with evaluating(self.model, self.narrow), self._silenced():
            reference = run_on(self.model, self.given, "the dense network")
            still = Gap.between(run_on(self.narrow, self.given, "the narrow network"), reference)
        if still.relative > limit:
            return Agreement(still, None, name, "train mode not compared, eval mode differs")
        with self._silenced():
            inputs, reference, trouble = trained(self.model, self.given)
        if inputs is None:
            return Agreement(still, None, name, f"train mode not compared: {trouble}")
        with rehearsing(self.narrow):
            found = run_on(self.narrow, inputs, "the narrow network")
        return Agreement(still, Gap.between(found, reference), name)

    def in_double(self) -> _Case | None:
        """The same case in double precision; None where the networks cannot run so."""
        try:
            pair = [duplicate(net).double() for net in (self.model, self.narrow)]
            wide = self.given.changed(lambda x: x.double() if x.is_floating_point() else x)
            with evaluating(pair[0]):
                run_on(pair[0], wide, "the dense network")
        except Exception:  # forwards that insist on a precision, devices without doubles
            return None
        return _Case(*pair, self.graph, self.drop, wide, self.silent)

    @contextmanager
    def _silenced(self) -> Iterator[None]:
        with self.graph.silencer(self.model, self.drop), muted(self.model, self.silent):
            yield


def _gap(found: Tensor, reference: Tensor) -> Gap:
    if not bool(reference.isfinite().all()):
        raise SurgeryError(
            "the dense network itself puts out nan or inf on this batch, so nothing can be "
            "compared; check its weights and the batch"
        )
    if not bool(found.isfinite().all()):
        count = int((~found.isfinite()).sum())
        raise SurgeryError(
            f"the narrow network puts out nan or inf in {count} of {found.numel()} places where "
            "the dense one is finite; please report the network"
        )
    if not reference.numel():
        return Gap(0.0, 0.0)
    absolute = float((found.double() - reference.double()).abs().max())
    scale = float(reference.double().abs().max())
    return Gap(absolute, absolute / scale if scale else absolute)


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors) or "no floating-point tensor"


def _precision(model: nn.Module) -> torch.dtype:
    """The type of its least precise parameters."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def _rounding(model: nn.Module) -> float:
    """The relative difference that rounding may make in the least precise parameters."""
    return torch.finfo(_precision(model)).eps ** 0.7


def _noise(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like)


def _lively(x: Tensor) -> Tensor:
    """The tensor, or noise where it looks like a mere placeholder."""
    if x.is_floating_point() and x.ndim > 2 and x.numel() > 1 and bool((x == x.flatten()[0]).all()):
        return _noise(x)
    return x


def _doubled(given: Arguments) -> Arguments:
    """Two examples where there is one; the second has noise of the input's own size on it."""
    if given.tensors[0].shape[:1] != (1,):
        return given
    return given.changed(lambda x: torch.cat([x, _neighbour(x)]) if x.shape[:1] == (1,) else x)


def _neighbour(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x + (x.std() if x.numel() > 1 else 1.0) * _noise(x)


def _drops(module: nn.Module) -> bool:
    """Whether a module does nothing but drop at random (DropPath, StochasticDepth, ...)."""
    if isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU):
        return True
    named = re.search("drop|stochasticdepth", type(module).__name__, re.IGNORECASE)
    return bool(named) and not [*module.children()] and not [*module.parameters()]


class _NoDropout(TorchFunctionMode):
    """Functions that drop at random return their input, or are called with rate zero."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, entry = dict(kwargs or {}), of_function(func)
        if entry is not None and entry.drops:
            return args[0] if args else kwargs["input"]
        if entry is not None and entry.rate is not None:
            place = entry.rate
            if len(args) > place:
                args = (*args[:place], 0.0, *args[place + 1 :])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def _wake(name: str, tensor: Tensor) -> None:
    """Give a constant tensor random entries that suit its name and shape."""
    if name == "running_var":
        tensor.uniform_(0.5, 1.5)
    elif name == "running_mean":
        tensor.normal_(0.0, 0.1)
    elif not isinstance(tensor, nn.Parameter) or bool((tensor != tensor.flatten()[:1]).any()):
        return
    elif name == "weight" and tensor.ndim > 1:
        tensor.normal_(0.0, (tensor[0].numel() or 1) ** -0.5)
    elif "bias" in name or "token" in name or "embedding" in name:
        tensor.normal_(0.0, 0.1)
    else:
        tensor.uniform_(0.5, 1.5)
