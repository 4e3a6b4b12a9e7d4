"""What a refitted cut says of itself, and what is carried over beside it."""

from __future__ import annotations

import pytest
import torch
from refits import Block, trained
from torch import Tensor, nn

import prunekit
from prunekit import engine
from prunekit.criteria import L1Norm
from prunekit.data import data_from_batches
from prunekit.engine import CutOptions, Traced
from prunekit.errors import SurgeryError
from prunekit.selection import PerLayer
from prunekit.surgery.equivalence import Gap
from prunekit.surgery.reconstruction import LeastSquares


def refitted(network: nn.Module, x: Tensor, **options: object) -> prunekit.Pruned:
    """Cut a network to half and refit it on these inputs."""
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.chunk(3)]
    return prunekit.prune(
        network, x[:2], keep=0.5, data=batches, reconstruct="least_squares", **options
    )


def test_what_refitting_moved_is_the_distance_of_the_network_from_the_cut_one() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    network = trained(Block(), x)
    found = refitted(network, x)
    before = found.pruning.with_constants(found.absorbed is not None).eval()
    batch = found.pruning.dense.batch.tensors[0]
    with torch.no_grad():
        gap = Gap.between(found.model.eval()(batch), before(batch))
    assert found.refitted.moved.relative > 0.01
    torch.testing.assert_close(found.refitted.moved.relative, gap.relative)
    assert found.refitted.seconds > 0
    assert f"outputs moved by {gap.relative:.2%}" in str(found)
    assert "float32; before layers were refitted" in str(found)
    assert found.agreement.worst < 1e-4  # of the cut itself, which refitting leaves on purpose


def test_without_a_check_nothing_is_compared() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    found = refitted(trained(Block(), x), x, check=False)
    assert found.refitted.layers and found.refitted.moved is None
    assert found.agreement is None and found.distance is None


@pytest.mark.parametrize(
    ("options", "refits"),
    [
        ({}, True),
        ({"reconstruct": None}, False),
        ({"reconstruct": "none"}, False),
        ({"absorb": "maps"}, False),
        ({"data": None}, False),
        ({"reconstruct": LeastSquares(images=20)}, True),
    ],
    ids=["default", "None", "none", "maps", "no data", "object"],
)
def test_layers_are_refitted_where_there_are_images(options: dict, refits: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    batches = [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.chunk(3)]
    found = prunekit.prune(trained(Block(), x), x[:2], keep=0.5, **{"data": batches, **options})
    assert (found.refitted is not None) == refits
    assert ("reconstruct=none leaves layers as they are" in str(found)) == refits


class Rigid(Block):
    """Runs on batches of one or two only."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 2:
            raise RuntimeError("two at most\nand no more")
        return super().forward(x)


def test_a_network_that_does_not_run_on_batches_is_told_how_to_go_on() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(60, 3, 8, 8), torch.zeros(60, dtype=torch.long)
    network, data = Rigid().eval(), [(x[:2], labels[:2]), (x[2:], labels[2:])]
    with pytest.raises(SurgeryError, match=r"could not be refitted: .*two at most; ") as caught:
        prunekit.prune(network, x[:2], keep=0.5, data=data, check=False)
    assert str(caught.value).endswith("reconstruct=none leaves them as they are")
    assert "\n" not in str(caught.value)


class PreActivation(nn.Module):
    """A norm in front of every layer, so that refitted layers get biases of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(8), nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(8, 6, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.conv1(self.norm1(x).relu())
        return self.head((x + self.conv2(self.norm2(y).relu())).relu().mean((2, 3)))


def test_averages_and_optimizers_keep_the_weights_before_refitting_and_stay_in_line() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    network = trained(PreActivation(), x)
    average = torch.optim.swa_utils.AveragedModel(network)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    network(x).sum().backward()
    optimizer.step()
    momenta = {n: optimizer.state[p]["momentum_buffer"] for n, p in network.named_parameters()}
    average.update_parameters(network)
    found = refitted(network.eval(), x, absorb=False)
    assert "conv2.bias" in dict(found.model.named_parameters())
    plain = found.pruning.with_constants(False)
    narrow = found.narrow_copy(average)
    for (name, p), (other, q) in zip(
        narrow.module.named_parameters(), found.model.named_parameters(), strict=True
    ):
        assert name == other and p.shape == q.shape
    assert torch.equal(narrow.module.conv2.weight, plain.conv2.weight)
    assert not torch.equal(found.model.conv2.weight, plain.conv2.weight)
    narrow.update_parameters(found.model)
    found.narrow_optimizer(optimizer)
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {
        id(p) for p in found.model.parameters()
    }
    state = optimizer.state[found.model.head.weight]["momentum_buffer"]
    stream = next(group for group in found.graph.groups if len(group.units) == 8)
    assert torch.equal(state, momenta["head.weight"][:, found.kept[stream.name]])


def test_layers_are_refitted_in_every_round() -> None:
    """Each round refits to the network that it cuts, as the training before left it."""
    torch.manual_seed(0)
    x = torch.randn(60, 3, 8, 8)
    network = trained(Block(), x)
    data = data_from_batches([(part, torch.zeros(20).long()) for part in x.chunk(3)], 60)
    dense = Traced.of(network, x[:2], x[:4])
    tuned: list[int] = []

    def tune(model: nn.Module, number: int) -> None:
        tuned.append(number)
        with torch.no_grad():
            model.get_submodule("head").bias += 1

    options = CutOptions(absorb=False, reconstruct=LeastSquares())
    found = engine.prune(dense, L1Norm(), PerLayer(0.5, rounds=2), options, data, tune)
    assert tuned == [1] and len(found.cuts) == 2
    assert all(len(cut.refitted.layers) == 4 for cut in found.cuts)
    with torch.no_grad():
        shift = found.cuts[1].model.eval()(x) - network(x)
    assert float((shift.mean(0) - 1).abs().max()) < 0.2
