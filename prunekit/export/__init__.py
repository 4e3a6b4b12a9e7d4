"""Files for other engines: ONNX (also in int8) and torch.export, checked against eager outputs."""

from prunekit.export.files import Export, Exported, export_onnx, export_program
from prunekit.export.int8 import Float32, Int8, Precision
from prunekit.export.onnx_session import OnnxModule, require_onnx
from prunekit.export.program import Traced
from prunekit.export.silence import silent

__all__ = [
    "Export",
    "Exported",
    "Float32",
    "Int8",
    "OnnxModule",
    "Precision",
    "Traced",
    "export_onnx",
    "export_program",
    "require_onnx",
    "silent",
]
