"""onnxruntime: run ONNX files, and quantise them to int8."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from prunekit.atomic_write import replacing
from prunekit.errors import ConfigError, ExportError
from prunekit.schema import Checked, Count, OneOf


@contextmanager
def silent() -> Iterator[None]:
    """Suppress the warnings, log lines and prints of exporters; errors still propagate."""
    before, sink = logging.root.manager.disable, io.StringIO()
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(sink), redirect_stderr(sink):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


_EXTRA = ("onnx", "onnxruntime", "onnxscript")
_FATAL = 4  # onnxruntime's log severity; errors raise exceptions anyway


def require_onnx() -> None:
    """Raise ConfigError with the name of the extra if one of its packages is missing."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}, not installed here; pip install 'prunekit[export]'"
        )


class OnnxModule(nn.Module):
    """An ONNX file as a module that runs on the CPU with onnxruntime.

    `threads` are used inside an operator, one operator at a time; 0 leaves the number to
    onnxruntime. Raises ExportError when onnxruntime cannot run the file.
    """

    def __init__(self, file: str | Path, threads: int = 0) -> None:
        require_onnx()
        super().__init__()
        self.session = _session(str(file), threads)
        self.inputs = [node.name for node in self.session.get_inputs()]

    def forward(self, *inputs: Tensor) -> Any:
        """Return a tensor if the network has one output, else a list in the order of the file."""
        feeds = {
            name: x.detach().cpu().contiguous().numpy()
            for name, x in zip(self.inputs, inputs, strict=True)
        }
        try:
            arrays = self.session.run(None, feeds)
        except Exception as error:  # its exceptions have no common base
            raise _run_error(error) from error
        outputs = [torch.from_numpy(array) for array in arrays]
        return outputs[0] if len(outputs) == 1 else outputs


def _session(file: str, threads: int) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    try:
        with silent():
            return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _run_error(error) from error


def _run_error(error: Exception) -> ExportError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ExportError(f"onnxruntime cannot run the exported network: {reason}")


log = logging.getLogger(__name__)

_METHODS = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}

_OVERFLOW = (
    "this CPU has no VNNI, so that sums of int8 products overflow and accuracy measured here is "
    "too low; for processors like it set quantize.reduce_range=true"
)


class Precision(Checked):
    """The number format of an exported network."""


@dataclass(frozen=True)
class Float32(Precision):
    """Leave weights and activations as they are, without a second file."""


@dataclass(frozen=True)
class Int8(Precision):
    """Quantise statically to int8, with `calibration` images in batches of `batch`.

    Weights are quantised per channel. `method` determines the range of every activation: `minmax`,
    `entropy` or `percentile`. Activations are unsigned and weights signed, for which x86 processors
    have instructions; those without VNNI add in 16 bits, where `reduce_range` (weights of 7 bits)
    avoids overflow.
    """

    calibration: Annotated[Count, "training images for the ranges of activations"] = 256
    batch: Annotated[Count, "images per batch"] = 32
    method: Annotated[str, OneOf(tuple(_METHODS)), "rule for the range of an activation"] = "minmax"
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
            prepared, quantised = Path(folder) / "prepared.onnx", Path(folder) / path.name
            try:
                with silent():
                    _prepare(source, prepared)
                    self._quantise(prepared, images, quantised)
            except Exception as error:  # onnxruntime raises plain exceptions of every kind
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise ExportError(f"onnxruntime cannot quantise the network: {reason}") from error
            with replacing(path) as draft:
                draft.write_bytes(quantised.read_bytes())
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
    """Return whether this CPU adds int8 products in 16 bits: x86 without VNNI, if known."""
    query = getattr(torch.cpu, "get_capabilities", None)
    capabilities = query() if query else {}
    vnni = capabilities.get("avx512_vnni", True) or capabilities.get("avx_vnni", True)
    return "x86" in str(capabilities.get("architecture")) and not vnni


class _Reader:
    """Calibration batches in onnxruntime's form: one dictionary per call, then None."""

    def __init__(self, source: Path, images: Iterable[Tensor]) -> None:
        import onnx

        self._name = onnx.load(source, load_external_data=False).graph.input[0].name
        self._images: Iterator[Tensor] = iter(images)

    def get_next(self) -> dict[str, Any] | None:
        """Return the next batch by input name, None after the last."""
        images = next(self._images, None)
        return None if images is None else {self._name: images.cpu().contiguous().numpy()}


def _prepare(source: Path, path: Path) -> None:
    """Fold batch norms into convolutions and add the shapes of all activations to the file."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(path), skip_symbolic_shape=True)
