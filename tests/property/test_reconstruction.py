"""Refitting, on random networks put together from all patterns."""

from __future__ import annotations

import laws
import networks
import torch
from blocks import MORE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.graph.arguments import Arguments
from prunekit.surgery.reconstruction.least_squares import LeastSquares, refit
from prunekit.surgery.reconstruction.norms import InputStatistics, renormalise

SHARES = st.sampled_from([0.3, 0.6])


@st.composite
def cuts(draw: st.DrawFn) -> laws.Cut:
    """A random network and a random cut."""
    net = networks.Network(**draw(networks.settings((*networks.BLOCKS, *MORE))))
    return laws.Cut.random(net, (net.example,), draw(st.integers(0, 2**16)), draw(SHARES), 1)


def batches(example: torch.Tensor) -> list[Arguments]:
    """Three batches of inputs, eight each."""
    generator = torch.Generator().manual_seed(0)
    shape = (24, *example.shape[1:])
    inputs = torch.randn(shape, generator=generator, dtype=example.dtype)
    return [Arguments.of(chunk) for chunk in inputs.chunk(3)]


@settings(max_examples=12, deadline=None)
@given(cuts())
def test_no_layers_error_grows_and_norms_know_what_they_read(cut: laws.Cut) -> None:
    narrow, chunks = laws.twin(cut.narrow).eval(), batches(cut.dense.example)
    least_squares = LeastSquares(ridge=0.01)
    refitted = refit(cut.dense, narrow, cut.graph, cut.drop, lambda: chunks, least_squares)
    for layer in refitted.layers:
        assert layer.after <= layer.before * (1 + 1e-9) + 1e-12
    read: dict[str, list[torch.Tensor]] = {name: [] for name in refitted.norms}
    for name, inputs in read.items():
        norm = narrow.get_submodule(name)
        norm.register_forward_pre_hook(lambda _, args, inputs=inputs: inputs.append(args[0]))
    with torch.no_grad():
        for chunk in chunks:
            chunk.call(narrow)
    for name, inputs in read.items():
        norm, values = narrow.get_submodule(name), torch.cat(inputs).movedim(1, 0).flatten(1)
        torch.testing.assert_close(norm.running_mean, values.mean(1))
        torch.testing.assert_close(norm.running_var, values.var(1))


class Squeezed(nn.Module):
    """Convolutions with norms of random statistics and scales."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.conv1, self.conv2 = nn.Conv2d(3, width, 3), nn.Conv2d(width, 4, 3, bias=False)
        self.norm = nn.BatchNorm2d(4)
        networks.randomise(self)
        self.double().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv2(self.conv1(x).relu()))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 9))
def test_new_statistics_do_not_change_what_a_norm_puts_out(seed: int, width: int) -> None:
    network = Squeezed(seed, width)
    x = torch.randn(9, 3, 7, 7, dtype=torch.float64)
    before = network(x)
    statistics = InputStatistics()
    for chunk in network.conv2(network.conv1(x).relu()).chunk(3):
        statistics.add(chunk)
    renormalise(network.norm, statistics)
    torch.testing.assert_close(network(x), before)
    torch.testing.assert_close(network.train()(x), before, rtol=0.02, atol=0.02)  # biased
