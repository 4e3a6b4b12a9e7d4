"""Which line of the user's code an exporter stumbles over."""

from __future__ import annotations

import linecache
import re
import traceback
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from prunekit.errors import ExportError

_THEIRS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\w+)')


def untraceable(error: Exception) -> ExportError:
    """For what torch.export raises: the line that it cannot follow, and what to do about it."""
    frames = [
        (f.filename, f.lineno or 0, f.name) for f in traceback.extract_tb(error.__traceback__)
    ]
    where, text = _place(frames), " ".join(str(error).split())
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
    return ExportError(f"torch.export cannot follow forward{where}: {_first(error)}")


def unconvertible(error: Exception, program: Any) -> ExportError:
    """For what the ONNX exporter raises: the operator, and the line that calls it."""
    found = re.search(r"OpOverload\(op='([\w.]+)', overload='(\w+)'", _chain(error))
    if found is None:
        return ExportError(f"torch.onnx cannot convert the network: {_first(error)}")
    operator, overload = found.groups()
    place = _caller(f"{operator}.{overload}", program)
    return ExportError(
        f"ONNX has no operator for {operator}{place}; use another operation, or write "
        "torch.export's format alone (export=torch)"
    )


def _caller(operator: str, program: Any) -> str:
    """Where the network calls an operator; "" when torch does not say."""
    for node in _calls(operator, program):
        modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
        within = f" in {modules[-1]}" if modules else ""
        frames = _FRAME.findall(node.meta.get("stack_trace") or "")
        return within + _place([(file, int(line), name) for file, line, name in frames])
    return ""


def _calls(operator: str, program: Any) -> Iterator[Any]:
    """The nodes that call an operator, then those that call one it may be a part of."""
    exact = (n for n in program.run_decompositions().graph.nodes if str(n.target) == operator)
    name = operator.split(".")[1].strip("_")
    return chain(exact, (node for node in program.graph.nodes if name in str(node.target)))


def _place(frames: list[tuple[str, int, str]]) -> str:
    """The innermost frame that is not torch's: " at net.py:12 (y = x.svd())"."""
    own = [frame for frame in frames if not frame[0].startswith((*_THEIRS, "<"))]
    if not own:
        return ""
    file, line, _ = own[-1]
    code = linecache.getline(file, line).strip()
    return f" at {file}:{line}" + (f" ({code})" if code else "")


def _chain(error: BaseException | None) -> str:
    texts = []
    while error is not None:
        texts.append(str(error))
        error = error.__cause__
    return "\n".join(texts)


def _first(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
