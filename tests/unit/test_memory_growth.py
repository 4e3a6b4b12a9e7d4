"""A thousand steps under a penalty hold no more memory than two hundred."""

from __future__ import annotations

import ctypes
import gc
import sys
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

from prunekit.data import Data, Normalize, TensorBatches
from prunekit.methods.hinge import Annealing, Hinge
from prunekit.penalties import L1
from prunekit.rows import Rows, Slice
from prunekit.solvers import AULM, PALM
from prunekit.training import Schedule, fit

STEPS = 1000


class Leaky(PALM):
    """Keeps a copy of its rows from every step: what the test must find."""

    def after_step(self, optimizer):
        super().after_step(optimizer)
        self.past = [*getattr(self, "past", []), self.solution()]


class Growing(PALM):
    """Adds to a sum that remembers how it was computed: a graph that no object of Python holds."""

    def after_step(self, optimizer):
        super().after_step(optimizer)
        if not hasattr(self, "total"):
            self.total = torch.zeros((), requires_grad=True)
        with torch.enable_grad():
            self.total = self.total + 1.0


class Memory(ctypes.Structure):
    """The answer of glibc: what its allocator holds, in bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    )


ASK = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
if ASK is not None:
    ASK.restype = Memory
needs_glibc = pytest.mark.skipif(ASK is None, reason="needs mallinfo2 of glibc 2.33")


def data() -> Data:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2 * STEPS, 1, 4, 4, generator=draw)
    y = torch.randint(0, 3, (2 * STEPS,), generator=draw)
    plain = Normalize((0.0,), (1.0,))
    nothing = TensorBatches(x[:0], y[:0], plain)
    return Data(TensorBatches(x, y, plain), nothing, nothing, 3, (1, 4, 4))


def held() -> tuple[int, int, int]:
    """Return the tensors that Python can reach, the blocks that it allocated, and all bytes.

    Bytes are those of glibc's allocator, 0 without it; the graphs of autograd are among them.
    """
    gc.collect()
    tensors = sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())
    memory = ASK() if ASK is not None else Memory()
    return tensors, sys.getallocatedblocks(), memory.uordblks + memory.hblkhd


def growth(solver) -> tuple[int, ...]:
    """Train with the solver; return the tensors, the blocks and the bytes of 800 steps."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    blocks = [
        Rows("first", (Slice(model[0].weight),), torch.arange(1, 5), 1.0, "first"),
        Rows("second", (Slice(model[3].weight),), torch.arange(5, 8), 1.0, "second"),
    ]
    solver.bind(L1(0.01), blocks)
    seen, calls = [], []

    def loss(net, x, y):
        calls.append(None)
        if len(calls) in (200, STEPS):
            seen.append(held())
        logits = net(x)
        return nn.functional.cross_entropy(logits, y), logits

    schedule = Schedule(1, 2, partial(SGD, lr=0.01, momentum=0.9))
    groups = [{"params": [*model[0].parameters()]}, {"params": [*model[3].parameters()]}]
    fit(model, data(), schedule, solver=solver, params=groups, loss=loss)
    early, late = seen
    return tuple(after - before for before, after in zip(early, late, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        partial(AULM, inner=3, tol=1e-9, patience=5),
        partial(PALM, beta=3.0),
        partial(Hinge, annealing=Annealing(at=(0.99, 0.9))),
    ],
    ids=["aulm", "palm", "hinge"],
)
def test_memory_does_not_grow(make):
    tensors, blocks, size = growth(make())
    assert tensors <= 0 and blocks < 400 and size < 100_000, (tensors, blocks, size)


@pytest.mark.slow
def test_growth_would_be_found():
    tensors, blocks, _ = growth(Leaky(beta=3.0))
    assert tensors >= 2 * 700 and blocks > 800


@pytest.mark.slow
@needs_glibc
def test_growth_outside_of_python_would_be_found():
    tensors, blocks, size = growth(Growing(beta=3.0))
    assert tensors <= 0 and blocks < 400, "no object of Python shows it"
    assert size > 300_000
