"""Refitting, on random networks put together from all patterns."""

from __future__ import annotations

import laws
import networks
import torch
from blocks import MORE
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunekit.graph import ChannelGraph
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


@settings(max_examples=8, deadline=None)
@given(cuts())
def test_where_nothing_was_removed_nothing_changes(cut: laws.Cut) -> None:
    twin, chunks = laws.twin(cut.dense).eval(), batches(cut.dense.example)
    nothing = torch.zeros_like(cut.drop)
    refitted = refit(cut.dense, twin, cut.graph, nothing, lambda: chunks, LeastSquares())
    assert not refitted.layers and not refitted.norms and not refitted.edits
    for a, b in zip(cut.dense.state_dict().values(), twin.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@settings(max_examples=15, deadline=None)
@given(
    kept=st.integers(1, 4),
    lost=st.integers(1, 4),
    outputs=st.integers(1, 5),
    kernel=st.sampled_from([1, 3]),
    seed=st.integers(0, 2**16),
)
def test_linear_combinations_are_restored_as_the_ridge_vanishes(
    kept: int, lost: int, outputs: int, kernel: int, seed: int
) -> None:
    """The lost channels are sums of kept ones and constants, without padding at the reader."""
    torch.manual_seed(seed)
    front, reader = nn.Conv2d(3, kept + lost, 1), nn.Conv2d(kept + lost, outputs, kernel)
    network = nn.Sequential(front, reader).double().eval()
    mixture = torch.randn(lost, kept, dtype=torch.float64)
    with torch.no_grad():
        front.weight[kept:] = torch.einsum("lk,kchw->lchw", mixture, front.weight[:kept])
        x = torch.randn(24, 3, 6, 6, dtype=torch.float64)
        dense = network(x)
        narrow = nn.Sequential(nn.Conv2d(3, kept, 1), nn.Conv2d(kept, outputs, kernel)).double()
        narrow[0].weight.copy_(front.weight[:kept])
        narrow[0].bias.copy_(front.bias[:kept])
        narrow[1].weight.copy_(reader.weight[:, :kept])
        narrow[1].bias.copy_(reader.bias)
    graph = ChannelGraph.trace(network, x[:1])
    removed = torch.zeros(graph.count, dtype=torch.bool)
    removed[graph.outs["0"][kept:]] = True
    errors = []
    for ridge in (1e-1, 1e-5, 1e-9):
        twin, chunks = laws.twin(narrow).eval(), [Arguments.of(part) for part in x.chunk(3)]
        refit(network, twin, graph, removed, lambda c=chunks: c, LeastSquares(ridge=ridge))
        errors.append(float(((twin(x) - dense).norm() / dense.norm()).detach()))
    assert errors[2] < 1e-5 and errors[2] <= errors[0] + 1e-12


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
