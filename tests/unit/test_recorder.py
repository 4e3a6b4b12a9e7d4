"""Forwards that bypass the recorder are followed, frozen or refused, and never followed wrongly."""

from __future__ import annotations

import copy
import functools
import gc
import types

import oracle
import pytest
import torch
from kinds import IMAGES, Net, cut, exact, followed, frozen, honest
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from prunekit.graph import ChannelGraph


class Middle(Net):
    """A network with a function between its convolutions."""

    def __init__(self, between, middle, **own):
        super().__init__(between, **own)
        vars(self)["given"] = middle

    def middle(self, x):
        return self.given(self, x)


# views and what is written into them


WRITES = {  # of flipped channels, through views that freeze nothing by themselves
    "item": lambda out, y: out.flatten(2).__setitem__(..., y.flatten(2)),
    "copy": lambda out, y: out.transpose(1, 2).copy_(y.transpose(1, 2)),
    "whole": lambda out, y: out.copy_(y),
    "fill": lambda out, y: out.flatten(2).fill_(3.0),
    "index": lambda out, y: out.index_copy_(2, torch.arange(y.shape[2]), y),
    "masked": lambda out, y: out.masked_scatter_(torch.ones_like(out, dtype=torch.bool), y),
    "put": lambda out, y: out.index_put_((torch.arange(len(y)),), y),
    "data": lambda out, y: setattr(out, "data", y),
    "data of a view": lambda out, y: setattr(out.flatten(2), "data", y.flatten(2)),
    "data in place": lambda out, y: out.data.copy_(y),
    "detached": lambda out, y: out.detach().copy_(y),
    "set": lambda out, y: out.set_(y),
    "swap": lambda out, y: torch.utils.swap_tensors(out, y),
    "out": lambda out, y: torch.add(y, 1, out=out),
}


@pytest.mark.parametrize("network", ["shapes", "numbers"])
@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("before", ["zeros", "features"])
def test_what_is_written_into_a_tensor(network, kind, before):
    def middle(net, x):
        y = torch.tanh(x).flip(1) * 2
        out = torch.zeros_like(x) if before == "zeros" else x * 3
        WRITES[kind](out, y)
        return out

    if before == "zeros" and kind in ("fill", "data of a view"):
        pytest.skip("only constants reach the output")
    honest((Middle if network == "shapes" else Reading)(8, middle))


def test_a_view_taken_before_its_base_is_written():
    def middle(net, x):
        out = torch.zeros_like(x)
        view = out.flatten(2)
        out[:] = x.flip(1)
        return view.view_as(x)

    honest(Middle(8, middle))


def test_a_base_changed_through_its_view():
    def middle(net, x):
        flat = x.view(x.shape[0], -1)
        flat += 1
        x.transpose(1, 2).mul_(2)
        a, b = x.chunk(2, 1)
        a.add_(b)
        return x

    honest(Middle(8, middle))


def test_results_written_where_it_was_asked():
    def middle(net, x):
        out = torch.zeros_like(x)
        torch.add(x, x.flip(1), out=out)
        return out

    honest(Middle(8, middle))


@pytest.mark.parametrize("kind", ["scale", "index"])
def test_constants_changed_in_place(kind):
    def middle(net, x):
        if kind == "scale":
            scale = torch.ones(8, 1, 1, dtype=x.dtype)
            y = x * scale
            scale[2:5].mul_(0.25)
            return y * scale
        index = torch.arange(8)
        y = x[:, index]
        index.add_(1).remainder_(8)
        return y[:, index]

    honest(Middle(8, middle))


# what no step made


def test_iterating_over_a_tensor():
    def middle(net, x):
        return torch.stack([one * 2 for one in x.transpose(0, 1)][::-1], 1)

    honest(Middle(8, middle), resize=None)


@pytest.mark.parametrize("kind", ["numpy", "list", "pickle", "deepcopy", "dlpack"])
def test_tensors_that_leave_torch_and_come_back(kind):
    def middle(net, x):
        x = x.detach()
        if kind == "numpy":
            return torch.from_numpy(x.numpy()[:, ::-1].copy())
        if kind == "list":
            return torch.tensor(x.tolist(), dtype=x.dtype).flip(1)
        if kind == "pickle":
            return copy.copy(x).flip(1)
        if kind == "dlpack":
            return torch.from_dlpack(x).flip(1)
        return copy.deepcopy(x).flip(1)

    honest(Middle(8, middle))


class Reading(Middle):
    """A network that reads numbers of its input, so that it cannot run on meta tensors."""

    def forward(self, x):
        return super().forward(x * (1 if x.sum().item() < 1e9 else 2))


@torch.jit.script
def scripted(x: torch.Tensor) -> torch.Tensor:
    return x.flip(1) * 2


traced = torch.jit.trace(
    lambda x: x.flip(1).transpose(1, 2).transpose(1, 2) * 2, torch.rand(1, 2, 2, 2)
)


@pytest.mark.parametrize("network", [Middle, Reading])
@pytest.mark.parametrize("function", [scripted, traced, torch.vmap(lambda x: x.flip(0) * 2)])
def test_compiled_code_on_shapes_and_on_numbers(network, function):
    honest(network(8, lambda net, x: function(x)))


def test_functions_compiled_inside_a_forward():
    @torch.compile(backend="eager")
    def compiled(x):
        return x.flip(1) * torch.sigmoid(x)

    honest(Middle(8, lambda net, x: compiled(x)))


def test_maps_over_a_batch():
    honest(Middle(8, lambda net, x: torch.vmap(lambda one: one.flip(0) * 2)(x)))


def test_checkpoints():
    followed(Middle(8, lambda net, x: checkpoint(torch.tanh, x, use_reentrant=False)))
    followed(Middle(8, lambda net, x: checkpoint(torch.tanh, x, use_reentrant=True)))


class Numbers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().cpu().numpy()[:, ::-1].copy())


def test_custom_functions_in_other_languages():
    honest(Middle(8, lambda net, x: Numbers.apply(x)))


# weights that the forward changes


def test_weights_that_the_forward_swaps():
    bank = nn.Conv2d(8, 8, 3, padding=1)

    def middle(net, x):
        given = {"weight": net.bank.weight.flip(0), "bias": net.bank.bias}
        return torch.func.functional_call(net.conv, given, (x,))

    honest(Middle(8, middle, bank=bank, conv=nn.Conv2d(8, 8, 3, padding=1)))


def test_weights_of_another_layer():
    def middle(net, x):
        given = {"weight": net.bank.weight, "bias": net.bank.bias}
        x = torch.func.functional_call(net.conv, given, (x,))
        return net.bank(x)

    layers = {name: nn.Conv2d(8, 8, 3, padding=1) for name in ("bank", "conv")}
    honest(Middle(8, middle, **layers))


@pytest.mark.parametrize("kind", ["data", "attribute", "in place"])
def test_weights_that_a_hook_computes(kind):
    net = Net()
    net.last.raw = nn.Parameter(torch.randn(6, 8, 3, 3))
    if kind == "attribute":
        del net.last._parameters["weight"]

    def hook(module, args):
        weight = module.raw / (module.raw.norm() + 1)
        if kind == "data":
            module.weight.data = weight
        elif kind == "attribute":
            module.weight = weight
        else:
            with torch.no_grad():
                module.weight.copy_(weight)

    net.last.register_forward_pre_hook(hook)
    net = net.double()
    if kind == "attribute":
        net.last.weight = net.last.raw.detach().clone()
    graph = ChannelGraph.trace(net, IMAGES)
    assert not graph.outs["first"].any()
    assert not graph.outs["last"].any() and any("last" in note for note in graph.notes)


# forwards and functions that are attached to instances


def test_a_forward_of_one_instance():
    net = Net()
    net.last.forward = types.MethodType(
        lambda self, x: F.conv2d(x.flip(1), self.weight, self.bias, padding=1), net.last
    )
    honest(net)


def test_a_closure_over_the_network():
    net = Net(conv=nn.Conv2d(8, 8, 3, padding=1), norm=nn.BatchNorm2d(8))
    net.middle = lambda x: net.norm(net.conv(x)) + x
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    net = net.double()
    ChannelGraph.trace(net, IMAGES)
    after = net.state_dict()
    assert all(torch.equal(after[name], value.to(after[name])) for name, value in before.items())
    assert bool((ChannelGraph.trace(net, IMAGES).outs["conv"] > 0).any())


def test_layers_in_plain_lists():
    class Hidden(Net):
        def __init__(self):
            super().__init__()
            self.known = nn.Conv2d(8, 8, 1)
            self.layers = [self.known, nn.Conv2d(8, 8, 1).double()]

        def middle(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    net = oracle.distinct(Hidden()).eval()
    narrow, graph = cut(net)
    exact(net, narrow)
    assert bool((graph.outs["first"] > 0).any())


# what a run leaves behind


@functools.lru_cache
def grid(size, kind):
    return torch.linspace(0, 1, size, dtype=kind)


@functools.lru_cache
def blank(size, kind):
    return torch.zeros(1, 1, size, size, dtype=kind)


KEPT: dict[object, torch.Tensor] = {}
SIZES: list[int] = []


def test_caches_hold_no_shapes():
    def middle(net, x):
        size = int(x.shape[-1])
        if size not in KEPT:
            KEPT[size] = torch.zeros(1, 1, x.shape[-1], x.shape[-1], dtype=x.dtype)
        return x * grid(x.shape[-1], x.dtype) + blank(x.shape[-1], x.dtype) + KEPT[size]

    KEPT.clear()
    net = Middle(8, middle)
    followed(net)
    ChannelGraph.trace(net, torch.rand(1, 3, 7, 7, dtype=torch.float64))
    assert not any(one.is_meta for one in KEPT.values())
    assert not grid(7, torch.float64).is_meta and not blank(7, torch.float64).is_meta


def test_hooks_that_keep_what_they_see():
    net, seen, last = Net().double(), [], {}
    net.bn.register_forward_hook(lambda module, args, out: seen.append(out))
    net.last.register_forward_hook(lambda module, args, out: last.update(found=out.detach()))
    ChannelGraph.trace(net, IMAGES)
    assert not seen and not last
    net.eval()(IMAGES)
    ChannelGraph.trace(net, IMAGES)
    assert len(seen) == 1 and not last.get("found", IMAGES).is_meta


def test_attributes_that_a_forward_writes():
    class Writing(Net):
        def middle(self, x):
            self.seen = x
            self.shape = tuple(x.shape)
            self.count = getattr(self, "count", 0) + 1
            return x + self.seen

    net = Writing()
    followed(net)
    assert not {"seen", "shape", "count"} & set(vars(net))


def test_nothing_of_a_run_stays_in_memory():
    def living():
        gc.collect()
        names = ("Recorder", "Recording", "Step")
        return sum(type(one).__name__ in names for one in gc.get_objects())

    before = living()
    graph = ChannelGraph.trace(Net().double(), IMAGES)
    assert graph.groups and len(graph.recordings) == 1
    del graph  # which holds what it was found in
    assert living() <= before


def test_sizes_that_are_kept_are_plain_afterwards():
    def middle(net, x):
        SIZES.append(x.shape[1])
        return x

    SIZES.clear()
    ChannelGraph.trace(Middle(8, middle).double(), IMAGES)
    assert type(SIZES[0] + 1) is int and SIZES[0] == 8


def test_a_mode_that_is_passed_on():
    def middle(net, x):
        x = F.dropout(x, 0.0, net.training)
        x = torch.dropout(x, 0.0, net.training)
        return F.dropout2d(x, p=0.5 if net.training else 0.0, training=False)

    followed(Middle(8, middle))


def test_where_a_tensor_is_asked_to_be():
    def middle(net, x):
        assert not x.is_meta and not x.is_cuda and x.is_cpu
        assert x.device == torch.device("cpu") and x.get_device() == -1
        return x

    followed(Middle(8, middle))


def test_a_tensor_that_nobody_may_read_is_frozen():
    def middle(net, x):
        return x * (1 + len([one for one in x.amax((0, 2, 3)).tolist() if one > 1e9]))

    frozen(Middle(8, middle), "tolist")
