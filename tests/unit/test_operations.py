"""The table of operations has one entry for each, and all other code reads the entries."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import laws
import pytest
import torch
from patterns import randomise
from torch import nn

import prunekit
from prunekit.graph import ChannelGraph
from prunekit.graph.layers import widths
from prunekit.graph.table import (
    all_operations,
    function_operation,
    layer_operation,
    named_operation,
)
from prunekit.surgery import narrow

PACKAGE = Path(prunekit.__file__).parent
NORMS = ("BatchNorm", "GroupNorm", "LayerNorm", "RMSNorm", "InstanceNorm", "LocalResponseNorm")
ACTIVATIONS = ("ReLU", "GELU", "SiLU", "Hardswish", "Softmax", "Dropout", "PReLU")
POOLS = ("MaxPool", "AvgPool", "PixelShuffle", "MultiheadAttention")
CONVENTION = {"methods/slimming/flops.py"}  # counts the layers that one paper counts


def test_names_and_layers_have_one_entry_each():
    names = [name for entry in all_operations() for name in entry.functions]
    layers = [layer for entry in all_operations() for layer in entry.layers]
    assert len(names) == len({*names}) and len(layers) == len({*layers})


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: f.name)
def test_no_other_file_lists_layers_of_torch(file):
    """Models consist of layers; all other files read from the table what a layer is."""
    where = file.relative_to(PACKAGE).as_posix()
    if where.startswith(("models/", "graph/ops/")) or where in CONVENTION:
        return
    prefixes = (*NORMS, *ACTIVATIONS, *POOLS)
    attributes = [
        node.attr
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute) and node.attr.startswith(prefixes)
    ]
    allowed = {"AdaptiveAvgPool2d"} if where == "surgery/heads.py" else set()  # it makes one
    assert not {*attributes} - allowed, attributes


def test_functions_methods_and_operators_are_the_same_operation():
    x = torch.ones(2)
    for one in (
        torch.add,
        torch.Tensor.add,
        torch.Tensor.add_,
        torch.Tensor.__add__,
        torch.ops.aten.add,
    ):
        assert function_operation(one) is named_operation("add"), one
    assert function_operation(torch.nn.functional.max_pool2d) is named_operation("max_pool2d")
    assert function_operation(type(x).__getitem__) is named_operation("getitem")
    assert function_operation(print) is None


def test_a_subclass_follows_its_base():
    class Mine(nn.Conv2d):
        pass

    assert layer_operation(Mine(1, 1, 1)) is layer_operation(nn.Conv2d(1, 1, 1))
    assert layer_operation(nn.LSTM(1, 1)) is None


@pytest.mark.parametrize(
    "entry", [e for e in all_operations() if e.narrow], ids=lambda e: e.layers[0].__name__
)
def test_layers_that_hold_channels_know_their_widths(entry):
    """Narrowed layers have the requested widths."""
    for kind in entry.layers:
        layer = _made(kind)
        before = widths(layer)
        keep = [0, 1] if entry.weighted else None
        narrow(layer, keep, [0, 1])
        after = widths(layer)
        assert after[1] == 2 and before[1] == 4, (kind, before, after)
        assert all(2 in p.shape or p.numel() == 2 for p in layer.parameters())


def _made(kind):
    if "kernel_size" in inspect.signature(kind).parameters:
        return kind(4, 4, 1)
    if kind is nn.GroupNorm:
        return kind(2, 4)
    if kind is nn.Linear:
        return kind(4, 4)
    return kind(4, affine=True) if "Instance" in kind.__name__ else kind(4)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_norms_over_channels_lose_some_on_request(norm):
    """The narrow network equals the narrow norm, computed by hand."""
    net = nn.Sequential(nn.Linear(5, 8), norm(8), nn.GELU(), nn.Linear(8, 3)).double()
    randomise(net)
    x = torch.rand(4, 5, dtype=torch.float64)
    assert ChannelGraph.trace(net, x).frozen.keys() >= {"0"}
    graph = ChannelGraph.trace(net, x, over_norms=True)
    assert graph.inexact == ("1",)
    keep = torch.tensor([True, False] * 4)
    edit = prunekit.surgery.Narrow.of(graph, graph.drop({"0": ~keep}))
    small = laws.twin(net)
    edit.apply(small)
    inner = torch.nn.functional.linear(x, net[0].weight[keep], net[0].bias[keep])
    centred = inner - inner.mean(-1, keepdim=True) if norm is nn.LayerNorm else inner
    eps = net[1].eps if net[1].eps is not None else torch.finfo(x.dtype).eps
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    shift = net[1].bias[keep] if norm is nn.LayerNorm else 0
    hidden = nn.functional.gelu(normed * net[1].weight[keep] + shift)
    expected = hidden @ net[3].weight[:, keep].T + net[3].bias
    torch.testing.assert_close(small(x), expected, rtol=1e-9, atol=1e-9)
