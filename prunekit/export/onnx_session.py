"""ONNX files on onnxruntime."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ConfigError, ExportError
from prunekit.export.silence import silent

_EXTRA = ("onnx", "onnxruntime", "onnxscript")
_FATAL = 4  # onnxruntime's severity: what is worse comes as an exception anyway


def require_onnx() -> None:
    """Raise ConfigError that names the extra when a package of it is missing."""
    missing = [name for name in _EXTRA if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX needs {', '.join(missing)}, not installed here; pip install 'prunekit[export]'"
        )


class OnnxModule(nn.Module):
    """An ONNX file as a network: tensors in, tensors out, in between onnxruntime on the CPU.

    `threads` are used inside an operator, one operator at a time; 0 leaves it to onnxruntime.
    Raises ExportError when onnxruntime cannot run the file.
    """

    def __init__(self, file: str | Path, threads: int = 0) -> None:
        require_onnx()
        super().__init__()
        self.session = _session(str(file), threads)
        self.inputs = [put.name for put in self.session.get_inputs()]

    def forward(self, *inputs: Tensor) -> Any:
        """One tensor where the network has one output, else a list in the order of the file."""
        feeds = {
            name: x.detach().cpu().contiguous().numpy()
            for name, x in zip(self.inputs, inputs, strict=True)
        }
        try:
            arrays = self.session.run(None, feeds)
        except Exception as error:  # its exceptions have no common base
            raise _refused(error) from error
        found = [torch.from_numpy(array) for array in arrays]
        return found[0] if len(found) == 1 else found


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
        raise _refused(error) from error


def _refused(error: Exception) -> ExportError:
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return ExportError(f"onnxruntime cannot run the exported network: {reason}")
