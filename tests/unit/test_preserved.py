"""What pruning leaves as it was: of the user's network everything, of the copy all but widths."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import SGD

import prunekit
from prunekit.criteria import Criterion
from prunekit.errors import PrunekitError
from prunekit.graph import ChannelGraph
from prunekit.measure import counted_macs
from prunekit.methods.slimming import slimming_flops
from prunekit.modes import duplicate, unchanged
from prunekit.surgery import SkipBlock, absorb, compare

torch.set_num_threads(1)

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(4) % 3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.two, self.head = nn.Conv2d(8, 6, 1), nn.Linear(6, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.depth(self.norm(self.one(x))))
        return self.head(self.drop(F.relu(self.two(x)).mean((2, 3))))


class Restless(Net):
    """Changes whatever a forward can change, in eval mode too, and draws all kinds of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.log, self.table = 0, [], {"last": 0.0}
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("grows", torch.zeros(2))
        self.kept = torch.zeros(3)
        self.lazy = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand(()).item() + random.random() + numpy.random.rand()
        if not x.is_meta:
            self.calls += 1
            self.log.append(self.calls)
            self.table["last"] = noise
            self.mean.add_(x.detach().mean((0, 2, 3)))
            self.grows.resize_(self.calls + 2).fill_(1.0)
            self.kept = x.detach().mean((0, 2, 3))
            self.lazy.data.fill_(0.5)
            self.norm.train()
            self.extra = "new"
        return super().forward(x) + 0 * noise


def content(net: nn.Module) -> dict[str, object]:
    """Everything that a network holds, with numbers as bytes."""
    found: dict[str, object] = {}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            if key == "_modules" or key.endswith("_compiled_call_impl"):
                continue
            whole = dict(value) if isinstance(value, dict) else {"": value}
            for inner, one in whole.items():
                found[f"{name}/{key}/{inner}"] = told(one)
    return found


def told(value: object) -> object:
    if isinstance(value, Tensor):
        numbers = value.detach().contiguous().flatten().view(torch.uint8).tolist()
        grad = None if not value.is_leaf or value.grad is None else told(value.grad)
        layout = (value.dtype, tuple(value.shape), value.stride(), value.requires_grad)
        return (id(value), numbers, layout, grad)
    if isinstance(value, list | set):
        return (id(value), list(value))
    return value if isinstance(value, bool | int | float | str | tuple | None) else id(value)


def chances() -> tuple[object, ...]:
    state = numpy.random.get_state()
    return (torch.random.get_rng_state().tolist(), random.getstate(), state[1].tolist(), state[2])


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)),
        )
        net.train().qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")
        torch.ao.quantization.fuse_modules_qat(net, [["0", "1", "2"]], inplace=True)
        net = torch.ao.quantization.prepare_qat(net)
        net(X)
    return net


def normalised() -> nn.Module:
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(net.one)
        nn.utils.spectral_norm(net.head)
    parametrizations.weight_norm(net.two)
    return net


class Broken(Restless):
    """Fails after it has changed everything, but not while it is recorded."""

    def forward(self, x: Tensor) -> Tensor:
        out = super().forward(x)
        if not x.is_meta and len(x) > 1:
            raise RuntimeError("no more than one")
        return out


def with_gradients(net: nn.Module) -> nn.Module:
    F.cross_entropy(net(X), Y).backward()
    net.one.weight.requires_grad_(False)
    net.norm.eval()
    return net


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Net,
    "in mixed modes, with gradients": lambda: with_gradients(Net()),
    "restless": lambda: with_gradients(Restless()),
    "broken": Broken,
    "quantized": quantized,
    "normalised": normalised,
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
@pytest.mark.parametrize("criterion", ["l1_norm", "taylor", "apoz", "hrank", "hessian"])
def test_the_network_is_the_same_to_the_last_bit(name, criterion):
    net = NETWORKS[name]()
    before, chance = content(net), chances()
    data = torch.utils.data.DataLoader([*zip(X, Y, strict=True)], batch_size=2, shuffle=True)
    try:
        prunekit.prune(net, X, keep=0.5, criterion=criterion, data=data, absorb=True)
        refused = False
    except (PrunekitError, RuntimeError):
        refused = True
    assert content(net) == before and chances() == chance
    if name in ("plain", "in mixed modes, with gradients", "broken"):
        assert refused is (name == "broken")


def test_a_plain_run_changes_the_restless_one():
    """So the tests here can fail."""
    for make in (NETWORKS["restless"], NETWORKS["quantized"]):
        net = make()
        before, chance = content(net), chances()
        with torch.no_grad():
            net.eval()(X)
        assert content(net) != before
        assert (chances() == chance) is (make is NETWORKS["quantized"])


def test_restless_networks_are_cut():
    """Their noise has no weight, so the narrow one is the silenced one."""
    net = Restless()
    found = prunekit.prune(net, X, keep=0.5, absorb=False)
    assert found.agreement.worst < 1e-5 and found.widths["one"] == (8, 4)
    assert (found.model.calls, found.model.log, found.model.table) == (0, [], {"last": 0.0})
    assert found.model.log is not net.log and not hasattr(found.model, "extra")
    assert not bool(found.model.mean.any()) and found.model.grows.shape == (2,)


@pytest.mark.parametrize("name", ["restless", "quantized"])
def test_every_question_leaves_it_alone(name):
    net = NETWORKS[name]()
    before, chance = content(net), chances()
    graph = ChannelGraph.trace(net, X)
    drop, narrow = graph.drop({}), copy.deepcopy(net)
    beside = content(narrow)
    compare(net, narrow, graph, drop, X)
    assert content(narrow) == beside
    absorb(net, narrow, graph, drop, X)
    for count in (counted_macs, slimming_flops):
        count(net, X)
    assert content(net) == before and chances() == chance


class Spiteful(Criterion):
    """A criterion of the user's own that changes what it is given, and then fails."""

    def scores(self, model, graph, data, device="cpu"):
        model.train()
        model.one.weight.data.zero_()
        model(X).sum().backward()
        model.one.register_forward_hook(lambda *_: None)
        raise ValueError("spite")


def test_a_criterion_that_fails_leaves_nothing():
    net = with_gradients(Net())
    before, chance = content(net), chances()
    with pytest.raises(ValueError, match="spite"):
        prunekit.prune(net, X, keep=0.5, criterion=Spiteful())
    assert content(net) == before and chances() == chance


def test_a_loss_that_waits_for_its_backward_still_has_it():
    """Nothing was written into what autograd keeps."""
    net = Net()
    loss = F.cross_entropy(net(X), Y)
    prunekit.prune(net, X, keep=0.5)
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_what_is_new_goes_and_what_is_gone_comes_back():
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net.boxes = [1, [2]]
    before, handle = content(net), net[0].register_forward_hook(lambda *_: None)
    with pytest.raises(KeyError), unchanged(net):
        handle.remove()
        net[0].bias = None
        net[1] = nn.Identity()
        net.more, net.boxes[:] = 1, []
        net[0].weight = nn.Parameter(torch.zeros(1))
        raise KeyError
    handle.remove()
    assert content(net) == before


def test_memory_format():
    """Weights stay channels last, where sizes of one leave a choice too; so do momenta."""
    for layout in (torch.channels_last, torch.contiguous_format):
        net = Net().to(memory_format=layout)
        optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
        F.cross_entropy(net(X.contiguous(memory_format=layout)), Y).backward()
        optimizer.step()
        found = prunekit.prune(net, X, keep=0.5)
        expected = copy.deepcopy(found.model).to(memory_format=torch.contiguous_format)
        expected = expected.to(memory_format=layout).state_dict()
        for name, value in found.model.state_dict().items():
            like = value.clone(memory_format=torch.contiguous_format)
            like = like.to(memory_format=layout) if value.ndim == 4 else like
            assert value.stride() == like.stride(), name
        assert found.model.one.weight.is_contiguous(memory_format=layout)
        assert not found.model.two.weight.storage_offset()
        found.narrow_optimizer(optimizer)
        for parameter, state in optimizer.state.items():
            assert state["momentum_buffer"].stride() == parameter.stride()


def test_volumes_keep_theirs_too():
    net = nn.Sequential(nn.Conv3d(2, 8, 3), nn.ReLU(), nn.Conv3d(8, 4, 1)).to(
        memory_format=torch.channels_last_3d
    )
    found = prunekit.prune(net, torch.randn(2, 2, 4, 4, 4), keep=0.5)
    weight = found.model[0].weight
    assert weight.shape[0] == 4 and weight.is_contiguous(memory_format=torch.channels_last_3d)


def test_flags_types_and_modes():
    class Mixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.depth(self.norm(self.one(x))))
            x = F.relu(self.two(x.bfloat16())).float().mean((2, 3))
            return self.head(x.double())

    net = Mixed().train()
    net.two.bfloat16()
    net.head.double()
    net.norm.eval()
    net.drop.eval()
    net.one.weight.requires_grad_(False)
    net.norm.bias.requires_grad_(False)
    found = prunekit.prune(net, X, keep=0.5, absorb=True)
    assert found.agreement.precision == "bfloat16" and found.agreement.worst < 0.02
    for (name, new), (_, old) in zip(
        found.model.named_parameters(), net.named_parameters(), strict=True
    ):
        assert (new.dtype, new.requires_grad) == (old.dtype, old.requires_grad), name
        assert new.grad is None and new.is_leaf
    modes = [[m.training for m in one.modules()] for one in (found.model, net)]
    assert modes[0] == modes[1] and found.model.two.weight.dtype == torch.bfloat16


def test_a_wrong_cut_is_seen_in_low_precision_too():
    """What rounding may do is small beside a mistake."""
    net = Net().bfloat16()
    graph = ChannelGraph.trace(net, X.bfloat16())
    found = prunekit.prune(net, X.bfloat16(), keep=0.5, absorb=False)
    drop = graph.drop({name: ~mask for name, mask in found.masks.items()})
    wrong = copy.deepcopy(found.model)
    wrong.two.weight.data.copy_(wrong.two.weight.data.flip(1))
    with pytest.raises(PrunekitError, match="differs"):
        compare(net, wrong, graph, drop, X.bfloat16())


def test_hooks_stay_once():
    net, calls = Net(), []
    kinds = {
        "before": net.one.register_forward_pre_hook(lambda *_: calls.append("before")),
        "after": net.two.register_forward_hook(lambda *_: calls.append("after")),
        "back": net.two.register_full_backward_hook(lambda *_: calls.append("back")),
        "root": net.register_forward_hook(lambda *_: calls.append("root")),
        "named": net.head.register_forward_hook(
            lambda module, args, kwargs, out: calls.append("named"), with_kwargs=True
        ),
    }
    before = content(net)
    found = prunekit.prune(net, X, keep=0.5)
    for model in (found.model, net):
        calls.clear()
        model(X).sum().backward()
        assert sorted(calls) == sorted(kinds)
    for handle in kinds.values():
        handle.remove()
    calls.clear()
    net(X)
    assert not calls and before


def test_hooks_of_blocks_that_go_whole_stay():
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.two(F.relu(self.one(x)))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), Block(), nn.Conv2d(8, 4, 3))
    calls = []
    net[1].register_forward_hook(lambda *_: calls.append(1))
    narrow = duplicate(net)
    SkipBlock("1", ("+",)).apply(narrow)
    assert not isinstance(narrow[1], Block)
    narrow(X)
    assert calls == [1] and len(net[1]._forward_hooks) == 1


def test_observers_of_the_copy_are_those_of_the_network():
    """Where a quantization-aware network can be cut, its observers have seen nothing new."""
    net = quantized()
    try:
        found = prunekit.prune(net, X, keep=0.5, check=False, absorb=False)
    except PrunekitError as error:
        assert len(str(error).splitlines()) == 1
        return
    old = dict(net.named_buffers())
    for name, value in found.model.named_buffers():
        if value.shape == old[name].shape:
            assert torch.equal(value, old[name]), name
