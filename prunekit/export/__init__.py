"""Export networks to ONNX (also in int8) and torch.export, checked against eager outputs."""

from prunekit.export.files import Export, Exported, export_onnx, export_program
from prunekit.export.onnxruntime import Float32, Int8, OnnxModule, Precision, require_onnx, silent
from prunekit.export.program import TracedProgram

__all__ = [
    "Export",
    "Exported",
    "Float32",
    "Int8",
    "OnnxModule",
    "Precision",
    "TracedProgram",
    "export_onnx",
    "export_program",
    "require_onnx",
    "silent",
]
