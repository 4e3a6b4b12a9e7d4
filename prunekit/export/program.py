"""Trace networks with torch.export, compare outputs, and explain what an exporter refuses."""

from __future__ import annotations

import copy
import linecache
import re
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from prunekit.errors import ExportError
from prunekit.export.onnxruntime import require_onnx, silent

OPSET = 18
_TRACED_BATCH, _CHECKED_BATCHES = 2, (1, 3)  # other sizes show that the batch size is free

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class TracedProgram:
    """A copy of a network in evaluation mode on the CPU, and its program for any batch size."""

    model: nn.Module
    program: torch.export.ExportedProgram
    example: Inputs

    @classmethod
    def of(cls, model: nn.Module, example: Tensor | Sequence[Tensor]) -> TracedProgram:
        """Trace a network; raise ExportError with the line of its forward that cannot be traced.

        `example` gives shapes and types, batch dimension first; its batch size is ignored.
        """
        inputs = (example,) if isinstance(example, Tensor) else tuple(example)
        network = copy.deepcopy(model).cpu().eval()
        batch = torch.export.Dim("batch")
        try:
            with silent(), torch.no_grad():
                program = torch.export.export(
                    network,
                    _batches(inputs, _TRACED_BATCH),
                    dynamic_shapes=tuple({0: batch} for _ in inputs),
                    strict=False,
                )
        except Exception as error:  # whatever forward or torch.export raises
            raise untraceable(error) from error
        return cls(network, program, inputs)

    def onnx(self, opset: int = OPSET) -> torch.onnx.ONNXProgram:
        """Convert the program to ONNX; raise ExportError with an operator that ONNX lacks."""
        require_onnx()
        count = len(self.program.graph_signature.user_outputs)
        names = ["output"] if count == 1 else [f"output_{index}" for index in range(count)]
        try:
            with silent():
                program = torch.onnx.export(
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
        assert program is not None  # with dynamo=True, it returns a program
        return program

    @torch.inference_mode()
    def difference(self, run: Callable[..., Any]) -> float:
        """Return the largest difference between `run` and the network, for batches of 1 and 3.

        It is relative to the largest entry of each output. Raises ExportError where shapes differ
        or one of the two fails.
        """
        return max(
            _relative(output, expected)
            for inputs in (_batches(self.example, size) for size in _CHECKED_BATCHES)
            for output, expected in _pairs(_outputs(run, inputs), _outputs(self.model, inputs))
        )


def _batches(example: Inputs, size: int) -> Inputs:
    """Return random inputs of the example's shapes; integers repeat the first of the example."""
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


def _pairs(outputs: Any, expected: Any) -> list[tuple[Tensor, Tensor]]:
    pairs = list(zip(tree_leaves(outputs), tree_leaves(expected), strict=True))
    for x, y in pairs:
        if x.shape != y.shape:
            raise ExportError(
                f"the exported network gives outputs of shape {tuple(x.shape)} where the network "
                f"gives {tuple(y.shape)}; see that forward uses the first dimension for the "
                "batch only"
            )
    return pairs


def _relative(output: Tensor, expected: Tensor) -> float:
    return float((output - expected).abs().max() / expected.abs().max().clamp_min(1e-12))


_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def untraceable(error: Exception) -> ExportError:
    """Return the error for an exception of torch.export, with the line it could not follow."""
    frames = [
        (f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)
    ]
    where, text = _user_line(frames), " ".join(str(error).split())
    if "data-dependent" in text:
        return ExportError(
            f"forward decides by the values of a tensor{where}, which a file cannot; use "
            "torch.where, or take the decision out of the network"
        )
    if "specialized" in text or "Constraints violated" in text:
        return ExportError(
            "forward works for one batch size only: it fixes the first dimension of its input; "
            "use -1 or x.shape[0] in place of a number"
        )
    return ExportError(f"torch.export cannot follow forward{where}: {_first_line(error)}")


def unconvertible(error: Exception, program: torch.export.ExportedProgram) -> ExportError:
    """Return the error for an exception of the ONNX exporter, with the operator and its line."""
    match = re.search(r"OpOverload\(op='([\w.]+)', overload='(\w+)'", _messages(error))
    if match is None:
        return ExportError(f"torch.onnx cannot convert the network: {_first_line(error)}")
    operator, overload = match.groups()
    where = _caller(f"{operator}.{overload}", program)
    return ExportError(
        f"ONNX has no operator for {operator}{where}; use another operation, or write "
        "torch.export's format alone (export=torch)"
    )


def _caller(operator: str, program: torch.export.ExportedProgram) -> str:
    """Describe where the network calls an operator; "" when torch does not record it."""
    for node in _calls(operator, program):
        modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
        within = f" in {modules[-1]}" if modules else ""
        frames = _FRAME.findall(node.meta.get("stack_trace") or "")
        return within + _user_line([(file, int(line), name) for file, line, name in frames])
    return ""


def _calls(operator: str, program: torch.export.ExportedProgram) -> Iterator[Any]:
    """Yield the nodes that call an operator, then those of operators that may contain it."""
    exact = (n for n in program.run_decompositions().graph.nodes if str(n.target) == operator)
    name = operator.split(".")[1].strip("_")
    return chain(exact, (node for node in program.graph.nodes if name in str(node.target)))


def _user_line(frames: list[tuple[str, int, str]]) -> str:
    """Describe the innermost frame outside of torch: " at net.py:12 (y = x.svd())"."""
    own = [frame for frame in frames if not frame[0].startswith((*_LIBRARIES, "<"))]
    if not own:
        return ""
    file, line, _ = own[-1]
    code = linecache.getline(file, line).strip()
    return f" at {file}:{line}" + (f" ({code})" if code else "")


def _messages(error: BaseException | None) -> str:
    """Join the messages of an exception and its causes."""
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__
    return "\n".join(texts)


def _first_line(error: BaseException) -> str:
    """Return the first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
