"""What can run a network: eager PyTorch, torch.compile, onnxruntime."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import ExportError
from prunekit.export import OnnxModule, export_onnx, silent
from prunekit.graph.arguments import Arguments

Runner = Callable[[Any], object]
Engine = Callable[[Mapping[str, nn.Module], Arguments], dict[str, Runner]]


def eager(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, Runner]:
    """Copies of the networks in evaluation mode, on the device of the batch."""
    return {name: _calling(network) for name, network in _copies(models, x).items()}


def compiled(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, Runner]:
    """The networks through torch.compile, for batches of this shape.

    They are compiled here, so that no timed pass includes it. Raises ExportError where that fails;
    on a CPU it takes a C++ compiler.
    """
    torch.compiler.reset()  # what was compiled before would count towards a limit of variants
    copies = _copies(models, x)
    runners = {n: _calling(torch.compile(one, dynamic=False)) for n, one in copies.items()}
    try:
        with silent():
            for runner in runners.values():
                runner(x)
    except Exception as error:  # compilers fail in many ways
        raise ExportError(_uncompiled(error)) from error
    return runners


def onnxruntime(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, Runner]:
    """The networks as ONNX files on onnxruntime, with as many threads as torch has.

    Raises ExportError where one cannot be exported or `x` is on a GPU, ConfigError without the
    extra.
    """
    if x.device.type == "cuda":
        raise ExportError("prunekit times onnxruntime on the CPU only")
    if x.kwargs or not all(isinstance(one, Tensor) for one in x.args):
        raise ExportError("prunekit exports networks that take tensors by position only")
    return {name: _calling(_session(model, x)) for name, model in models.items()}


def _copies(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(model).to(x.device).eval() for name, model in models.items()}


def _calling(network: Callable[..., object]) -> Runner:
    return lambda given: given.call(network)


def _session(model: nn.Module, x: Arguments) -> OnnxModule:
    with TemporaryDirectory(prefix="prunekit-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, [one[:1] for one in x.args], path)
        return OnnxModule(path, torch.get_num_threads())


def _uncompiled(error: Exception) -> str:
    if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
        return "torch.compile finds no C++ compiler; install g++, or leave compile out"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"torch.compile cannot compile the network: {reason}"


ENGINES: dict[str, Engine] = {"eager": eager, "compile": compiled, "onnxruntime": onnxruntime}
