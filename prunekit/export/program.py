"""A network as torch.export sees it, beside the eager network it must agree with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.errors import ExportError
from prunekit.export.diagnostics import unconvertible, untraceable
from prunekit.export.onnx_session import require_onnx
from prunekit.export.silence import silent

OPSET = 18
_TRACED, _CHECKED = 2, (1, 3)  # traced with one batch size, checked with others

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Traced:
    """A copy of a network in evaluation mode on the CPU, and its program for any batch size."""

    model: nn.Module
    program: torch.export.ExportedProgram
    example: Inputs

    @classmethod
    def of(cls, model: nn.Module, example: Tensor | Sequence[Tensor]) -> Traced:
        """Trace a network; ExportError names the line of its forward that cannot be traced.

        `example` gives shapes and types, the batch dimension first; its batch size does not count.
        """
        inputs = (example,) if isinstance(example, Tensor) else tuple(example)
        network = copy.deepcopy(model).cpu().eval()
        batch = torch.export.Dim("batch")
        try:
            with silent(), torch.no_grad():
                program = torch.export.export(
                    network,
                    _batches(inputs, _TRACED),
                    dynamic_shapes=tuple({0: batch} for _ in inputs),
                    strict=False,
                )
        except Exception as error:  # whatever forward or torch.export raises
            raise untraceable(error) from error
        return cls(network, program, inputs)

    def onnx(self, opset: int = OPSET) -> Any:
        """The network as a `torch.onnx.ONNXProgram`; ExportError names an operator ONNX lacks."""
        require_onnx()
        count = len(self.program.graph_signature.user_outputs)
        names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
        try:
            with silent():
                return torch.onnx.export(
                    self.program,
                    (),
                    dynamo=True,
                    verbose=False,
                    opset_version=opset,
                    output_names=names,
                )
        except Exception as error:  # its classes are private
            with silent():
                raise unconvertible(error, self.program) from error

    @torch.inference_mode()
    def difference(self, run: Callable[..., Any]) -> float:
        """The largest difference between what `run` and the network give, for batches of 1 and 3.

        Relative to the largest output of each; ExportError where shapes differ or one fails.
        """
        return max(
            _relative(found, expected)
            for inputs in (_batches(self.example, size) for size in _CHECKED)
            for found, expected in _pairs(_outputs(run, inputs), _outputs(self.model, inputs))
        )


def _batches(example: Inputs, size: int) -> Inputs:
    """Random inputs of the example's shapes; of whole numbers, the example again and again."""
    source = torch.Generator().manual_seed(size)
    return tuple(
        torch.randn(size, *x.shape[1:], generator=source, dtype=x.dtype)
        if x.is_floating_point()
        else x[:1].cpu().expand(size, *x.shape[1:]).clone()
        for x in example
    )


def _outputs(run: Callable[..., Any], inputs: Inputs) -> Any:
    try:
        return run(*inputs)
    except ExportError:
        raise
    except Exception as error:  # whatever forward raises, or the guards of torch.export
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ExportError(
            f"the network does not run on a batch of {len(inputs[0])}: {reason}"
        ) from error


def _pairs(found: Any, expected: Any) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(tree_leaves(found), tree_leaves(expected), strict=True))
    for one, other in pairs:
        if one.shape != other.shape:
            raise ExportError(
                f"the exported network gives outputs of shape {tuple(one.shape)} where the network "
                f"gives {tuple(other.shape)}; see that forward uses the first dimension for the "
                "batch only"
            )
    return pairs


def _relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
