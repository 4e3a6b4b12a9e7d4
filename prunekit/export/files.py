"""Write networks as files for other engines, after a check against the eager network."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from prunekit.atomic_write import replacing
from prunekit.errors import ExportError
from prunekit.export.onnxruntime import OnnxModule, require_onnx, silent
from prunekit.export.program import OPSET, TracedProgram
from prunekit.schema import Checked, Filled, Positive, Range

TOLERANCE = 1e-4  # largest difference to eager outputs, relative to the largest output
ONE_FILE = 2**31 - 2**24  # bytes of weights that fit into a protobuf file beside the graph


@dataclass(frozen=True)
class Exported:
    """An exported file, its size, and its largest relative difference to eager outputs.

    `bytes` includes weights in a second file (`<name>.data`, for more than 2 GB).
    """

    path: Path
    difference: float
    bytes: int
    opset: int | None = None


@dataclass(frozen=True)
class Export(Checked):
    """Settings of an export: `onnx` writes model.onnx, `torch` writes model.pt2 of torch.export.

    `tolerance` bounds the difference to eager outputs, relative to the largest output.
    """

    formats: Annotated[Sequence[Literal["onnx", "torch"]], Filled("[onnx]"), "files to write"] = (
        "onnx",
        "torch",
    )
    opset: Annotated[int, Range(at_least=OPSET), "version of the ONNX operator set"] = OPSET
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
        """Trace the network once, write the files into a folder, and return them by format."""
        traced, written = TracedProgram.of(model, example), {}
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
    """Write an ONNX file for any batch size, checked against eager outputs on onnxruntime.

    Weights of more than 2 GB go into `<path>.data`. Raises ExportError, and writes nothing, when
    ONNX cannot express the network (with the operator and the line that calls it), and when outputs
    differ by more than `tolerance`, relative to the largest output.
    """
    return _write_onnx(TracedProgram.of(model, example), Path(path), opset, tolerance)


def export_program(
    model: nn.Module,
    example: Tensor | Sequence[Tensor],
    path: str | Path,
    *,
    tolerance: float = TOLERANCE,
) -> Exported:
    """Write a .pt2 file for `torch.export.load`, for any batch size, with the same check."""
    return _write_program(TracedProgram.of(model, example), Path(path), tolerance)


def _write_program(traced: TracedProgram, path: Path, tolerance: float) -> Exported:
    content = io.BytesIO()  # torch accepts only file names in .pt2, which a draft has not
    with silent():
        torch.export.save(traced.program, content)
        content.seek(0)
        loaded = torch.export.load(content).module()
    difference = _check(traced.difference(loaded), tolerance, "torch.export")
    with replacing(path) as draft:
        draft.write_bytes(content.getbuffer())
    return Exported(path, difference, path.stat().st_size)


def _write_onnx(traced: TracedProgram, path: Path, opset: int, tolerance: float) -> Exported:
    program = traced.onnx(opset)
    data = path.with_name(f"{path.name}.data")
    with ExitStack() as files:
        draft = files.enter_context(replacing(path))
        parts = [draft]
        if _weight_bytes(traced.model) > ONE_FILE:
            parts.append(files.enter_context(replacing(data)))
        with silent():
            _save(program, *parts)
        difference = _check(traced.difference(OnnxModule(draft)), tolerance, "onnxruntime")
        size = sum(part.stat().st_size for part in parts)
        if len(parts) > 1:
            _set_data_file(draft, data.name)
    return Exported(path, difference, size, opset)


def _check(difference: float, tolerance: float, engine: str) -> float:
    if not difference <= tolerance:
        raise ExportError(
            f"the outputs of the exported network on {engine} differ from the eager ones by "
            f"{difference:.1e} of the largest (export.tolerance={tolerance:g}); nothing was written"
        )
    return difference


def _weight_bytes(model: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in model.state_dict().values())


def _save(program: torch.onnx.ONNXProgram, draft: Path, data: Path | None = None) -> None:
    """Write the graph with its weights, or write the weights into a second file `data`."""
    import onnx_ir

    if data is None:
        program.save(str(draft), external_data=False)
    else:
        onnx_ir.save(program.model, draft, external_data=data.name)


def _set_data_file(file: Path, data: str) -> None:
    """Set the name of the file in which an ONNX file looks for its weights."""
    import onnx

    proto = onnx.load(file, load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data
    onnx.save(proto, file)
