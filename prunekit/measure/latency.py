"""How long networks take, timed in turns so that the machine's moods hit all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from prunekit.export import require_onnx
from prunekit.graph.arguments import Arguments, Example
from prunekit.measure.engines import ENGINES, Runner
from prunekit.schema import Checked, Count, Filled, OneOf, Positive, Range, Whole
from prunekit.validate import choice

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
