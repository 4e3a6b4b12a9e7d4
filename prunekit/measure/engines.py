"""What can run a network: eager PyTorch, torch.compile, onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from prunekit.errors import ExportError
from prunekit.export import OnnxModule, export_onnx, silent

Runner = Callable[[Tensor], object]
Engine = Callable[[Mapping[str, nn.Module], Tensor], dict[str, Runner]]


def eager(models: Mapping[str, nn.Module], x: Tensor) -> dict[str, Runner]:
    """Copies of the networks in evaluation mode, on the device of the batch."""
    return {name: copy.deepcopy(model).to(x.device).eval() for name, model in models.items()}


def compiled(models: Mapping[str, nn.Module], x: Tensor) -> dict[str, Runner]:
    """The networks through torch.compile, for batches of this shape.

    They are compiled here, so that no timed pass includes it. Raises ExportError where that fails;
    on a CPU it takes a C++ compiler.
    """
    torch.compiler.reset()  # what was compiled before would count towards a limit of variants
    runners = {name: torch.compile(one, dynamic=False) for name, one in eager(models, x).items()}
    try:
        with silent():
            for runner in runners.values():
                runner(x)
    except Exception as error:  # compilers fail in many ways
        raise ExportError(_uncompiled(error)) from error
    return runners


def onnxruntime(models: Mapping[str, nn.Module], x: Tensor) -> dict[str, Runner]:
    """The networks as ONNX files on onnxruntime, with as many threads as torch has.

    Raises ExportError where one cannot be exported or `x` is on a GPU, ConfigError without the
    extra.
    """
    if x.is_cuda:
        raise ExportError("prunekit times onnxruntime on the CPU only")
    return {name: _session(model, x) for name, model in models.items()}


def _session(model: nn.Module, x: Tensor) -> OnnxModule:
    with TemporaryDirectory(prefix="prunekit-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, x[:1], path)
        return OnnxModule(path, torch.get_num_threads())


def _uncompiled(error: Exception) -> str:
    if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
        return "torch.compile finds no C++ compiler; install g++, or leave compile out"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"torch.compile cannot compile the network: {reason}"


ENGINES: dict[str, Engine] = {"eager": eager, "compile": compiled, "onnxruntime": onnxruntime}
