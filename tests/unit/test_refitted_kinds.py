"""Layers that are no plain modules, or are called more than once: each against least squares."""

from __future__ import annotations

import warnings

import pytest
import torch
from refits import EXACT, cut_and_refit
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import prunekit
from prunekit.methods.hinge import Placement, fold, layers_with_matrix
from prunekit.stages.network import insert_matrices
from prunekit.surgery.reconstruction.least_squares import LeastSquares


class Given(nn.Module):
    """Gives parameters of its own to functions, as user code does."""

    def __init__(self, bias: bool = True, norm: bool = False) -> None:
        super().__init__()
        self.front = nn.Conv2d(3, 6, 1)
        self.weight = nn.Parameter(torch.randn(4, 6, 3, 3) / 7)
        self.bias = nn.Parameter(torch.randn(4)) if bias else None
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(self.front(x).tanh(), self.weight, self.bias, padding=1))


class Lent(nn.Module):
    """Gives the weight of a layer to a function, with a padding of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.conv = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.front(x).tanh(), self.conv.weight, self.conv.bias, padding=1)


class Doubled(nn.Conv2d):
    """A user's convolution with a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(2 * x, self.weight, self.bias, padding=1)


def behind(layer: nn.Module) -> nn.Sequential:
    """The layer behind one whose channels are removed."""
    return nn.Sequential(nn.Conv2d(3, 6, 1), nn.Tanh(), layer)


def old_weight_norm() -> nn.Module:
    """A layer with the older hook, which torch warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(nn.Conv2d(6, 4, 3, padding=1))


KINDS = {
    "weight norm": lambda: behind(parametrizations.weight_norm(nn.Conv2d(6, 4, 3, padding=1))),
    "older weight norm": lambda: behind(old_weight_norm()),
    "user class": lambda: behind(Doubled(6, 4, 3)),
    "function": Given,
    "function under a norm": lambda: Given(bias=False, norm=True),
    "lent": Lent,
}
LAST = {"function": "weight", "function under a norm": "weight", "lent": "conv"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_effective_weight_solves_least_squares(kind: str) -> None:
    """The patches come from `unfold`; the solution has a column of ones for the intercept."""
    torch.manual_seed(0)
    network = KINDS[kind]().double()
    x = torch.randn(24, 3, 6, 6, dtype=torch.double)
    last = LAST.get(kind, "2")
    narrow, _, refitted = cut_and_refit(network, x, EXACT, keep=0.5, ignore=[last])
    assert [layer.layer for layer in refitted.layers] == [last] and not refitted.notes
    with torch.no_grad():
        hidden = narrow[:2](x) if isinstance(narrow, nn.Sequential) else narrow.front(x).tanh()
        patches = F.unfold(hidden, 3, padding=1).transpose(1, 2).flatten(0, 1)
        rows = torch.cat([patches, torch.ones(len(patches), 1, dtype=torch.double)], 1)
        target, output = (net(x).movedim(1, -1).reshape(-1, 4) for net in (network, narrow))
        best = rows @ torch.linalg.lstsq(rows, target).solution
    torch.testing.assert_close(output, best, rtol=1e-6, atol=1e-6)


class Repeated(nn.Module):
    """Calls one layer twice; the second call reads what the first put out."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.shared = nn.Linear(4, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.shared(self.enter(x).tanh())
        return self.head(self.shared(y.tanh()).tanh())


def test_calls_of_one_layer_are_stacked() -> None:
    """Rows of the second call are what the cut network has there before the layer is refitted."""
    torch.manual_seed(0)
    network, x = Repeated().double().eval(), torch.randn(90, 4, dtype=torch.double)
    pruned = prunekit.prune(network, x[:2], keep=0.5, absorb=False)
    narrow, _, refitted = cut_and_refit(network, x, EXACT, keep=0.5)
    kept = (~pruned.masks.removed[pruned.graph.outs["shared"]]).nonzero().flatten()
    inputs, targets = [], []
    dense_in, narrow_in = network.enter(x).tanh(), pruned.model.enter(x).tanh()
    with torch.no_grad():
        for _ in range(2):
            inputs.append(narrow_in)
            targets.append(network.shared(dense_in)[:, kept])
            dense_in, narrow_in = (
                net.shared(value).tanh()
                for net, value in ((network, dense_in), (pruned.model, narrow_in))
            )
        rows = torch.cat([torch.cat(inputs), torch.ones(180, 1, dtype=torch.double)], 1)
        solution = torch.linalg.lstsq(rows, torch.cat(targets)).solution
    assert refitted.layers[0].rows == 180
    torch.testing.assert_close(narrow.shared.weight.T, solution[:-1], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(narrow.shared.bias, solution[-1], rtol=1e-6, atol=1e-6)


class Unfit(nn.Module):
    """Layers whose weights cannot be rewritten, behind one that loses channels."""

    def __init__(self) -> None:
        super().__init__()
        self.front, self.first = nn.Linear(4, 8), nn.Linear(8, 6)
        self.spectral = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.tied = nn.Linear(6, 6)
        self.twin = nn.Linear(6, 6)
        self.twin.weight = self.tied.weight
        self.scale = nn.Parameter(torch.ones(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(self.front(x).tanh()).tanh()
        y = self.twin(self.tied(self.spectral(y)).tanh())
        return F.linear(y, self.scale)


def test_what_cannot_be_rewritten_is_told_with_the_reason() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 4)
    _, _, refitted = cut_and_refit(Unfit(), x, LeastSquares(), keep=0.5, ignore=["[!f]*"])
    assert [layer.layer for layer in refitted.layers] == ["first"]
    assert refitted.notes == (
        "spectral was not refitted: its weight is computed",
        "tied was not refitted: it shares its weight or bias with twin",
        "twin was not refitted: it shares its weight or bias with tied",
        "scale was not refitted: it is given to a function without a bias",
    )


def test_refitted_matrices_are_folded_into_the_same_function() -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 3, 8, 8)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 4, 3, padding=1),
    ).eval()
    insert_matrices(network, x[:1], Placement(layers={"*": "rows"}))
    assert layers_with_matrix(network)
    narrow, pruned, refitted = cut_and_refit(
        network, x, LeastSquares(), keep=0.5, criterion="matrix"
    )
    assert refitted.layers
    folded = fold(narrow, x[:4])
    with torch.no_grad():
        torch.testing.assert_close(folded.model(x), narrow(x), rtol=1e-4, atol=1e-4)
        dense = network(x)
        assert (folded.model(x) - dense).norm() < (pruned.model(x) - dense).norm()
