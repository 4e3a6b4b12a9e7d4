"""Networks whose forward branches: the cut is exact on every side, or frozen with a note.

The reference is the dense network in which hooks set the input channels to zero that the narrow
network lost.
"""

from __future__ import annotations

import math
import random
from contextlib import ExitStack, contextmanager

import laws
import numpy as np
import pytest
import torch
from patterns.base import randomise
from torch import nn
from torch.nn import functional as F

from prunekit.graph import ChannelGraph


class Net(nn.Module):
    """A convolution, `middle`, a convolution, pooling and a head.

    `a` and `b` exist only where `middle` names them, since layers that are never called freeze
    channels.
    """

    def __init__(self, middle, **own):
        super().__init__()
        self.middle = middle
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        layers = {"a": nn.Conv2d(8, 8, 1), "b": nn.Conv2d(8, 8, 3, padding=1)}
        named = middle.__code__.co_names if middle else layers
        for name, layer in {**{n: layers[n] for n in layers if n in named}, **own}.items():
            setattr(self, name, layer)
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.last(self.middle(self, x, F.relu(self.first(x)))).mean((2, 3)))


class Flagged(Net):
    def forward(self, x, turned=False, *, deep: bool = True):
        y = self.a(self.first(x)) if turned else self.b(self.first(x))
        y = y if deep else y + self.first(x)
        return self.head(self.last(y).mean((2, 3)))


class Featured(Net):
    def forward(self, x, features=False):
        first = self.first(x)
        result = self.head(self.last(self.a(first) + self.b(first)).mean((2, 3)))
        return (result, first) if features else result


def ready(net, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        randomise(net)
    return net.double().eval()


def inputs(side, width=None):
    source = torch.Generator().manual_seed(side)
    return torch.rand(2, 3, side, width or side, generator=source, dtype=torch.float64)


@contextmanager
def silenced(dense, edit):
    """Within the context, give the dense network zeros for removed input channels."""
    with ExitStack() as stack:
        for name, keep in edit.layers.items():
            layer = dense.get_submodule(name)
            if keep.ins is None or not isinstance(layer, laws.LAYERS):
                continue
            kept = torch.zeros(keep.widths[0], dtype=torch.bool)
            kept[list(keep.ins)] = True

            def hook(module, args, kept=kept):
                x = args[0]
                dim = x.ndim - 1 if isinstance(module, nn.Linear) else 1
                shape = [-1 if d == dim else 1 for d in range(x.ndim)]
                return (x * kept.to(x).reshape(shape),)

            stack.callback(layer.register_forward_pre_hook(hook).remove)
        yield


def cut(net, example, share=0.5, seed=0):
    """Cut to a share of all channels that the graph allows to remove."""
    return laws.Cut.random(net, (example,), seed, share)


@torch.no_grad()
def check(result, *calls, train=False):
    """Assert that the narrow network equals the silenced one for every call."""
    for args, kwargs in calls:
        dense, narrow = (laws.twin(one).train(train) for one in (result.dense, result.narrow))
        with silenced(dense, result.edit):
            assert laws.gap(narrow(*args, **kwargs), dense(*args, **kwargs)) < 1e-9


def check_with_gradients(result, x):
    dense, narrow = laws.twin(result.dense), laws.twin(result.narrow)
    with silenced(dense, result.edit):
        assert laws.gap(narrow(x).detach(), dense(x).detach()) < 1e-9


def sized(*sides):
    return [((inputs(*side) if isinstance(side, tuple) else inputs(side),), {}) for side in sides]


def wide(net, x, y):
    return net.a(y) if x.shape[-1] > 20 else net.b(y)


def deep(net, x, y):
    y = F.max_pool2d(y, 4)
    return net.a(y) if y.shape[3] >= 8 else net.b(y) + y


def both(net, x, y):
    height, width = x.shape[2:]
    return net.a(y) if height * width > 500 else net.b(y)


def counted(net, x, y):
    return net.a(y) if x.numel() > 3 * 1000 else net.b(y)


def padded(net, x, y):
    y = F.max_pool2d(y, 4)
    return F.pad(net.a(y), (0, 1, 0, 1)) if y.shape[2] % 2 else net.b(y) * y


def upright(net, x, y):
    return net.a(y) if y.shape[2] == y.shape[3] else net.b(y)


def shrinking(net, x, y):
    while y.shape[-1] > 8:
        y = F.max_pool2d(net.a(y), 2)
    return net.b(y)


def repeated(net, x, y):
    for _ in range(int(y.shape[-1] / 8)):
        y = net.a(y) + y
    return y


def small_only(net, x, y):
    return net.b(y) if x.size(2) < 9 else net.a(y)


def huge_only(net, x, y):
    return net.a(y) if x.shape[-1] > 700 else y


SIZES = {
    wide: (16, 20, 21, 32, 64),
    deep: (16, 31, 32, 64),
    both: (16, 23, 32),
    counted: (32, 40, 64),
    padded: (32, 36, 28),
    upright: (32, (32, 16), (16, 32)),
    shrinking: (8, 16, 32, 64),
    repeated: (8, 16, 24, 32),
    small_only: (8, 9, 32),
    huge_only: (32, 736),
}


@pytest.mark.parametrize("middle", SIZES)
def test_both_sides_of_a_branch_on_sizes_are_followed(middle):
    result = cut(ready(Net(middle)), inputs(32))
    assert any(result.edit.layers["first"].outs or ())
    check(result, *sized(*SIZES[middle]))
    assert result.graph.notes == ()


def test_a_size_that_is_looked_up_is_a_branch_too():
    def looked_up(net, x, y):
        return {32: net.a}.get(x.shape[-1], net.b)(y)

    result = cut(ready(Net(looked_up)), inputs(32))
    assert result.edit.layers["first"].outs
    check(result, *sized(16, 32, 64))


def test_a_branch_on_the_number_of_examples():
    def alone(net, x, y):
        return net.a(y) if len(x) == 1 else net.b(y) + y

    result = cut(ready(Net(alone)), inputs(16))
    assert result.edit.layers["first"].outs
    check(result, *sized(16), ((inputs(16)[:1],), {}))


@pytest.mark.parametrize("rank", [1, 3])
def test_sequences_and_volumes_have_sizes_too(rank):
    conv = (None, nn.Conv1d, None, nn.Conv3d)[rank]

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.a, self.b = conv(3, 8, 1), conv(8, 8, 1), conv(8, 8, 1)
            self.head = nn.Linear(8, 4)

        def forward(self, x):
            y = self.first(x)
            y = self.a(y) if x.shape[-1] > 6 else self.b(y)
            return self.head(y.flatten(2).mean(2))

    source = torch.Generator().manual_seed(0)
    small, large = (
        torch.rand(2, 3, *[side] * rank, generator=source, dtype=torch.float64) for side in (4, 8)
    )
    result = cut(ready(Other()), small)
    assert result.edit.layers["first"].outs
    check(result, ((small,), {}), ((large,), {}))


def test_what_goes_with_an_image_is_resized_with_it():
    class Masked(Net):
        def forward(self, x, mask):
            y = self.first(x) * mask[:, None]
            y = self.a(y) if x.shape[-1] > 20 else self.b(y)
            return self.head(self.last(y).mean((2, 3)))

    def call(side):
        return inputs(side), (inputs(side)[:, 0] > 0.5).long()

    net = ready(Masked(None))
    graph = ChannelGraph.trace(net, call(32))
    assert graph.outs["a"].tolist() == graph.outs["b"].tolist() and graph.outs["a"].all()
    result = laws.Cut.random(net, call(32), 0, 0.5)
    check(result, *((call(side), {}) for side in (16, 32)))


def test_ties_of_the_other_side_hold():
    """Maps of two layers are added beyond some size, which ties them."""

    def tied(net, x, y):
        return net.a(y) + net.b(y) if x.shape[-1] > 20 else net.a(y) * net.b(y).mean()

    def joined(net, x, y):
        return net.a(y) + y if x.shape[-1] > 20 else net.a(y)

    graph = cut(ready(Net(joined)), inputs(16)).graph
    assert graph.outs["a"].tolist() == graph.outs["first"].tolist()
    check(cut(ready(Net(joined)), inputs(16)), *sized(16, 32))
    check(cut(ready(Net(tied)), inputs(16)), *sized(32))


def test_a_size_that_the_network_does_not_take_is_no_matter():
    def fixed(net, x, y):
        assert x.shape[-1] == 32, "images of 32 x 32"
        return net.a(y)

    result = cut(ready(Net(fixed)), inputs(32))
    assert result.graph.notes == ()
    check(result, *sized(32))


def test_what_only_one_side_of_was_seen_is_noted():
    def hidden(net, x, y):
        assert x.shape[-1] <= 64, "small images only"
        return net.a(y) * 2 if y.shape[-1] > 100 else net.a(y)

    def refused(net, x, y):
        assert x.shape[-1] == 32, "images of 32 x 32"
        return net.a(y) * 2 if y.shape[-1] > 100 else net.a(y)

    (note,) = ChannelGraph.trace(ready(Net(hidden)), inputs(32)).notes
    assert note.startswith("the forward branches on the size of its inputs at test_guards.py:")
    assert ChannelGraph.trace(ready(Net(refused)), inputs(32)).notes == ()  # it takes no others


def test_a_network_without_branches_is_recorded_once(monkeypatch):
    from prunekit.graph.recording import passes

    calls = []
    kept = passes.record_copy
    monkeypatch.setattr(passes, "record_copy", lambda twin, at: calls.append(at) or kept(twin, at))
    ChannelGraph.trace(ready(Net(lambda net, x, y: net.a(y))), inputs(32))
    assert len(calls) == 1


def test_flags_of_the_forward_are_followed():
    result = cut(ready(Flagged(None)), inputs(16))
    assert result.edit.layers["first"].outs
    flags = [{}, {"turned": True}, {"deep": False}]
    check(result, *(((inputs(16),), one) for one in flags))
    graph = result.graph
    assert graph.outs["b"].tolist() == graph.outs["first"].tolist()  # only where it is not deep


def test_what_leaves_with_a_flag_stays_unless_the_example_gives_it():
    net = ready(Featured(None))
    graph = ChannelGraph.trace(net, inputs(16))
    assert not graph.outs["first"].any() and graph.outs["a"].all()
    assert any("first" in note and "features=True" in note for note in graph.notes)
    fixed = ChannelGraph.trace(net, {"x": inputs(16), "features": False})
    assert fixed.outs["first"].all() and fixed.notes == ()


def test_a_branch_on_gradients_or_training():
    def graded(net, x, y):
        return net.a(y) + y if torch.is_grad_enabled() else net.b(y)

    def trained(net, x, y):
        return net.a(y) + y if net.training else net.b(y)

    result = cut(ready(Net(graded)), inputs(16))
    assert result.edit.layers["first"].outs
    check(result, *sized(16))
    check_with_gradients(result, inputs(16))
    result = cut(ready(Net(trained)), inputs(16))
    assert result.edit.layers["first"].outs
    check(result, *sized(16))
    check(result, *sized(16), train=True)


def looped(net, x, y):
    for _ in range(y.shape[1]):
        y = net.a(y).tanh()
    return y


def one_by_one(net, x, y):
    return torch.stack([y[:, c] * (c + 1) for c in range(y.shape[1])], 1)


def half_of_all(net, x, y):
    half = int(y.shape[1] * 0.5)
    return torch.cat([y[:, :half] * 2, y[:, half:]], 1)


def rooted(net, x, y):
    return y / math.sqrt(y.shape[1] / 2)


def rooted_by_numpy(net, x, y):
    return y * float(1 / np.sqrt(np.int64(y.shape[1])))


def by_attribute(net, x, y):
    return net.a(y) / net.first.out_channels


def viewed(net, x, y):
    return y.reshape(len(y), net.first.out_channels, -1).softmax(2).reshape(y.shape)


def branch_on_attribute(net, x, y):
    return net.a(y) if net.first.out_channels > 1 else net.a(y) * 2


def branch_on_channels(net, x, y):
    return net.a(y) if y.shape[1] > 1 else net.a(y).tanh()


def chosen_by_number(net, x, y):
    return net.a([y, y.sin(), y, y.cos(), y, y.tanh(), y, y.exp(), y.sigmoid()][y.shape[1]])


def made_of_numbers(net, x, y):
    return y * torch.tensor(np.log(np.arange(1, 3) + y.shape[1]).mean())


def strided(net, x, y):
    return y * (y.stride(0) / 1000)


WIDTHS = (
    *(looped, one_by_one, half_of_all, rooted, rooted_by_numpy, by_attribute, viewed),
    *(branch_on_attribute, branch_on_channels, chosen_by_number, made_of_numbers, strided),
)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("middle", WIDTHS)
def test_what_python_does_with_widths_stays_exact(middle, share):
    net = ready(Net(middle))
    result = cut(net, inputs(16), share)
    assert result.edit.layers["last"].outs  # the rest of the network goes on
    assert not result.graph.outs["first"].any()
    assert any("first" in note and "test_guards.py:" in note for note in result.graph.notes)
    check(result, *sized(16, 24))


def test_the_same_code_in_many_blocks_is_frozen_at_once():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

        def forward(self, x):
            x = x + self.out(self.conv(x) / self.conv.out_channels)
            return x

    net = ready(nn.Sequential(nn.Conv2d(3, 8, 1), *[Block() for _ in range(12)]))
    result = cut(net, inputs(8))
    assert not any(result.graph.outs[f"{n}.conv"].any() for n in range(1, 13))
    check(result, *sized(8))


def test_a_forward_that_throws_dice_is_no_difference():
    source = np.random.default_rng(0)

    def moody(net, x, y):
        b, c, h, w = y.shape
        return (y.reshape(b, c, h * w) * source.random()).reshape(b, c, h, w)

    graph = ChannelGraph.trace(ready(Net(moody)), inputs(16))
    assert graph.outs["first"].all()


def test_how_many_entries_are_picked_by_value_is_no_difference():
    class Picking(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.head = (
                nn.Conv2d(3, 8, 1),
                nn.Conv2d(8, 8, 1),
                nn.Linear(8, 3),
            )

        def forward(self, x):
            y = self.last(self.first(x))
            scores = self.head(y.permute(0, 2, 3, 1).reshape(-1, y.shape[1]))
            picked = scores[scores[:, 0] > 0]
            for _ in range(len(picked) // 10):
                picked = picked + 1
            return picked

    for seed in range(4):
        torch.manual_seed(seed)
        graph = ChannelGraph.trace(ready(Picking(), seed), inputs(16))
        assert graph.outs["first"].all() and graph.outs["last"].all()


def test_what_a_layer_that_no_run_called_could_read_stays():
    def kept(net, x, y):
        return net.aux(y) if net.special else net.a(y)

    net = ready(Net(kept, aux=nn.Conv2d(8, 8, 1)))
    net.special = False
    result = cut(net, inputs(16))
    assert not result.graph.outs["first"].any() and not result.graph.outs["a"].any()
    assert any("first" in note and "aux" in note for note in result.graph.notes)
    result.dense.special = result.narrow.special = True
    check(result, *sized(16))


def test_layers_of_a_list_that_is_not_called_are_read_by_the_module_around_it():
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 5, 1))
            self.heads = nn.ModuleList([nn.Conv2d(5, 4, 1), nn.Conv2d(5, 4, 1)])
            self.which = 0

        def forward(self, x):
            return self.heads[self.which](self.body(self.stem(x)))

    result = cut(ready(Around()), inputs(8))
    assert not result.graph.outs["body.2"].any()
    assert result.graph.outs["body.0"].all() and result.graph.outs["stem"].all()
    result.dense.which = result.narrow.which = 1
    check(result, *sized(8))


def test_random_numbers_that_come_next_are_what_they_were():
    def dicing(net, x, y):
        return net.a(y) * float(np.random.rand() + random.random())

    net = ready(Net(dicing))
    states = str(np.random.get_state()), random.getstate(), torch.get_rng_state()
    ChannelGraph.trace(net, inputs(16))
    assert (str(np.random.get_state()), random.getstate()) == states[:2]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_values_that_are_read_are_noted():
    def valued(net, x, y):
        return net.a(y) if y.mean() > -1e9 else net.b(y)

    notes = ChannelGraph.trace(ready(Net(valued)), inputs(16)).notes
    assert sum("reads values of tensors at test_guards.py:" in note for note in notes) == 1
