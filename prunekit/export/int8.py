"""Static int8 by onnxruntime: weights per channel, activations by what calibration images show."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from torch import Tensor

from prunekit.atomic_write import replacing
from prunekit.errors import ExportError
from prunekit.export.onnx_session import require_onnx
from prunekit.export.silence import silent
from prunekit.schema import Checked, Count, OneOf

log = logging.getLogger(__name__)

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}

_OVERFLOW = (
    "this CPU has no VNNI, so that sums of int8 products overflow and accuracy measured here is "
    "too low; for processors like it set quantize.reduce_range=true"
)


class Precision(Checked):
    """The numbers that an exported network calculates with."""


@dataclass(frozen=True)
class Float32(Precision):
    """Weights and activations as they are: no second file."""


@dataclass(frozen=True)
class Int8(Precision):
    """Static quantisation with `calibration` images, a `batch` at a time.

    `method` finds the range of every activation: `minmax`, `entropy` or `percentile`. Activations
    are unsigned and weights signed, the pair for which x86 processors have instructions; those
    without VNNI add in 16 bits, where `reduce_range` (weights of 7 bits) avoids overflow.
    """

    calibration: Annotated[Count, "training images that set the ranges of activations"] = 256
    batch: Annotated[Count, "images in one batch"] = 32
    method: Annotated[str, OneOf(tuple(_METHODS)), "how a range is found"] = "minmax"
    reduce_range: Annotated[bool, "weights of 7 bits, for processors without VNNI"] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_onnx()

    def write(self, source: Path, images: Iterable[Tensor], path: Path) -> int:
        """Quantise the ONNX file `source` into `path` and return its size in bytes.

        `images` are batches of calibration inputs. Warns where this CPU overflows on the file.
        Raises ExportError where onnxruntime fails.
        """
        if not self.reduce_range and sums_overflow():
            log.warning(_OVERFLOW)
        with TemporaryDirectory(prefix="prunekit-") as folder:
            prepared, made = Path(folder) / "prepared.onnx", Path(folder) / path.name
            try:
                with silent():
                    _prepare(source, prepared)
                    self._quantise(prepared, images, made)
            except Exception as error:  # onnxruntime raises plain exceptions of every kind
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise ExportError(f"onnxruntime cannot quantise the network: {reason}") from error
            with replacing(path) as draft:
                draft.write_bytes(made.read_bytes())
        return path.stat().st_size

    def _quantise(self, source: Path, images: Iterable[Tensor], path: Path) -> None:
        from onnxruntime import quantization as ort

        ort.quantize_static(
            source,
            path,
            _Reader(source, images),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=self.reduce_range,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            calibrate_method=getattr(ort.CalibrationMethod, _METHODS[self.method]),
        )


def sums_overflow() -> bool:
    """Whether this CPU adds products of int8 in 16 bits: x86 without VNNI; False if unknown."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    known = tell() if tell else {}
    able = known.get("avx512_vnni", True) or known.get("avx_vnni", True)
    return "x86" in str(known.get("architecture")) and not able


class _Reader:
    """Calibration batches in the form onnxruntime asks for: one dictionary a call, then None."""

    def __init__(self, source: Path, images: Iterable[Tensor]) -> None:
        import onnx

        self._name = onnx.load(source, load_external_data=False).graph.input[0].name
        self._images: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """The next batch by input name."""
        images = next(self._images, None)
        return None if images is None else {self._name: images.cpu().contiguous().numpy()}


def _prepare(source: Path, path: Path) -> None:
    """Fold batch norms into convolutions and write the shapes of all activations down."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
