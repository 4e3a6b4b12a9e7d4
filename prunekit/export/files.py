"""Networks as files for other engines, checked against the eager network before they are kept."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from prunekit.atomic_write import replacing
from prunekit.errors import ExportError
from prunekit.export.onnx_session import OnnxModule, require_onnx
from prunekit.export.program import OPSET, Traced
from prunekit.export.silence import silent
from prunekit.schema import Checked, Filled, Positive, Range

TOLERANCE = 1e-4  # largest difference to eager outputs, relative to the largest of them
ONE_FILE = 2**31 - 2**24  # bytes of weights that protobuf can hold, with room for the graph


@dataclass(frozen=True)
class Exported:
    """A file that was written: its size, and its largest relative difference to eager outputs.

    `bytes` includes weights that lie in a file beside (`<name>.data`, above 2 GB).
    """

    path: Path
    difference: float
    bytes: int
    opset: int | None = None


@dataclass(frozen=True)
class Export(Checked):
    """Which files to write: `onnx` stands for model.onnx, `torch` for model.pt2 of torch.export.

    `tolerance` bounds the difference to eager outputs, relative to the largest output.
    """

    formats: Annotated[Sequence[Literal["onnx", "torch"]], Filled("[onnx]"), "files to write"] = (
        "onnx",
        "torch",
    )
    opset: Annotated[int, Range(at_least=OPSET), "of ONNX"] = OPSET
    tolerance: Annotated[
        Positive, "largest difference to eager outputs, relative to the largest output"
    ] = TOLERANCE

    def __post_init__(self) -> None:
        super().__post_init__()
        if "onnx" in self.formats:
            require_onnx()

    def write(
        self, model: nn.Module, example: Tensor | Sequence[Tensor], folder: Path
    ) -> dict[str, Exported]:
        """Write the files into a folder, by format; the network is traced once."""
        traced, written = Traced.of(model, example), {}
        if "onnx" in self.formats:
            path = folder / "model.onnx"
            written["onnx"] = _write_onnx(traced, path, self.opset, self.tolerance)
        if "torch" in self.formats:
            written["torch"] = _write_program(traced, folder / "model.pt2", self.tolerance)
        return written


def export_onnx(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    opset: int = OPSET,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write an ONNX file for any batch size that gives the eager outputs on onnxruntime.

    Weights of more than 2 GB go into `<path>.data`. Raises ExportError, with the operator and the
    line that calls it, when ONNX cannot express the network, and when outputs differ by more than
    `tolerance`, relative to the largest; nothing is written then.
    """
    return _write_onnx(Traced.of(model, example), Path(path), opset, tolerance)


def export_program(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a file for `torch.export.load` (.pt2), for any batch size; checked as ONNX is."""
    return _write_program(Traced.of(model, example), Path(path), tolerance)


def _write_program(traced: Traced, path: Path, tolerance: float) -> Exported:
    content = io.BytesIO()  # torch wants a name in .pt2 or no name at all
    with silent():
        torch.export.save(traced.program, content)
        content.seek(0)
        loaded = torch.export.load(content).module()
    difference = _agreeing(traced.difference(loaded), tolerance, "torch.export")
    with replacing(path) as draft:
        draft.write_bytes(content.getbuffer())
    return Exported(path, difference, path.stat().st_size)


def _write_onnx(traced: Traced, path: Path, opset: int, tolerance: float) -> Exported:
    program = traced.onnx(opset)
    beside = path.with_name(f"{path.name}.data")
    with ExitStack() as files:
        draft = files.enter_context(replacing(path))
        parts = [draft]
        if _weight_bytes(traced.model) > ONE_FILE:
            parts.append(files.enter_context(replacing(beside)))
        with silent():
            _save(program, *parts)
        difference = _agreeing(traced.difference(OnnxModule(draft)), tolerance, "onnxruntime")
        size = sum(part.stat().st_size for part in parts)
        if len(parts) > 1:
            _point(draft, beside.name)
    return Exported(path, difference, size, opset)


def _agreeing(difference: float, tolerance: float, engine: str) -> float:
    if not difference <= tolerance:
        raise ExportError(
            f"the outputs of the exported network on {engine} differ from the eager ones by "
            f"{difference:.1e} of the largest (export.tolerance={tolerance:g}); nothing was written"
        )
    return difference


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _save(program: Any, draft: Path, data: Path | None = None) -> None:
    """Write the graph with its weights, or its weights into the file `data` beside."""
    import onnx_ir

    if data is None:
        program.save(str(draft), external_data=False)
    else:
        onnx_ir.save(program.model, draft, external_data=data.name)


def _point(file: Path, data: str) -> None:
    """Let an ONNX file look for its weights in the file that is called `data`."""
    import onnx

    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data
    onnx.save(proto, file)
