"""One network pruned by one tool, in a process of its own: every figure of a row of the table.

    python -m scripts.bench.covered TOOL NETWORK ROW.json SECONDS GIGABYTES

The row is written after every step, so it also tells how far a network came that did not make it.
"""

from __future__ import annotations

import copy
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from prunekit.criteria import L2Norm
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.runs.files import write_json
from prunekit.selection import PerLayer
from prunekit.surgery import Narrow
from prunekit.surgery.equivalence import compare, randomise_constants
from scripts.bench.subjects import Subject, classes

KEEP = 0.5
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
WARM_UP = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))


class Silencing(Protocol):
    """Tells what the dense network without the removed channels computes."""

    inexact: tuple[str, ...]

    def silencer(self, model: nn.Module, drop: Tensor) -> AbstractContextManager[None]:
        """Inside it, `model` computes as if it had been cut."""


@dataclass(frozen=True, eq=False)
class Pruned:
    """The result of a tool: the narrow network, and the one that it should be equal to."""

    narrow: nn.Module
    reference: Callable[[], nn.Module]
    graph: Silencing
    drop: Tensor


class Row:
    """The figures so far. Steps are named before they start; the first to fail is the outcome."""

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = dict(values)

    def add(self, **values: Any) -> None:
        """Write more figures down."""
        self.values.update(values)
        write_json(self.path, self.values)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Name a part that may fail; later parts are tried all the same."""
        self.add(step=name)
        try:
            yield
        except Exception as error:
            reason = f"{name}: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            self.add(outcome=self.values.get("outcome") or reason[:200])

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Measure the seconds of a part, under its name."""
        start = time.perf_counter()
        yield
        self.add(**{name: round(time.perf_counter() - start, 4)})


def main() -> int:
    """Measure, and write the row after every step."""
    tool, name, path, seconds, gigabytes = sys.argv[1:]
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (int(float(gigabytes) * 2**30),) * 2)
    subject = Subject.named(name)
    row = Row(Path(path), {"network": name, "tool": tool})
    with row.step("build"):
        model = randomise_constants(subject.build()).eval()
        row.add(params=count(model), layers=sum(isinstance(m, LAYERS) for m in model.modules()))
        pruned = None
        with row.step("cut"), deadline(float(seconds)):
            pruned = TOOLS[tool](subject, model, row)
        if pruned is not None:
            measure(subject, model, pruned, row)
    row.add(step="done", outcome=row.values.get("outcome") or "ok")
    return 0


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def measure(subject: Subject, model: nn.Module, pruned: Pruned, row: Row) -> None:
    """Measure the narrow network: sizes, forward, a training step, the gap to the masked one."""
    narrow = pruned.narrow
    row.add(cut=cut_layers(model, narrow), left=count(narrow))
    side, small = subject.sides(row.values["params"])
    batch = noise(subject, side)
    with row.step("forward"), torch.no_grad():
        shape = tuple(narrow.eval()(batch).shape)
        row.add(forward="yes" if shape == (len(batch), classes(model)) else f"shape {shape}")
    with row.step("train step"):
        step(copy.deepcopy(narrow), batch)
        row.add(train_step="yes")
    dense = pruned.reference()
    with row.step("check"), row.timed("checked"):
        check = compare(dense, narrow, pruned.graph, pruned.drop, batch, float("inf"))
        row.add(side=side, **gaps(check, "single"))
    with row.step("check in double precision"):
        wide = (dense.double(), narrow.double())
        inputs = noise(subject, small).double()
        check = compare(*wide, pruned.graph, pruned.drop, inputs, float("inf"))
        row.add(side_double=small, **gaps(check, "double"))


def gaps(check: Any, name: str) -> dict[str, float | str]:
    """Return the relative differences in eval and in train mode."""
    return {
        f"eval_{name}": float(f"{check.eval.relative:.2e}"),
        f"train_{name}": float(f"{check.train.relative:.2e}") if check.train else check.note,
    }


def noise(subject: Subject, side: int) -> Tensor:
    """Return two images."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, side, side, generator=generator)


def ours(subject: Subject, model: nn.Module, row: Row) -> Pruned:
    """Cut half of every group by L2 norm, with prunekit."""
    small = copy.deepcopy(WARM_UP)
    cut(small, small, ChannelGraph.trace(small, torch.zeros(1, 3, 8, 8)))
    narrow = copy.deepcopy(model)
    example = torch.zeros(1, 3, subject.side, subject.side)
    with row.timed("traced"):
        graph = ChannelGraph.trace(model, example)
    with row.timed("pruned"):
        drop = cut(model, narrow, graph)
    row.add(notes=len(graph.notes))
    return Pruned(narrow, lambda: model, graph, drop)


def cut(model: nn.Module, narrow: nn.Module, graph: ChannelGraph) -> Tensor:
    """Score `model`, cut `narrow`, which is equal to it; returns the dropped channels."""
    scores = L2Norm().scores(model, graph, None)
    chosen = PerLayer(keep=KEEP).choose(scores, graph, CostModel(model, graph))
    drop = chosen.removed
    Narrow.of(graph, drop).apply(narrow)
    return drop


def theirs(subject: Subject, model: nn.Module, row: Row) -> Pruned:
    """Cut half of every group by L2 norm, with Torch-Pruning."""
    from scripts.bench import peers

    peers.prune(copy.deepcopy(WARM_UP), torch.zeros(1, 3, 8, 8), [], KEEP)
    narrow = copy.deepcopy(model)
    example = torch.zeros(1, 3, subject.side, subject.side)
    with row.timed("traced"):
        pruner = peers.pruner(narrow, example, heads(narrow), KEEP)
    with row.timed("pruned"):
        pruner.step()
    masked = peers.Masked(pruner.pruning_history(), model, example, heads, KEEP)
    return Pruned(narrow, masked.network, masked, torch.zeros(1, dtype=torch.bool))


def heads(model: nn.Module) -> list[nn.Module]:
    """Return the layers that put out the classes, auxiliary ones too."""
    width = classes(model)
    return [
        module
        for module in model.modules()
        if getattr(module, "out_features", getattr(module, "out_channels", None)) == width
        and isinstance(module, LAYERS)
    ]


def step(model: nn.Module, batch: Tensor) -> None:
    """Make one update by SGD with all outputs of train mode.

    Raises FloatingPointError where a parameter is not finite afterwards.
    """
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    outputs = model(batch)
    parts = [outputs] if isinstance(outputs, Tensor) else [*outputs]
    labels = torch.zeros(len(batch), dtype=torch.long)
    sum(nn.functional.cross_entropy(part, labels) for part in parts).backward()
    optimizer.step()
    broken = [name for name, p in model.named_parameters() if not bool(p.isfinite().all())]
    if broken:
        raise FloatingPointError(f"{len(broken)} parameters are not finite, {broken[0]} first")


def cut_layers(dense: nn.Module, narrow: nn.Module) -> int:
    """Return how many convolutions and linear layers have a smaller weight than before."""
    after = dict(narrow.named_modules())
    return sum(
        module.weight.shape != after[name].weight.shape
        for name, module in dense.named_modules()
        if isinstance(module, LAYERS)
    )


def count(model: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


TOOLS = {"prunekit": ours, "torch-pruning": theirs}

if __name__ == "__main__":
    sys.exit(main())
