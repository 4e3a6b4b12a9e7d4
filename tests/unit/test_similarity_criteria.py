"""Criteria on similarity tables: whom they score, in which order, and what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from prunekit.criteria import CRITERIA, Criterion
from prunekit.data import Data
from prunekit.errors import ConfigError
from prunekit.graph import ChannelGraph
from prunekit.methods.gram_lasso import (
    APIB,
    Above,
    Calibration,
    EntryOrder,
    Grams,
    Graph,
    Hierarchy,
    MaxCKA,
    Representatives,
    Statistics,
    Strongest,
    StructuredLasso,
    tables_of,
)
from prunekit.methods.gram_lasso.features import channel_maps
from prunekit.methods.gram_lasso.regression import FISTA
from prunekit.models import ResNet, googlenet
from prunekit.penalties import MCP
from prunekit.pruning import prune

STATISTICS = Statistics(calibration=Calibration(24))
TREE = {"solver": FISTA(), "similarity": STATISTICS, "order": EntryOrder(points=8)}
KINDS: dict[str, Criterion] = {
    "graph": StructuredLasso(similarity=STATISTICS, order=EntryOrder(points=8)),
    "strongest": StructuredLasso(structure=Graph(Strongest(0.2), kappa=0.1), similarity=STATISTICS),
    "above": StructuredLasso(structure=Graph(Above(0.5)), similarity=STATISTICS),
    "tree": StructuredLasso(structure=Hierarchy(), **TREE),
    "single": StructuredLasso(structure=Hierarchy("single", cut=0.9, floor=0.05), **TREE),
    "blocks": StructuredLasso(structure=Hierarchy(blocks=True), **TREE),
    "mixed": StructuredLasso(structure=Hierarchy(mix=0.05), **TREE),
    "max-CKA": MaxCKA(similarity=STATISTICS),
    "representatives": Representatives(similarity=STATISTICS),
    "APIB": APIB(similarity=STATISTICS, order=EntryOrder(points=8)),
}


@pytest.fixture(scope="module")
def data() -> Data:
    from prunekit.data import Synthetic

    return Synthetic(train=80, val=10, test=10, image_size=12, channels=3, classes=4).load()


def small(seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(1, classes=4, widths=(4, 6, 8)).eval()


def graph_of(model: nn.Module, data: Data) -> ChannelGraph:
    return ChannelGraph.trace(model, data.example)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_channels_of_blocks_are_scored_and_streams_are_not(kind: str, data: Data) -> None:
    model = small()
    scores = KINDS[kind].scores(model, graph_of(model, data), data)
    assert set(scores) == {f"layer{stage}.0.conv1" for stage in (1, 2, 3)}
    for score in scores.values():
        assert score.dtype == torch.float64 and bool(score.isfinite().all())
        assert len(score.unique()) == len(score), "an order, without ties"


@pytest.mark.parametrize("shared", ["sum", "max"])
def test_streams_are_scored_by_all_layers_that_write_them_on_request(
    shared: str, data: Data
) -> None:
    model = small()
    graph = graph_of(model, data)
    alone, together = (
        MaxCKA(similarity=STATISTICS, shared=how).scores(model, graph, data)
        for how in (None, shared)
    )
    assert set(together) == {group.name for group in graph.groups}
    assert all(torch.equal(together[name], alone[name]) for name in alone)


def test_max_cka_is_the_largest_column_of_the_table(data: Data) -> None:
    model = small()
    graph = graph_of(model, data)
    criterion = MaxCKA(similarity=STATISTICS)
    layer = "layer2.0.conv1"
    x, _ = STATISTICS.calibration.batch(data.train, 2)
    seen: list[Tensor] = []
    module = model.get_submodule(layer)
    handle = module.register_forward_hook(lambda m, i, o: seen.extend((i[0], o)))
    with torch.no_grad():
        model(x)
    handle.remove()
    tables = tables_of(Grams(), *(channel_maps(module, maps) for maps in seen))
    expected = tables.cross.amax(0)
    assert torch.allclose(criterion.scores(model, graph, data)[layer], expected, atol=1e-5)


def test_a_dead_filter_scores_below_all_others(data: Data) -> None:
    model = small()
    model.layer2[0].conv1.weight.data[3] = 0
    for kind in ("graph", "tree", "blocks", "max-CKA", "representatives", "APIB"):
        score = KINDS[kind].scores(model, graph_of(model, data), data)["layer2.0.conv1"]
        assert int(score.argmin()) == 3, kind
        if kind != "APIB":
            assert float(score[3]) == 0


def test_without_a_structure_the_order_is_that_of_max_cka(data: Data) -> None:
    """No coupling leaves a lasso, whose columns enter by their largest similarity."""
    model = small()
    graph = graph_of(model, data)
    order = EntryOrder(points=40)
    lasso = StructuredLasso(structure=Graph(kappa=0.0), similarity=STATISTICS, order=order)
    found, plain = (c.scores(model, graph, data) for c in (lasso, MaxCKA(similarity=STATISTICS)))
    for name in found:
        assert torch.equal(found[name].argsort(), plain[name].argsort())


def test_copies_of_a_filter_have_one_representative(data: Data) -> None:
    model = small()
    weight = model.layer3[0].conv1.weight.data
    weight[4:] = weight[:4]
    score = KINDS["representatives"].scores(model, graph_of(model, data), data)["layer3.0.conv1"]
    best = score.argsort(descending=True)[:4]
    assert sorted((best % 4).tolist()) == [0, 1, 2, 3]


@pytest.mark.slow
def test_another_penalty_may_stand_for_the_l1_part(data: Data) -> None:
    model = small()
    structure = Graph(entries=lambda lam: MCP(lam, gamma=3.0))
    order = EntryOrder(points=4, least=0.3)  # a penalty that is not convex takes its time
    criterion = replace(KINDS["graph"], structure=structure, order=order)
    assert set(criterion.scores(model, graph_of(model, data), data)) == {
        f"layer{stage}.0.conv1" for stage in (1, 2, 3)
    }


def test_a_solver_must_fit_the_structure(data: Data) -> None:
    model = small()
    criterion = replace(KINDS["graph"], solver=FISTA())
    with pytest.raises(ConfigError, match="GraphLasso"):
        criterion.scores(model, graph_of(model, data), data)


def test_networks_whose_layers_all_share_channels_are_told_how(data: Data) -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.linear = nn.Linear(4, 4)

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.first(images)
            return self.linear((hidden + self.second(hidden)).mean((2, 3)))

    model = Loop().eval()
    with pytest.raises(ConfigError, match=r"criterion\.shared=sum or max"):
        MaxCKA(similarity=STATISTICS).scores(model, graph_of(model, data), data)


def test_branches_of_inception_modules_are_scored_each_on_its_own() -> None:
    from prunekit.data import Synthetic

    data = Synthetic(train=20, val=4, test=4, image_size=32, channels=3).load()
    model = googlenet().eval()
    graph = graph_of(model, data)
    criterion = MaxCKA(similarity=Statistics(calibration=Calibration(8)))
    scores = criterion.scores(model, graph, data)
    assert set(scores) == {group.name for group in graph.groups}


@pytest.mark.parametrize("name", ["sglp", "stlp", "apib", "max_cka", "representatives"])
def test_named_criteria_prune_in_one_call(name: str, data: Data) -> None:
    model = small()
    assert isinstance(CRITERIA.named(name, Criterion), Criterion)
    batches = [next(iter(data.train.epoch(40, None)))]
    pruned = prune(model, batches[0][0][:2], keep=0.5, criterion=name, data=batches, scope="local")
    assert pruned.after.params < pruned.before.params
