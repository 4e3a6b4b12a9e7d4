"""Images that say little or nothing: few, all alike, constant, behind dead layers, not finite."""

from __future__ import annotations

import pytest
import torch
from refits import Block, cut_and_refit, trained
from torch import Tensor, nn

import prunekit
from prunekit.errors import DataError
from prunekit.surgery.reconstruction.least_squares import LeastSquares
from prunekit.surgery.reconstruction.ridge import GramRegression, RowRegression


def prune(network: nn.Module, x: Tensor, batch: int, **options: object) -> prunekit.Pruned:
    """Cut to half and refit on these inputs, in batches."""
    data = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(batch)]
    return prunekit.prune(network, x[:1], keep=0.5, data=data, **options)


def difference(found: prunekit.Pruned, x: Tensor) -> float:
    """Return how far the narrow network is from the dense one on these inputs."""
    with torch.no_grad():
        return float((found.model.eval()(x) - found.dense.eval()(x)).norm())


@pytest.mark.parametrize("count", [1, 2, 5])
def test_fewer_rows_than_unknowns_still_bring_the_outputs_nearer(count: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(count, 3, 3, 3)  # nine positions an image, 18 unknowns and more
    network = trained(Block(), torch.randn(60, 3, 8, 8))
    plain, refitted = (prune(network, x, count, reconstruct=r) for r in ("none", "auto"))
    layers = {layer.layer: layer for layer in refitted.refitted.layers}
    assert (layers["conv2"].rows < layers["conv2"].unknowns) == (count == 1)
    assert all(layer.after <= layer.before * (1 + 1e-4) for layer in layers.values())
    assert difference(refitted, x) < difference(plain, x)


def test_images_that_are_all_alike_are_like_one() -> None:
    torch.manual_seed(0)
    network, image = trained(Block(), torch.randn(60, 3, 8, 8)), torch.randn(1, 3, 8, 8)
    one, many = (prune(network, image.repeat(n, 1, 1, 1), n).model.eval() for n in (1, 20))
    with torch.no_grad():
        torch.testing.assert_close(one(image), many(image), rtol=1e-3, atol=1e-4)


def test_constant_images_bring_the_outputs_to_those_of_the_dense_network() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    x = torch.full((30, 3), 0.7)
    plain, refitted = (prune(network, x, 10, reconstruct=r) for r in ("none", "auto"))
    assert torch.equal(refitted.model[2].weight, plain.model[2].weight)
    with torch.no_grad():
        torch.testing.assert_close(refitted.model(x), network(x))


def test_a_dead_layer_leaves_the_weights_behind_it_as_they_are() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
    ).eval()
    nn.init.constant_(network[0].bias, -100.0)  # nothing passes the activation
    x = torch.randn(20, 3, 8, 8)
    plain, refitted = (prune(network, x, 10, reconstruct=r) for r in ("none", "auto"))
    assert torch.equal(refitted.model[2].weight, plain.model[2].weight)
    with torch.no_grad():
        torch.testing.assert_close(refitted.model.eval()(x), network(x), rtol=1e-4, atol=1e-4)
        assert all(bool(t.isfinite().all()) for t in refitted.model.state_dict().values())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named_with_a_way_out(value: float) -> None:
    torch.manual_seed(0)
    network, x = trained(Block(), torch.randn(60, 3, 8, 8)), torch.randn(30, 3, 8, 8)
    x[17, 1, 2, 3] = value
    with pytest.raises(DataError, match=r"cannot be refitted.*reconstruct=none") as caught:
        prune(network, x, 10, check=False)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [7, 250, 300, 501])
def test_batches_are_cut_so_that_nearly_all_images_are_used(count: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    used = prune(network, torch.randn(count, 3), count).refitted.examples
    assert count - 3 < used <= count


@pytest.mark.parametrize("kind", [GramRegression, RowRegression])
def test_a_ridge_that_rounding_would_defeat_is_raised(kind: type) -> None:
    """Columns that are equal in float32, with next to no ridge."""
    torch.manual_seed(0)
    column = 100 + torch.randn(1, 50, 1)
    x = column.repeat(1, 1, 6)
    regression = kind()
    regression.add(x, column, None)
    old = torch.zeros(1, 6, 1)
    fit = regression.solve(old, torch.zeros(1, 1, dtype=torch.double), 1e-18)
    assert bool(fit.matrix.isfinite().all())
    torch.testing.assert_close(
        x.double() @ fit.matrix + fit.intercept, column.double(), rtol=1e-4, atol=1e-4
    )


def test_single_precision_rows_give_what_double_ones_do() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6000, 12) @ torch.randn(12, 12) + 5
    y, old = torch.randn(2, 6000, 3), torch.randn(2, 12, 3)
    fits = []
    for precision in (torch.float32, torch.float64):
        regression = GramRegression()
        for part in range(0, 6000, 1500):
            rows = slice(part, part + 1500)
            regression.add(x[:, rows].to(precision), y[:, rows].to(precision), None)
        fits.append(regression.solve(old, torch.zeros(2, 3, dtype=torch.double), 1e-3))
    torch.testing.assert_close(fits[0].matrix, fits[1].matrix, rtol=1e-3, atol=1e-4)
    assert fits[0].after == pytest.approx(fits[1].after, rel=1e-4)


def test_a_layer_without_images_of_its_own_precision_is_refitted() -> None:
    """Half precision has few digits: its products are summed in single precision."""
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8, dtype=torch.bfloat16)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).bfloat16()
    refitted = cut_and_refit(network, x, LeastSquares(), keep=0.5)[2]
    assert refitted.layers[0].after < refitted.layers[0].before
