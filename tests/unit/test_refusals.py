"""What `prunekit.prune` refuses: one line each, which says what and why, and nothing is changed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import prunekit
from prunekit.errors import PrunekitError, SurgeryError
from prunekit.graph import ChannelGraph
from prunekit.surgery import KeptChannels, Narrow, load_weights

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Conv2d(6, 4, 3))


class Mapped(nn.Module):
    """Computes where nobody sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(torch.vmap(lambda one: one * 2)(x))


class Decoded(nn.Module):
    """A layer with weights in the middle that no rule follows, and a weight of its own."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.kind = nn.Linear(5, 8), kind
        if kind == "lstm":
            self.middle = nn.LSTM(8, 8, batch_first=True)
        elif kind == "bilinear":
            self.middle = nn.Bilinear(8, 8, 8)
        else:
            self.weight = nn.Parameter(torch.randn(8, 8))
        self.hidden, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        if self.kind == "lstm":
            x = self.middle(x)[0]
        elif self.kind == "bilinear":
            x = self.middle(x, x)
        elif self.kind == "einsum":
            x = torch.einsum("bti,io->bto", x, self.weight)
        else:
            x = x @ self.weight
        return self.last(self.hidden(x).relu())


def line(model: object, example: object = X, **settings: object) -> str:
    """The line with which a call is refused."""
    with pytest.raises(PrunekitError) as caught:
        prunekit.prune(model, example, **({"keep": 0.5} | settings))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("example", "parts"),
    [
        (torch.zeros(1, 4, 8, 8), ["Sequential fails", "(1, 4, 8, 8)", "at 0, Conv2d(3, 8"]),
        (torch.zeros(1, 3, 2, 2), ["(1, 3, 2, 2)", "Kernel size"]),
        (torch.zeros(0, 3, 8, 8), ["empty", "(0, 3, 8, 8)"]),
        ((X, X), ["takes (input)", "2 tensor(s)"]),
        (X.double(), ["double", "float"]),
        (X.to("meta"), ["example", "meta device"]),
        (None, ["NoneType", "must be a tensor"]),
        ({"x": X}, ["takes (input)", "holds x=", "dict with their names"]),
        ((1, 3, 8, 8), ["int, int", "must be a tensor"]),
    ],
)
def test_an_example_that_is_none(example, parts):
    found = line(net(), example)
    assert all(part in found for part in parts), found


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        (lambda: Mapped(), ["test_refusals.py:", "torch.vmap", "not seen"]),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), ["lazy", "run one batch"]),
        (lambda: net().to("meta"), ["model", "meta device"]),
        (lambda: torch.jit.trace(net(), X), ["torch.jit"]),
        (lambda: nn.Conv2d, ["type", "torch.nn.Module"]),
        (lambda: None, ["NoneType", "torch.nn.Module"]),
        (lambda: net()[:1], ["no channel of this network can be removed", "leave the network"]),
        (lambda: nn.Flatten(), ["no channel of this network can be removed", "no layers"]),
        (lambda: net().half(), ["fails on an example", "float"]),
    ],
)
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_a_model_that_cannot_be_cut(model, parts):
    found = line(model())
    assert all(part in found for part in parts), found


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"keep": "half"}, ["keep='half'", "number"]),
        ({"keep": float("nan")}, ["keep=nan", "number"]),
        ({"keep": -1}, ["keep=-1", "above 0"]),
        ({"ignore": "0"}, ["ignore='0'", "is not a list; write [0] for one"]),
        ({"ignore": ["*"]}, ["['*']", "no group"]),
        ({"ignore": ["0", "2"]}, ["no group"]),
        ({"over_norms": "yes"}, ["over_norms='yes'", "true, false"]),
    ],
)
def test_settings(settings, parts):
    found = line(net(), **settings)
    assert all(part in found for part in parts), found


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_cut_as_they_are(dtype):
    found = prunekit.prune(net().to(dtype), X.to(dtype), keep=0.5)
    assert {p.dtype for p in found.model.parameters()} == {dtype}
    assert found.agreement.worst < 1e-4 and found.widths["0"] == (8, 4)


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("lstm", "middle", "LSTM"),
        ("bilinear", "middle", "Bilinear"),
        ("einsum", "weight", "einsum at test_refusals.py:"),
        ("matmul", "weight", "matmul at test_refusals.py:"),
    ],
)
def test_weights_that_are_not_followed_stay_and_are_named(kind, name, why):
    model, example = Decoded(kind), torch.randn(2, 4, 5)
    found = prunekit.prune(model, example, keep=0.5)
    assert found.widths["first"] == (8, 8) and found.widths["hidden"] == (8, 4)
    assert any(note.startswith(name) and why in note and "keep" in note for note in found.notes)
    assert any(note.startswith("first: ") and why in note for note in found.notes)
    graph = ChannelGraph.trace(model, example)
    assert why in graph.frozen[name] and not graph.outs.get(name, torch.zeros(1)).any()
    assert f"stays: {name}: " in str(graph)


def test_surgery_on_a_layer_that_is_not_followed():
    model = Decoded("lstm")
    edit = Narrow({"middle": KeptChannels(ins=None, outs=(0, 1), widths=(8, 8))})
    with pytest.raises(SurgeryError) as caught:
        edit.apply(model)
    assert "LSTM" in str(caught.value) and "\n" not in str(caught.value)


def test_a_state_dict_that_does_not_fit_lists_every_name(tmp_path):
    model, state = net(), net().state_dict()
    state["0.weight"], state["9.weight"] = state["0.weight"][:3], state.pop("2.bias")
    torch.save(state, tmp_path / "w.pt")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(PrunekitError) as caught:
        load_weights(model, tmp_path / "w.pt")
    found = str(caught.value)
    assert "\n" not in found and "(3, 3, 3, 3)" in found and "(8, 3, 3, 3)" in found
    assert all(name in found for name in ("0.weight", "9.weight", "2.bias"))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_least_width_is_told():
    found = prunekit.prune(net(), X, keep=0.001)
    assert found.widths["0"] == (8, 1) and found.widths["2"] == (6, 1)
    assert any("every group keeps the least width" in note for note in found.notes)
