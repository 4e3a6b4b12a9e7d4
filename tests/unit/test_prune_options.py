"""Tests of options of `prunekit.prune`: cuts under layer norms, biases per position."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD

import prunekit
from prunekit.criteria import CRITERIA, LAMP, Criterion, L1Norm
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.selection import MacsTarget, MeanNorm, Ranking
from prunekit.surgery import BiasMaps, load_model

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class ConvNeXt(nn.Module):
    """Two blocks with a layer norm over channels, a scale per channel and a shortcut."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Conv2d(3, width, 2, 2), nn.Linear(width, 3)
        self.deep = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, groups=width) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(3 * width, width) for _ in range(2))
        self.scale = nn.Parameter(torch.rand(2, width)[0])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for deep, norm, up, down in zip(self.deep, self.norms, self.up, self.down, strict=True):
            y = down(F.gelu(up(norm(deep(x).permute(0, 2, 3, 1))))) * self.scale
            x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean((2, 3)))


class TestOverNorms:
    """Tests that channels under a layer norm are kept unless `over_norms` is set."""

    def test_they_stay_and_the_cut_is_exact(self):
        found = prunekit.prune(ConvNeXt(), X, keep=0.5)
        assert found.widths["stem"] == (8, 8) and found.widths["up.0"] == (24, 12)
        assert found.agreement.worst < 1e-5
        assert not any("over_norms" in note for note in found.notes)

    def test_on_request_they_go_and_the_report_says_what_that_means(self):
        found = prunekit.prune(ConvNeXt(), X, keep=0.5, over_norms=True)
        assert found.widths["stem"] == (8, 4) and found.model.norms[0].normalized_shape == (4,)
        assert found.model(X).shape == (6, 3)
        (note,) = [note for note in found.notes if "over_norms" in note]
        assert "norms.0, norms.1" in note and "not exactly the silenced one" in note
        assert "not exact" in found.agreement.note and found.agreement.worst > 1e-4
        assert "not exact" in str(found) and "over_norms" in str(found)

    def test_a_network_without_such_norms_has_no_such_note(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3))
        found = prunekit.prune(net, X, keep=0.5, over_norms=True)
        assert found.agreement.worst < 1e-5
        assert not any("over_norms" in note for note in found.notes)


class Padded(nn.Module):
    """A network whose constants meet zero padding, where only a bias per position is exact."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.one, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.two, self.head = nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 3)
        self.norm.bias.data.uniform_(0.5, 1.5)
        self.norm.weight.data[:4].zero_()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(F.relu(self.norm(self.one(x)))).relu().mean((2, 3)))


OPTIONS = {"keep": 0.5, "criterion": "bn_scale"}


class TestMaps:
    """Tests of absorb="maps": exact at padded borders, for one input size."""

    def made(self):
        net = Padded().eval()
        return net, prunekit.prune(net, X, absorb="maps", **OPTIONS)

    @torch.no_grad()
    def test_the_outputs_stay(self):
        """Check units of scale zero, which put out constants only."""
        net, found = self.made()
        assert len(found.kept["one"]) == 4 and found.absorbed.exact
        torch.testing.assert_close(found.model(X), net(X), rtol=1e-5, atol=1e-6)
        means = prunekit.prune(net, X, absorb=True, **OPTIONS)
        assert not means.absorbed.exact and means.absorbed.change.after > 1e-3
        torch.testing.assert_close(found.narrow_copy(net)(X), net(X), rtol=1e-5, atol=1e-6)

    @torch.no_grad()
    def test_files(self, tmp_path):
        _, found = self.made()
        assert any(isinstance(edit, BiasMaps) for edit in found.edits)
        found.save(tmp_path / "model.pt")
        saved = load_model(tmp_path / "model.pt", module=Padded().eval())
        assert torch.equal(saved.model(X), found.model(X))

    def test_it_can_be_traced_cut_and_trained_further(self):
        net, found = self.made()
        graph = ChannelGraph.trace(found.model, X)
        assert {group.name: len(group.units) for group in graph.groups} == {"one": 4, "two.0": 6}
        again = prunekit.prune(found.model, X, keep=0.5, absorb="maps")
        assert again.agreement.worst < 1e-5 and again.widths["two.0"] == (6, 3)
        optimizer = found.narrow_optimizer(SGD(net.parameters(), lr=0.1, momentum=0.9))
        before = found.model.two[0].weight.detach().clone()
        found.model(X).sum().backward()
        optimizer.step()
        assert not torch.equal(before, found.model.two[0].weight)

    def test_export(self, tmp_path):
        pytest.importorskip("onnx", reason="needs the extra: pip install prunekit[export]")
        pytest.importorskip("onnxruntime", reason="needs the extra: pip install prunekit[export]")
        pytest.importorskip("onnxscript", reason="needs the extra: pip install prunekit[export]")
        _, found = self.made()
        written = prunekit.export_onnx(found.model, X, tmp_path / "model.onnx")
        other = prunekit.export_program(found.model, X, tmp_path / "model.pt2")
        assert max(written.difference, other.difference) < 1e-5


class TestComparable:
    """Tests that scores which are comparable between layers are not normalised."""

    def net(self):
        torch.manual_seed(3)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 48, 3), nn.ReLU(), nn.Conv2d(48, 4, 3))
        )

    @pytest.mark.parametrize(("name", "as_it_is"), [("lamp", True), ("l1_norm", False)])
    def test_a_global_budget(self, name, as_it_is):
        net = self.net()
        net[0].weight.data *= 3
        net[2].weight.data[:6] *= 0.5
        found = prunekit.prune(net, X, macs=0.5, scope="global", criterion=name)
        judge = {"lamp": LAMP(), "l1_norm": L1Norm()}[name]
        scores, cost = judge.scores(net, found.graph, None), CostModel(net, found.graph)
        assert judge.comparable is as_it_is
        plain = MacsTarget(0.5, normalise=None, scope="global")
        scaled = replace(plain, normalise=MeanNorm())
        rules = (plain, scaled) if as_it_is else (scaled, plain)
        wanted, other = (rule.choose(scores, found.graph, cost) for rule in rules)
        assert all(torch.equal(found.masks[group], wanted[group]) for group in wanted)
        assert any(not torch.equal(found.masks[group], other[group]) for group in other)

    def test_which_criteria_compare(self):
        compare = {name for name in CRITERIA if CRITERIA.resolve(name, Criterion).comparable}
        behind = {"contribution_variance", "layer_obs", "unexplained_variance"}
        assert compare == {"lamp", "hessian", "taylor", *behind}


def test_a_selection_orders_the_units_once(monkeypatch):
    """Check that one ranking serves the selection, its budget, its notes and emptied layers."""
    made = []
    start = Ranking.__init__
    monkeypatch.setattr(Ranking, "__init__", lambda *given: made.append(1) or start(*given))
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    for scope in ("local", "global"):
        found = prunekit.prune(net, torch.randn(2, 3, 8, 8), macs=0.5, scope=scope)
        asked = (found.budgets, found.notes, found.masks, str(found))
        assert len(asked[0]) == 1 and made == [1]
        made.clear()
