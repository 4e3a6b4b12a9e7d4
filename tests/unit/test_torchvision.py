"""Every classifier of torchvision: traced, cut to half, equal to the silenced network, trained."""

from __future__ import annotations

import laws
import pytest
import torch
import torchvision
from patterns import randomise
from torch import nn

from prunekit.criteria import L2Norm
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.selection import PerLayer
from prunekit.surgery import Narrow

NAMES = torchvision.models.list_models(module=torchvision.models)
SHORT = {"mobilenet_v3_small", "squeezenet1_1"}
LARGE = {"vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf", "convnext_large"}
RIGID = ("vit_", "swin", "maxvit")  # take one image size only


def build(name: str) -> nn.Module:
    extra = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **extra)


def halved(net: nn.Module, example: torch.Tensor) -> laws.Cut:
    graph = ChannelGraph.trace(net, example)
    scores = L2Norm().scores(net, graph, None)
    kept = PerLayer(keep=0.5).choose(scores, graph, CostModel(net, graph))
    chosen = {name: ~mask for name, mask in kept.items()}
    drop = graph.drop(chosen)
    narrow = laws.twin(net)
    edit = Narrow.of(graph, drop)
    edit.apply(narrow)
    return laws.Cut(net, (example,), graph, chosen, drop, edit, narrow)


def test_all_eighty_are_there():
    assert len(NAMES) >= 80


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in SHORT else pytest.mark.slow) for n in NAMES]
)
def test_half_of_the_channels_go_exactly(name):
    if name in LARGE:
        pytest.skip("too large for double precision here; scripts.bench.coverage has it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build(name)
        randomise(net)
        side = 224 if name.startswith(RIGID) else 299 if name == "inception_v3" else 64
        example = torch.randn(2, 3, side, side, dtype=torch.float64)
    cut = halved(net.double().eval(), example)
    laws.check_masked(cut)
    laws.check_kept(cut)
    laws.check_trainable(cut)
    assert laws.unexplained(cut.graph, net, laws.outputs(net, 1000)) == []
    before, after = (sum(p.numel() for p in m.parameters()) for m in (net, cut.narrow))
    assert after <= 0.75 * before
    assert after == CostModel(net, cut.graph).params(cut.drop)
