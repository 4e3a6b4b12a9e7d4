"""Numerical proof of a cut: the narrow network must equal the dense one with silenced channels."""

from __future__ import annotations

import dataclasses
import math
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
from prunekit.graph.table import function_operation
from prunekit.modes import duplicate, evaluating, muted, seeded, unchanged, uncompiled

_DOUBLE_TOLERANCE = 1e-9
_FLOAT_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Gap:
    """The largest difference of outputs, and the same relative to the largest output.

    `empty` says that the outputs had no entries, as where a detector finds nothing.
    """

    absolute: float
    relative: float
    empty: bool = False

    @classmethod
    def between(cls, output: Any, reference: Any) -> Gap:
        """Compare what two networks return, every tensor on the scale of its reference.

        Where a reference is zero throughout, the absolute difference counts as the relative one.
        Raises SurgeryError when the two differ in structure, or one of them is not finite.
        """
        tensors, references = float_tensors(output), float_tensors(reference)
        shapes = [tuple(x.shape) for x in tensors], [tuple(x.shape) for x in references]
        if shapes[0] != shapes[1] or not references:
            raise SurgeryError(
                f"the outputs to compare are {_shapes(tensors)} and {_shapes(references)}; "
                "they must be the same number of floating-point tensors, of the same shapes"
            )
        gaps = [_gap(x, y) for x, y in zip(tensors, references, strict=True)]
        empty = not any(x.numel() for x in references)
        return cls(max(g.absolute for g in gaps), max(g.relative for g in gaps), empty)


@dataclass(frozen=True)
class Agreement:
    """The distance of a narrow network from the silenced one, in eval mode and in train mode.

    `train` is None if train mode was not compared, for the reason in `note`.
    """

    eval: Gap
    train: Gap | None
    precision: str = "float32"
    note: str = ""

    @property
    def worst(self) -> float:
        """The largest relative difference in any mode."""
        return max(gap.relative for gap in (self.eval, self.train) if gap is not None)

    def with_note(self, note: str) -> Agreement:
        """Return the same agreement with `note` in front of its own one."""
        return dataclasses.replace(self, note="; ".join(filter(None, (note, self.note))))

    def __str__(self) -> str:
        if self.eval.empty:
            return (
                "narrow and silenced network put out nothing on this batch, so nothing was "
                "compared; give an example in which the network finds something"
            )
        modes = [("eval", self.eval), ("train", self.train)]
        gaps = ", ".join(
            f"{gap.relative:.1e} in {mode} mode (absolute {gap.absolute:.1e})"
            for mode, gap in modes
            if gap is not None
        )
        note = f"; {self.note}" if self.note else ""
        return f"narrow = silenced network up to {gaps}, {self.precision}{note}"


def compare(
    model: nn.Module,
    narrow: nn.Module,
    graph: ChannelGraph,
    removed: Tensor,
    batch: Example,
    tolerance: float | None = None,
    silent: Sequence[str] = (),
) -> Agreement:
    """Check that `narrow` equals the dense `model` with the `removed` channels silenced.

    The outputs are compared in eval mode and then in train mode without dropout; both networks are
    left as they were, batch-norm statistics and random states included. `tolerance` bounds the
    relative difference; by default it is 1e-4, and 1e-9 for doubles. If networks of lower precision
    miss it, copies in double precision decide, so that rounding is not taken for an error; networks
    that only run in less than single precision get a tolerance for their rounding. An input of
    equal entries is replaced by noise, and a single example becomes two in train mode. `silent` are
    modules at the end of branches that were removed whole; in the dense network they put out zeros.
    Raises SurgeryError where the networks differ, or the dense one cannot run in eval mode.
    """
    case = _Comparison(model, narrow, graph, removed, check_inputs(batch), tuple(silent))
    with unchanged(model, narrow):
        return _checked_agreement(case, tolerance)


def _checked_agreement(case: _Comparison, tolerance: float | None) -> Agreement:
    model, graph, removed = case.model, case.graph, case.removed
    dtype = _precision(model)
    default = _DOUBLE_TOLERANCE if dtype == torch.float64 else _FLOAT_TOLERANCE
    limit = default if tolerance is None else tolerance
    norms = [name for name in graph.inexact if bool(removed.cpu()[graph.ins[name]].any())]
    if norms:
        note = f"not exact, because norms over channels lost some: {listed(norms, 1)}"
        return case.agreement(float("inf")).with_note(note)
    agreement = case.agreement(limit)
    if agreement.worst > limit and dtype != torch.float64:
        wide = case.in_double()
        if wide is not None:
            agreement = wide.agreement(limit)
        elif tolerance is None and rounding(dtype) > limit:
            limit = rounding(dtype)
            agreement = case.agreement(limit)
    for mode, gap in (("eval", agreement.eval), ("train", agreement.train)):
        if gap is not None and gap.relative > limit:
            raise SurgeryError(
                f"the narrow network differs from the silenced one by {gap.relative:.2e} of the "
                f"largest output in {mode} mode (at most {limit:g}, {agreement.precision}); please "
                "report the network"
            )
    return agreement.with_note(f"with zeros from {listed(case.silent)}" if case.silent else "")


def randomise_constants(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return a copy in which parameters that start constant have random entries.

    Batch norms get random statistics; constant parameters (scales, shifts, biases, layer scale,
    zero heads) get random entries, scales around 1, and linear maps according to their fan-in. In a
    fresh network, branches that put out zeros would hide mistakes of surgery.
    """
    twin = duplicate(model)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in twin.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is not None and tensor.is_floating_point():
                    _randomise(name, tensor)
    return twin


def check_inputs(batch: Example) -> Arguments:
    """Return the arguments to check a network on; a placeholder of equal entries becomes noise."""
    return Arguments.of(batch).map_tensors(_noise_for_placeholder)


def compute_outputs(model: nn.Module, inputs: Arguments, who: str) -> Any:
    """Return the outputs on a copy of the inputs, without gradients and with one fixed seed.

    The network is left as it was. Raises SurgeryError, with the first line of the error and the
    network called `who`, where the forward fails.
    """
    with unchanged(model), seeded(), uncompiled(), torch.no_grad():
        try:
            return inputs.map_tensors(Tensor.clone).call(model)  # some forwards write into them
        except Exception as error:
            first = next(iter(str(error).splitlines()), "").rstrip(". ") or type(error).__name__
            raise SurgeryError(f"{who} fails on the batch: {first}") from error


def float_tensors(output: Any) -> list[Tensor]:
    """Return all floating-point tensors in nests, dataclasses and other objects, in order."""
    return [tensor for tensor in tensors_within(output) if tensor.is_floating_point()]


def rounding(dtype: torch.dtype) -> float:
    """Return the relative difference that rounding may make: 1e-5 in float32, 1e-11 in float64."""
    return math.pow(torch.finfo(dtype).eps, 0.7)


def train_mode_outputs(model: nn.Module, inputs: Arguments) -> tuple[Arguments | None, Any, str]:
    """Return inputs on which the network runs in train mode, its outputs, and "".

    If it fails on all of them, return None twice and the reason. Dropout is off, and the network is
    left as it was.
    """
    reason, doubled = "", with_two_examples(inputs)
    for attempt in (inputs,) if doubled is inputs else (doubled, inputs):
        try:
            with train_mode_without_dropout(model):
                outputs = compute_outputs(model, attempt, "the dense network")
        except SurgeryError as error:
            reason = reason or str(error)
            continue
        if all(bool(x.isfinite().all()) for x in float_tensors(outputs)):
            return attempt, outputs, ""
        reason = reason or "the dense network itself puts out nan or inf"
    return None, None, reason


@contextmanager
def train_mode_without_dropout(model: nn.Module) -> Iterator[None]:
    """Put a network in train mode without dropout; restore the modes of its modules afterwards."""
    with evaluating(model), _NoDropout():
        model.train()
        for module in model.modules():
            if _is_dropout(module):
                module.eval()
        yield


def with_two_examples(inputs: Arguments) -> Arguments:
    """Append a perturbed copy where there is one example; the noise has the input's own size."""
    if inputs.tensors[0].shape[:1] != (1,):
        return inputs
    return inputs.map_tensors(lambda x: torch.cat([x, _perturbed(x)]) if x.shape[:1] == (1,) else x)


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Two networks, the units that `narrow` lacks, and the inputs to compare them on."""

    model: nn.Module
    narrow: nn.Module
    graph: ChannelGraph
    removed: Tensor
    inputs: Arguments
    silent: tuple[str, ...] = ()

    def agreement(self, limit: float) -> Agreement:
        """Compare in eval mode and, where that is within the limit, in train mode."""
        precision = str(_precision(self.model)).removeprefix("torch.")
        with evaluating(self.model, self.narrow), self._silenced():
            reference = compute_outputs(self.model, self.inputs, "the dense network")
            output = compute_outputs(self.narrow, self.inputs, "the narrow network")
        gap = Gap.between(output, reference)
        if gap.relative > limit:
            return Agreement(gap, None, precision, "train mode not compared, eval mode differs")
        with self._silenced():
            inputs, reference, reason = train_mode_outputs(self.model, self.inputs)
        if inputs is None:
            return Agreement(gap, None, precision, f"train mode not compared: {reason}")
        with train_mode_without_dropout(self.narrow):
            output = compute_outputs(self.narrow, inputs, "the narrow network")
        return Agreement(gap, Gap.between(output, reference), precision)

    def in_double(self) -> _Comparison | None:
        """Return the same comparison in double precision; None where the networks cannot run so."""
        try:
            model, narrow = (duplicate(net).double() for net in (self.model, self.narrow))
            inputs = self.inputs.map_tensors(lambda x: x.double() if x.is_floating_point() else x)
            with evaluating(model):
                compute_outputs(model, inputs, "the dense network")
        except Exception:  # forwards that insist on a precision, devices without doubles
            return None
        return dataclasses.replace(self, model=model, narrow=narrow, inputs=inputs)

    @contextmanager
    def _silenced(self) -> Iterator[None]:
        with self.graph.silencer(self.model, self.removed), muted(self.model, self.silent):
            yield


def _gap(output: Tensor, reference: Tensor) -> Gap:
    if not bool(reference.isfinite().all()):
        raise SurgeryError(
            "the dense network itself puts out nan or inf on this batch, so nothing can be "
            "compared; check its weights and the batch"
        )
    if not bool(output.isfinite().all()):
        count = int((~output.isfinite()).sum())
        raise SurgeryError(
            f"the narrow network puts out nan or inf in {count} of {output.numel()} places where "
            "the dense one is finite; please report the network"
        )
    if not reference.numel():
        return Gap(0.0, 0.0)
    absolute = float((output.double() - reference.double()).abs().max())
    scale = float(reference.double().abs().max())
    return Gap(absolute, absolute / scale if scale else absolute)


def _shapes(tensors: list[Tensor]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in tensors) or "no floating-point tensor"


def _precision(model: nn.Module) -> torch.dtype:
    """Return the dtype of its least precise parameters."""
    types = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return max(types, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


def _noise(like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape, generator=generator).to(like)


def _noise_for_placeholder(x: Tensor) -> Tensor:
    if x.is_floating_point() and x.ndim > 2 and x.numel() > 1 and bool((x == x.flatten()[0]).all()):
        return _noise(x)
    return x


def _perturbed(x: Tensor) -> Tensor:
    if not x.is_floating_point():
        return x
    return x + (x.std() if x.numel() > 1 else 1.0) * _noise(x)


def _is_dropout(module: nn.Module) -> bool:
    """Return whether a module only drops at random (DropPath, StochasticDepth, ...)."""
    if isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU):
        return True
    named = re.search("drop|stochasticdepth", type(module).__name__, re.IGNORECASE)
    return bool(named) and not [*module.children()] and not [*module.parameters()]


class _NoDropout(TorchFunctionMode):
    """Let dropout functions return their input, and call others with a dropout rate of zero."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs, entry = dict(kwargs or {}), function_operation(func)
        if entry is not None and entry.is_dropout:
            return args[0] if args else kwargs["input"]
        if entry is not None and entry.dropout_rate_position is not None:
            position = entry.dropout_rate_position
            if len(args) > position:
                args = (*args[:position], 0.0, *args[position + 1 :])
            else:
                kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def _randomise(name: str, tensor: Tensor) -> None:
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
