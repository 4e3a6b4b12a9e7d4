"""The reasons of others in plain words, of errors that torch and Python really raise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from prunekit.reasons import reason_of

OF_PROGRAMS = ("Error", "argument", "mat1", "dimension", "'str'", "unpack", "0x")


def unpacked(values: list[int]) -> None:
    _first, _second, _third = values


RAISED: dict[str, tuple[Callable[[], object], str]] = {
    "kernel": (
        lambda: nn.Conv2d(1, 1, 5)(torch.zeros(1, 1, 3, 4)),
        "a kernel of 5 x 5 is larger than the maps of 3 x 4 that it gets",
    ),
    "linear": (
        lambda: nn.Linear(7, 2)(torch.zeros(3, 5)),
        "a linear layer reads 7 values and gets 5",
    ),
    "channels": (
        lambda: nn.Conv2d(4, 1, 1)(torch.zeros(1, 3, 2, 2)),
        "a convolution reads 4 channels and gets 3",
    ),
    "pooling": (
        lambda: nn.MaxPool2d(4)(torch.zeros(1, 1, 2, 2)),
        "the maps become smaller than one pixel",
    ),
    "single": (
        lambda: nn.BatchNorm2d(3)(torch.zeros(1, 3, 1, 1)),
        "a norm layer gets a single value",
    ),
    "view": (lambda: torch.zeros(6).view(4, 2), "sizes do not fit each other"),
    "too few": (lambda: unpacked([1, 2]), "3 values are needed, not 2"),
    "too many": (lambda: unpacked([1] * 5), "only 3 values are needed"),
    "negative": (lambda: nn.Conv2d(1, -4, 3), "a size of -4 is below zero"),
    "size": (lambda: nn.Linear(3, 2.5), "a size is no whole number"),
    "memory": (lambda: torch.zeros(1 << 60), "it needs more memory than there is"),
    "position": (lambda: [][3], "a position lies outside of what it counts"),
    "compared": (lambda: "fast" < 1.0, "text stands where a number is needed"),
    "missing key": (lambda: {}["a"], "'a' is missing"),
}


@pytest.mark.parametrize("name", RAISED)
def test_words_of_torch_and_python_are_replaced(name):
    fail, words = RAISED[name]
    with pytest.raises(Exception) as caught:
        fail()
    said = reason_of(caught.value)
    assert said == words
    assert not any(word in said for word in OF_PROGRAMS)


def test_other_reasons_stay_and_are_one_line():
    assert reason_of(ValueError("Invalid learning rate: -1\nsee the manual")) == (
        "Invalid learning rate: -1"
    )
    assert reason_of(MemoryError()) == "it needs more memory than there is"
    assert reason_of(RecursionError("maximum depth")) == "it is nested too deeply"
    assert reason_of(RuntimeError()) == "a value is not one that it takes"
    assert reason_of(TypeError("no")) == "a value has another type than is needed (no)"
