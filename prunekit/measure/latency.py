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


def compare_latency(
    models: Mapping[str, nn.Module],
    shape: Sequence[int],
    *,
    device: str | torch.device = "cpu",
    threads: int = 1,
    batch: int = 1,
    runs: int = 50,
    warmup: int = 10,
    seconds: float = 60.0,
) -> dict[str, Latency]:
    """Time one forward pass of every model on the same random batch, in turns A B A B.

    `shape` is that of one example, without the batch dimension. Copies of the models run in
    evaluation and inference mode on `device`; `threads` is torch's intra-op count and is set back
    afterwards. After about `seconds` the timing stops early, yet never before five rounds.
    """
    for name, value in (("threads", threads), ("batch", batch)):
        integer(f"latency.{name}", value, at_least=1)
    integer("latency.runs", runs, at_least=_FEWEST)
    integer("latency.warmup", warmup, at_least=0)
    number("latency.seconds", seconds, above=0)
    x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    copies = {name: copy.deepcopy(model).to(device).eval() for name, model in models.items()}
    with _threads(threads), torch.inference_mode():
        _rounds(copies, x, rounds=warmup, at_least=1, seconds=seconds / 4)
        times = _rounds(copies, x, rounds=runs, at_least=_FEWEST, seconds=seconds)
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
