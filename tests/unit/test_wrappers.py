"""Tests of networks in DataParallel, DistributedDataParallel and torch.compile."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

import prunekit
from prunekit.attachment import attach, shrink
from prunekit.engine import Traced
from prunekit.graph import ChannelGraph
from prunekit.graph.wrappers import network_in
from prunekit.measure import LatencyTest, fvcore_macs
from prunekit.surgery import load_model, save_model

torch.set_num_threads(1)

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 6, 3), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.one(x)))
        return self.head(F.relu(self.two(x)).mean((2, 3)))


class Compiler:
    """A backend that counts its calls and compiles nothing."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        self.graphs.append(len(inputs))
        return graph.forward

    def __deepcopy__(self, memo: dict) -> Compiler:
        return self


@pytest.fixture
def group() -> Iterator[None]:
    """Open a process group of a single process, on the loopback device."""
    before = {name: os.environ.get(name) for name in ("MASTER_ADDR", "GLOO_SOCKET_IFNAME")}
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    store = distributed.HashStore()
    distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    distributed.destroy_process_group()
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


def close(one: nn.Module, other: nn.Module) -> None:
    """Check that both give the same outputs for X, eagerly."""
    nets = [copy.deepcopy(network_in(net)).eval() for net in (one, other)]
    with torch.no_grad():
        torch.testing.assert_close(nets[0](X), nets[1](X))


def plain() -> prunekit.Pruned:
    return prunekit.prune(Net(), X, keep=0.5)


class Parallel(DataParallel):
    """A user-defined wrapper class."""


@pytest.mark.parametrize("kind", [DataParallel, Parallel])
def test_data_parallel(kind):
    net = kind(Net()).train()
    net.device_ids, net.output_device, net.dim = [], "cpu", 0  # which torch sets on GPUs only
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    result = prunekit.prune(net, X, keep=0.5)
    assert type(result.model) is kind and result.dense is net and result.model.training
    assert (result.model.device_ids, result.model.output_device, result.model.dim) == ([], "cpu", 0)
    assert result.model.module is not net.module and net.module.one.out_channels == 8
    assert set(result.graph.outs) == {"one", "norm", "two", "head"} and not calls
    assert result.widths == plain().widths
    close(result.model, plain().model)
    result.model(X).sum().backward()
    assert calls == [1] and result.model.module.one.weight.grad.shape == (4, 3, 3, 3)
    assert all(p.grad is None for p in net.parameters())
    result.model.module = nn.Identity()
    assert isinstance(net.module, Net)


def test_optimizers_follow_and_files_hold_the_network_itself(tmp_path):
    net = DataParallel(Net())
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(X).sum().backward()
    optimizer.step()
    result = prunekit.prune(net, X, keep=0.5)
    assert result.narrow_optimizer(optimizer) is optimizer
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == set(
        map(id, result.model.parameters())
    )
    result.save(tmp_path / "one.pt")
    save_model(tmp_path / "two.pt", result.model, edits=result.edits)
    for name in ("one.pt", "two.pt"):
        bare = load_model(tmp_path / name, module=Net()).model
        wrapped = load_model(tmp_path / name, module=DataParallel(Net())).model
        assert type(bare) is Net and type(wrapped) is DataParallel
        for model in (bare, wrapped):
            close(model, result.model)


def test_copies_come_back_in_their_own_wrappers():
    net = DataParallel(Net())
    result = prunekit.prune(net, X, keep=0.5)
    copies = {
        "bare": copy.deepcopy(net.module),
        "the same": copy.deepcopy(net),
        "averaged": AveragedModel(net.module),
        "averaged in parallel": AveragedModel(net),
        "compiled": torch.compile(copy.deepcopy(net.module), backend=Compiler()),
    }
    for name, model in copies.items():
        again = result.narrow_copy(model)
        assert type(again) is type(model), name
        inner = again
        while not isinstance(inner, Net):
            inner = inner._orig_mod if name == "compiled" else inner.module
        close(inner, result.model)


def test_every_door_opens_them():
    net = DataParallel(Net())
    bare = ChannelGraph.trace(net.module, X)
    for graph in (ChannelGraph.trace(net, X), Traced.of(net, X).graph):
        assert str(graph) == str(bare)
    sparse = attach(net, X, penalty="l1", lam=0.1, solver="proximal")
    assert all(name in bare.outs for name in sparse.scores())
    zeros = {g.name: torch.arange(len(g.units)) % 2 for g in bare.groups}
    narrow = shrink(net, sparse.graph, zeros)
    assert type(narrow) is DataParallel and narrow.module.one.out_channels == 4
    close(narrow, shrink(net.module, bare, zeros))
    assert fvcore_macs(net, X) == fvcore_macs(net.module, X)
    assert prunekit.prune(net, X, latency=0.9, on_miss="nearest").model.module.one.weight.numel()
    assert LatencyTest(batch=2, runs=5).run({"a": net}, X)["a"].median_ms > 0


@pytest.mark.parametrize("dynamic", [None, False])
def test_compiled(dynamic):
    compiler = Compiler()
    net = torch.compile(Net().eval(), backend=compiler, dynamic=dynamic, fullgraph=True)
    result = prunekit.prune(net, X, keep=0.5)
    assert type(result.model) is type(net) and result.dense is net and not compiler.graphs
    assert type(result.model._orig_mod) is Net and result.model._orig_mod is not net._orig_mod
    assert set(result.graph.outs) == {"one", "norm", "two", "head"}
    with torch.no_grad():
        out = result.model(X)  # only now
        assert len(compiler.graphs) == 1
        torch.testing.assert_close(out, plain().model.eval()(X))
        assert net(X).shape == (4, 3) and len(compiler.graphs) == 2
    assert not result.model.training


def test_compiled_in_place():
    compiler = Compiler()
    net = Net().eval()
    net.compile(backend=compiler)
    before = net._compiled_call_impl
    result = prunekit.prune(net, X, keep=0.5)
    assert not compiler.graphs and net._compiled_call_impl is before
    assert type(result.model) is Net
    with torch.no_grad():
        out = result.model(X)
        assert len(compiler.graphs) == 1
        torch.testing.assert_close(out, plain().model.eval()(X))


def test_wrappers_in_wrappers():
    compiler = Compiler()
    net = torch.compile(DataParallel(Net()), backend=compiler)
    result = prunekit.prune(net, X, keep=0.5)
    assert type(result.model) is type(net) and type(result.model._orig_mod) is DataParallel
    assert type(result.model._orig_mod.module) is Net and not compiler.graphs
    close(result.model, plain().model)


@pytest.mark.filterwarnings("ignore:.*broadcast_buffers:FutureWarning")
def test_distributed(group):
    net = DistributedDataParallel(Net(), broadcast_buffers=False, bucket_cap_mb=3)
    result = prunekit.prune(net, X, keep=0.5)
    assert type(result.model) is DistributedDataParallel and result.model.module is not net.module
    assert not result.model.broadcast_buffers
    assert result.model.bucket_bytes_cap == net.bucket_bytes_cap == 3 * 2**20
    assert result.model.process_group is net.process_group
    close(result.model, plain().model)
    for model in (result.model, net):  # both still train
        model(X).sum().backward()
        assert all(p.grad is not None for p in model.parameters())


def test_distributed_without_a_group_is_left_out(group):
    net = DistributedDataParallel(Net())
    distributed.destroy_process_group()
    result = prunekit.prune(net, X, keep=0.5)
    assert type(result.model) is Net
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)


class Parts(nn.Module):
    """A network with a wrapper as a child."""

    def __init__(self, wrap: object) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = wrap(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


def in_place(module: nn.Module, compiler: Compiler) -> nn.Module:
    module.compile(backend=compiler)
    return module


def test_parts_that_are_wrapped_stay_so():
    compiler = Compiler()
    wraps = {
        "module": DataParallel,
        "_orig_mod": lambda part: torch.compile(part, backend=compiler),
        "": lambda part: in_place(part, compiler),
    }
    for inner, wrap in wraps.items():
        net = Parts(wrap).eval()
        assert not compiler.graphs
        result = prunekit.prune(net, X, keep=0.5)
        assert not compiler.graphs, "nothing is compiled to prune"
        name = f"body.{inner}.0" if inner else "body.0"
        assert result.widths[name] == (8, 4) and type(result.model.body) is type(net.body)
        assert result.model.get_submodule(name).weight.shape == (4, 4, 3, 3)
        assert result.agreement.worst < 1e-5
        expected = prunekit.prune(Parts(nn.Sequential).eval(), X, keep=0.5).model.eval()
        with torch.no_grad():
            torch.testing.assert_close(result.model(X), expected(X))
        assert bool(compiler.graphs) is (inner != "module")
        compiler.graphs.clear()


def test_a_distributed_part_trains_on_in_the_narrow_network(group):
    net = Parts(DistributedDataParallel)
    result = prunekit.prune(net, X, keep=0.5)
    body = result.model.body
    assert type(body) is DistributedDataParallel and body.module[0].weight.shape == (4, 4, 3, 3)
    result.model(X).sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in result.model.parameters())
    net(X).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


def test_scores_that_read_data_are_those_of_the_plain_network():
    data = [(X[:, :3], torch.arange(4) % 3)]
    compiler = Compiler()
    for criterion in ("taylor", "apoz", "hessian"):
        options = {"keep": 0.5, "criterion": criterion, "data": data}
        expected = prunekit.prune(Net(), X, **options)
        inner = Net()
        inner.compile(backend=compiler)
        for net in (DataParallel(Net()), torch.compile(Net(), backend=compiler), inner):
            result = prunekit.prune(net, X, **options)
            assert not compiler.graphs
            for name, mask in expected.masks.items():
                assert torch.equal(result.masks[name], mask)
