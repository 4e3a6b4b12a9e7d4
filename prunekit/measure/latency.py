"""Latency of networks on several engines, and of the layers of a network."""

from __future__ import annotations

import copy
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, TypeVar

import torch
from torch import Tensor, nn

from prunekit.errors import ExportError
from prunekit.export import OnnxModule, export_onnx, require_onnx, silent
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example
from prunekit.measure.cost import CostModel
from prunekit.schema import Checked, Count, Filled, OneOf, Positive, Range, Whole
from prunekit.validate import choice

Key = TypeVar("Key")
Runner = Callable[[Any], object]
Engine = Callable[[Mapping[str, nn.Module], Arguments], dict[str, Runner]]


def eager(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, Runner]:
    """Copy the networks to the device of the batch, in evaluation mode."""
    return {name: _runner(network) for name, network in _copies(models, x).items()}


def compiled(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, Runner]:
    """Compile copies of the networks with torch.compile for batches of this shape.

    They run once, so that no timed pass includes the compilation. Raises ExportError where that
    fails; on a CPU a C++ compiler is needed.
    """
    torch.compiler.reset()  # earlier compilations would count towards its limit of variants
    copies = _copies(models, x)
    runners = {n: _runner(torch.compile(model, dynamic=False)) for n, model in copies.items()}
    try:
        with silent():
            for runner in runners.values():
                runner(x)
    except Exception as error:  # compilers fail in many ways
        raise ExportError(_compile_message(error)) from error
    return runners


def onnxruntime(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, Runner]:
    """Export the networks to ONNX and run them on onnxruntime with torch's number of threads.

    Raises ExportError where one cannot be exported or `x` is on a GPU, and ConfigError if the
    packages for ONNX are missing.
    """
    if x.device.type == "cuda":
        raise ExportError("prunekit times onnxruntime on the CPU only")
    if x.kwargs or not all(isinstance(argument, Tensor) for argument in x.args):
        raise ExportError("prunekit exports networks that take tensors by position only")
    return {name: _runner(_session(model, x)) for name, model in models.items()}


def _copies(models: Mapping[str, nn.Module], x: Arguments) -> dict[str, nn.Module]:
    return {name: copy.deepcopy(model).to(x.device).eval() for name, model in models.items()}


def _runner(network: Callable[..., object]) -> Runner:
    return lambda arguments: arguments.call(network)


def _session(model: nn.Module, x: Arguments) -> OnnxModule:
    with TemporaryDirectory(prefix="prunekit-") as folder:
        path = Path(folder) / "model.onnx"
        export_onnx(model, [argument[:1] for argument in x.args], path)
        return OnnxModule(path, torch.get_num_threads())


def _compile_message(error: Exception) -> str:
    if "InvalidCxxCompiler" in f"{type(error).__name__} {error}":
        return "torch.compile finds no C++ compiler; install g++, or leave compile out"
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return f"torch.compile cannot compile the network: {reason}"


ENGINES: dict[str, Engine] = {"eager": eager, "compile": compiled, "onnxruntime": onnxruntime}


_MIN_ROUNDS = 5  # a median of fewer rounds is meaningless


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch: the median, quartiles and minimum of `runs` timed rounds."""

    median_ms: float
    q1: float
    q3: float
    runs: int
    fastest: float
    times: tuple[float, ...] = field(default=(), repr=False, compare=False)  # in order

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Summarise at least two times in milliseconds."""
        q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, q1, q3, len(times), min(times), tuple(times))

    def ratio_to(self, other: Latency) -> float:
        """Return the ratio of this time to `other`, which was timed in turns with it.

        It is the median over rounds of the ratio within a round, since other load on a machine
        slows both for a while.
        """
        if len(self.times) != len(other.times) or not self.times:
            return self.median_ms / other.median_ms
        return statistics.median(self._ratios(other))

    def scatter(self, other: Latency) -> float:
        """Return how far the ratio to `other`, timed in turns with it, scatters between rounds.

        It is the distance of its quartiles, relative to its median.
        """
        q1, median, q3 = statistics.quantiles(self._ratios(other), n=4, method="inclusive")
        return (q3 - q1) / median

    def _ratios(self, other: Latency) -> list[float]:
        return [time / reference for time, reference in zip(self.times, other.times, strict=True)]


@dataclass(frozen=True)
class LatencyTest(Checked):
    """Settings for timing networks: batch, CPU threads, rounds, and a time limit.

    After `warmup` rounds and at least five timed ones the test stops early once about `seconds`
    have passed. `threads` work inside an operator, on any engine; torch's own setting is restored
    afterwards. `engines` names the engines of the measure stage: eager, compile, onnxruntime.
    Denormal numbers count as zero, since weights driven towards zero slow down CPUs otherwise.
    """

    threads: Annotated[Count, "CPU threads while timing"] = 1
    batch: Annotated[Count, "images in the timed batch"] = 100
    runs: Annotated[int, Range(at_least=_MIN_ROUNDS), "timed rounds"] = 50
    warmup: Annotated[Whole, "rounds before the timed ones"] = 10
    seconds: Annotated[Positive, "time limit per engine, for all networks together"] = 20.0
    engines: Annotated[
        Sequence[Annotated[str, OneOf(tuple(ENGINES))]],
        Filled("[eager]"),
        "engines that run the networks",
    ] = ("eager",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "onnxruntime" in self.engines:
            require_onnx()

    def run(
        self,
        models: Mapping[str, nn.Module],
        example: Example,
        device: str | torch.device = "cpu",
        engine: str = "eager",
    ) -> dict[str, Latency]:
        """Time a forward pass of every model on the same random batch, in turns A B A B.

        `example` gives shapes and types, batch dimension first; its batch size is ignored. Copies
        of the models run in evaluation and inference mode on `device`. Raises ExportError where the
        engine cannot run one of them.
        """
        choice("engine", engine, tuple(ENGINES))
        x = Arguments.of(self.inputs(example)).to(device)
        with _threads(self.threads), torch.inference_mode():
            runners = ENGINES[engine](models, x)
        return self.time_callables(runners, x)

    def inputs(self, example: Example) -> Example:
        """Return the random batch to time, always the same; a tensor if the example is one tensor.

        Integer tensors repeat those of the example; tensors without a batch dimension stay as they
        are.
        """
        arguments, generator = Arguments.of(example), torch.Generator().manual_seed(0)

        def batch(x: Tensor) -> Tensor:
            if not arguments.is_batched(x):
                return x
            if not x.is_floating_point():
                return x[torch.arange(self.batch, device=x.device) % len(x)]
            return torch.rand(self.batch, *x.shape[1:], generator=generator).to(x.dtype)

        inputs = arguments.map_tensors(batch)
        return inputs if inputs.single_tensor is None else inputs.single_tensor

    def time_callables(
        self, runners: Mapping[Key, Runner], x: Tensor | Arguments
    ) -> dict[Key, Latency]:
        """Time callables on the batch `x`, in turns A B A B; nothing is copied."""
        with _threads(self.threads), _flushing_denormals(), torch.inference_mode():
            _rounds(runners, x, rounds=self.warmup, at_least=1, seconds=self.seconds / 4)
            times = _rounds(
                runners, x, rounds=self.runs, at_least=_MIN_ROUNDS, seconds=self.seconds
            )
        return {key: Latency.of(series) for key, series in times.items()}


def _rounds(
    runners: Mapping[Key, Runner], x: Any, *, rounds: int, at_least: int, seconds: float
) -> dict[Key, list[float]]:
    """Return the milliseconds of every runner in `rounds` rounds, fewer once the time is up."""
    clock = _gpu_ms if x.device.type == "cuda" else _cpu_ms
    times: dict[Key, list[float]] = {key: [] for key in runners}
    start = time.monotonic()
    for index in range(rounds):
        if index >= at_least and time.monotonic() - start > seconds:
            break
        for key, runner in runners.items():
            times[key].append(clock(runner, x))
    return times


def _cpu_ms(runner: Runner, x: Any) -> float:
    start = time.perf_counter()
    runner(x)
    return (time.perf_counter() - start) * 1e3


def _gpu_ms(runner: Runner, x: Any) -> float:
    with torch.cuda.device(x.device):  # events belong to the current device
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        runner(x)
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _flushing_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero; restore the setting, which torch offers no way to read."""
    before = float(torch.tensor(1e-20) * torch.tensor(1e-20)) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_RUNS, _WARMUP, _SECONDS = 9, 2, 5.0  # enough to compare the layers of a network


def layer_records(
    models: Mapping[str, nn.Module], example: Example, timing: LatencyTest
) -> list[dict[str, Any]]:
    """Return a record per network and layer: network, layer, kind, in, out, macs, params, cpu_ms.

    Layers are those with channels, and all other modules without children, which have no counts.
    Milliseconds are the minimum over several passes of the timed batch on the CPU, with networks in
    turns; computations outside of modules are not included.
    """
    tables = {name: _layer_counts(model, example) for name, model in models.items()}
    timers = {name: _LayerTimer(model, tables[name]) for name, model in models.items()}
    brief = replace(
        timing,
        runs=min(timing.runs, _RUNS),
        warmup=min(timing.warmup, _WARMUP),
        seconds=min(timing.seconds, _SECONDS),
    )
    x = Arguments.of(timing.inputs(example))
    brief.time_callables({name: timer.run for name, timer in timers.items()}, x)
    return [
        {"network": name, **tables[name].get(layer, {"layer": layer, "kind": kind}), "cpu_ms": ms}
        for name, timer in timers.items()
        for layer, kind, ms in timer.fastest()
    ]


def _layer_counts(model: nn.Module, example: Example) -> dict[str, dict[str, Any]]:
    """Return the records of the cost model by the name of the layer."""
    arguments = Arguments.of(example).to(next(model.parameters()).device)
    graph = ChannelGraph.trace(model, arguments)
    table = CostModel(model, graph).layer_table()
    return {record["name"]: {"layer": record.pop("name"), **record} for record in map(dict, table)}


class _LayerTimer:
    """A copy of a network on the CPU in which each layer is timed."""

    def __init__(self, model: nn.Module, layers: Mapping[str, Any]) -> None:
        self._model = copy.deepcopy(model).cpu().eval()
        self._passes: list[dict[str, float]] = []
        self._kinds: dict[str, str] = {}
        for name, module in self._model.named_modules():
            leaf = name and not any(module.children())
            if name in layers or (leaf and not _inside(name, layers)):
                self._kinds[name] = type(module).__name__
                self._watch(name, module)

    def run(self, x: Arguments) -> None:
        """Run one pass and store the times of its layers."""
        self._passes.append(defaultdict(float))
        x.call(self._model)

    def fastest(self) -> list[tuple[str, str, float]]:
        """Return the name, class and fewest milliseconds of every layer that was called."""
        return [
            (name, self._kinds[name], round(min(times[name] for times in self._passes), 5))
            for name in self._passes[0]
        ]

    def _watch(self, name: str, module: nn.Module) -> None:
        starts: list[float] = []

        def start(*_: Any) -> None:
            starts.append(time.perf_counter())

        def stop(*_: Any) -> None:
            self._passes[-1][name] += (time.perf_counter() - starts.pop()) * 1e3

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)


def _inside(name: str, layers: Mapping[str, Any]) -> bool:
    """Return whether a module is part of one of the layers, which is timed already."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in layers for depth in range(1, len(parts)))
