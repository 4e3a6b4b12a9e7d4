"""How long networks take, timed in turns so that the machine's moods hit all of them alike."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prunekit.checks import integer, number

_FEWEST = 5  # a median of fewer runs says nothing


@dataclass(frozen=True)
class Latency:
    """Milliseconds per batch: median, lower and upper quartile over `runs` timed runs."""

    median_ms: float
    q1: float
    q3: float
    runs: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Latency:
        """Summarise times in milliseconds, at least two."""
        q1, median, q3 = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, q1, q3, len(times))


@dataclass(frozen=True)
class LatencyTest:
    """How to time networks: batch, CPU threads, rounds, and a limit for all of it together.

    After `warmup` rounds and at least five timed ones the test stops early once about `seconds`
    are used up. `threads` is torch's intra-op count and is set back afterwards.
    """

    threads: int = 1
    batch: int = 1
    runs: int = 50
    warmup: int = 10
    seconds: float = 60.0

    def __post_init__(self) -> None:
        integer("latency.threads", self.threads, at_least=1)
        integer("latency.batch", self.batch, at_least=1)
        integer("latency.runs", self.runs, at_least=_FEWEST)
        integer("latency.warmup", self.warmup, at_least=0)
        number("latency.seconds", self.seconds, above=0)

    def run(
        self,
        models: Mapping[str, nn.Module],
        example: Tensor,
        device: str | torch.device = "cpu",
    ) -> dict[str, Latency]:
        """Time one forward pass of every model on the same random batch, in turns A B A B.

        `example` gives the shape, batch dimension first; its own batch size does not count.
        Copies of the models run in evaluation and inference mode on `device`.
        """
        source = torch.Generator().manual_seed(0)
        x = torch.rand(self.batch, *example.shape[1:], generator=source).to(device)
        copies = {name: copy.deepcopy(model).to(device).eval() for name, model in models.items()}
        with _threads(self.threads), torch.inference_mode():
            _rounds(copies, x, rounds=self.warmup, at_least=1, seconds=self.seconds / 4)
            times = _rounds(copies, x, rounds=self.runs, at_least=_FEWEST, seconds=self.seconds)
        return {name: Latency.of(found) for name, found in times.items()}


def _rounds(
    models: Mapping[str, nn.Module], x: Tensor, *, rounds: int, at_least: int, seconds: float
) -> dict[str, list[float]]:
    """Milliseconds per model over `rounds` rounds, fewer once the time is used up."""
    clock = _gpu_ms if x.is_cuda else _cpu_ms
    times: dict[str, list[float]] = {name: [] for name in models}
    start = time.monotonic()
    for index in range(rounds):
        if index >= at_least and time.monotonic() - start > seconds:
            break
        for name, model in models.items():
            times[name].append(clock(model, x))
    return times


def _cpu_ms(model: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    model(x)
    return (time.perf_counter() - start) * 1e3


def _gpu_ms(model: nn.Module, x: Tensor) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    model(x)
    end.record()
    torch.cuda.synchronize(x.device)
    return start.elapsed_time(end)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
