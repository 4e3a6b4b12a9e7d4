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
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from prunekit.errors import ExportError
from prunekit.export import OnnxModule, export_onnx, require_onnx, silent
from prunekit.graph import ChannelGraph
from prunekit.graph.arguments import Arguments, Example
from prunekit.measure.cost import CostModel
from prunekit.schema import Checked, Count, Filled, OneOf, Positive, Range, Whole
from prunekit.validate import choice

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


_FEWEST = 5  # a median of fewer runs says nothing


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch: median, quartiles and the fastest of `runs` timed runs."""

    median_ms: float
    q1: float
    q3: float
    runs: int
    fastest: float
    times: tuple[float, ...] = field(default=(), repr=False, compare=False)  # in order

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Summarise times in milliseconds, at least two."""
        q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, q1, q3, len(times), min(times), tuple(times))

    def over(self, other: Latency) -> float:
        """How many times as long this takes as `other`, timed in turns with it.

        The median over rounds of the ratio within a round: what slows a machine for a while slows
        both.
        """
        if len(self.times) != len(other.times) or not self.times:
            return self.median_ms / other.median_ms
        pairs = zip(self.times, other.times, strict=True)
        return statistics.median(mine / theirs for mine, theirs in pairs)


@dataclass(frozen=True)
class LatencyTest(Checked):
    """How to time networks: batch, CPU threads, rounds, and a limit for all of it together.

    After `warmup` rounds and at least five timed ones the test stops early once about `seconds`
    are used up. `threads` work inside an operator, on any engine; torch's own count is set back
    afterwards. `engines` names what the measure stage times on: eager, compile, onnxruntime.
    Numbers too small to be normal count as zero: weights driven towards zero slow CPUs otherwise.
    """

    threads: Annotated[Count, "CPU threads while timing"] = 1
    batch: Annotated[Count, "images in the batch that is timed"] = 100
    runs: Annotated[int, Range(at_least=_FEWEST), "timed rounds"] = 50
    warmup: Annotated[Whole, "rounds before, which do not count"] = 10
    seconds: Annotated[Positive, "time limit for all networks together, for each engine"] = 20.0
    engines: Annotated[
        Sequence[Annotated[str, OneOf(tuple(ENGINES))]], Filled("[eager]"), "what runs the networks"
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
        """Time one forward pass of every model on the same random batch, in turns A B A B.

        `example` gives shapes and types, batch dimension first; its own batch size does not count.
        Copies of the models run in evaluation and inference mode on `device`. Raises ExportError
        where the engine cannot run one of them.
        """
        choice("engine", engine, tuple(ENGINES))
        x = Arguments.of(self.inputs(example)).to(device)
        with _threads(self.threads), torch.inference_mode():
            runners = ENGINES[engine](models, x)
        return self.race(runners, x)

    def inputs(self, example: Example) -> Example:
        """The random batch that is timed, always the same; a tensor for one tensor.

        Whole numbers are those of the example, over and over; what is not batched stays as it is.
        """
        given, source = Arguments.of(example), torch.Generator().manual_seed(0)

        def drawn(x: Tensor) -> Tensor:
            if not given.batched(x):
                return x
            if not x.is_floating_point():
                return x[torch.arange(self.batch, device=x.device) % len(x)]
            return torch.rand(self.batch, *x.shape[1:], generator=source).to(x.dtype)

        found = given.changed(drawn)
        return found if found.alone is None else found.alone

    def race(self, runners: Mapping[str, Runner], x: Tensor | Arguments) -> dict[str, Latency]:
        """Time anything that takes the batch `x`, in turns A B A B; nothing is copied."""
        with _threads(self.threads), _flushing(), torch.inference_mode():
            _rounds(runners, x, rounds=self.warmup, at_least=1, seconds=self.seconds / 4)
            times = _rounds(runners, x, rounds=self.runs, at_least=_FEWEST, seconds=self.seconds)
        return {name: Latency.of(found) for name, found in times.items()}


def _rounds(
    runners: Mapping[str, Runner], x: Any, *, rounds: int, at_least: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds per runner over `rounds` rounds, fewer once the time is used up."""
    clock = _gpu_ms if x.device.type == "cuda" else _cpu_ms
    times: dict[str, list[float]] = {name: [] for name in runners}
    start = time.monotonic()
    for index in range(rounds):
        if index >= at_least and time.monotonic() - start > seconds:
            break
        for name, runner in runners.items():
            times[name].append(clock(runner, x))
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
def _flushing() -> Iterator[None]:
    """Denormal numbers are zero inside; afterwards as before, which torch does not tell."""
    before = float(torch.tensor(1e-20) * torch.tensor(1e-20)) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


_RUNS, _WARMUP, _SECONDS = 9, 2, 5.0  # a picture of shares needs no more


def layer_records(
    models: Mapping[str, nn.Module], example: Example, timing: LatencyTest
) -> list[dict[str, Any]]:
    """One row a network and layer: network, layer, kind, in, out, macs, params, cpu_ms.

    Layers with channels and whatever else is a module without modules in it; those have no counts.
    Milliseconds are the fewest of several passes over the timed batch on the CPU, networks in
    turns, each layer by the clock around it: what a forward computes outside of modules is in none.
    """
    tables = {name: _counted(model, example) for name, model in models.items()}
    clocks = {name: _Clocks(model, tables[name]) for name, model in models.items()}
    brief = replace(
        timing,
        runs=min(timing.runs, _RUNS),
        warmup=min(timing.warmup, _WARMUP),
        seconds=min(timing.seconds, _SECONDS),
    )
    x = Arguments.of(timing.inputs(example))
    brief.race({name: clock.run for name, clock in clocks.items()}, x)
    return [
        {"network": name, **tables[name].get(layer, {"layer": layer, "kind": kind}), "cpu_ms": ms}
        for name, clock in clocks.items()
        for layer, kind, ms in clock.fastest()
    ]


def _counted(model: nn.Module, example: Example) -> dict[str, dict[str, Any]]:
    """Rows of counts by the name of the layer."""
    given = Arguments.of(example).to(next(model.parameters()).device)
    graph = ChannelGraph.trace(model, given)
    table = CostModel(model, graph).layer_table()
    return {row["name"]: {"layer": row.pop("name"), **row} for row in map(dict, table)}


class _Clocks:
    """A copy of a network on the CPU with a clock around each of its layers."""

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
        """One pass, noted."""
        self._passes.append(defaultdict(float))
        x.call(self._model)

    def fastest(self) -> list[tuple[str, str, float]]:
        """Layers that were called, with their kind and milliseconds: others only add to them."""
        return [
            (name, self._kinds[name], round(min(one[name] for one in self._passes), 5))
            for name in self._passes[0]
        ]

    def _watch(self, name: str, module: nn.Module) -> None:
        began: list[float] = []

        def start(*_: Any) -> None:
            began.append(time.perf_counter())

        def stop(*_: Any) -> None:
            self._passes[-1][name] += (time.perf_counter() - began.pop()) * 1e3

        module.register_forward_pre_hook(start)
        module.register_forward_hook(stop)


def _inside(name: str, layers: Mapping[str, Any]) -> bool:
    """Whether it is a part of one of the layers, whose clock counts it already."""
    parts = name.split(".")
    return any(".".join(parts[:depth]) in layers for depth in range(1, len(parts)))
