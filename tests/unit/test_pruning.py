"""Tests of `prunekit.prune`, and of training after it, against masked channels."""

from __future__ import annotations

import copy
from functools import partial

import networks
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adadelta, Adam, AdamW, RMSprop
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import prunekit
from prunekit import models
from prunekit.criteria import BatchNormScale, L2Norm, Taylor
from prunekit.data import Synthetic
from prunekit.errors import ConfigError, DataError, PrunekitError, SurgeryError, TraceError
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel
from prunekit.methods.slimming import Slimming
from prunekit.selection import Scored
from prunekit.surgery import Narrow, load_model
from prunekit.surgery.optimizer import parameter_origins

torch.set_num_threads(1)


class Net(nn.Module):
    """A network with batch norm, a shortcut, PReLU and two linear layers with a tied weight."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, width, 3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.inner = nn.Conv2d(width, 6, 3, padding=1)
        self.act = nn.PReLU(6)
        self.outer = nn.Conv2d(6, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width)
        self.two.weight = self.one.weight
        self.head = nn.Linear(width, 3)
        networks.randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (x + self.norm2(self.outer(self.act(self.inner(x))))).relu().mean((2, 3))
        return self.head(self.two(self.one(x).relu()).relu())


X = torch.randn(12, 3, 7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
Y = torch.arange(12) % 3


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(X), Y).backward()
        optimizer.step()


def twin(
    net: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Copy a network and its optimizer, so that they belong together."""
    memo: dict = {}
    return copy.deepcopy(net, memo), copy.deepcopy(optimizer, memo)


def close(one: nn.Module, other: nn.Module) -> None:
    states = one.state_dict(), other.state_dict()
    assert [*states[0]] == [*states[1]]
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-9, atol=1e-11, msg=name)


OPTIMIZERS = {
    "momentum": partial(SGD, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "nesterov": partial(SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": partial(Adam, lr=0.01, amsgrad=True),
    "adamw": partial(AdamW, lr=0.01),
    "rmsprop": partial(RMSprop, lr=0.01, momentum=0.5, centered=True),
    "adadelta": partial(Adadelta),
}


class TestOptimizer:
    """Narrow training with narrowed state must equal masked training of the dense network."""

    def trained(self, make, **options):
        net = Net().double()
        optimizer = make(net.parameters())
        steps(net, optimizer)
        return net, optimizer, prunekit.prune(net, X, keep=0.5, absorb=False, **options)

    def masked(self, net, optimizer, result):
        """Continue with the dense network and masked channels, and cut it afterwards."""
        drop = result.graph.drop({name: ~mask for name, mask in result.masks.items()})
        with result.graph.silencer(net, drop):
            steps(net, optimizer)
        result.edits[0].apply(net)
        return net

    @pytest.mark.parametrize("name", sorted(OPTIMIZERS))
    def test_training_goes_on_as_if_masked(self, name):
        net, optimizer, result = self.trained(OPTIMIZERS[name])
        dense, dense_optimizer = twin(net, optimizer)
        assert result.narrow_optimizer(optimizer) is optimizer
        steps(result.model, optimizer)
        close(result.model, self.masked(dense, dense_optimizer, result))

    @pytest.mark.parametrize("block", sorted(networks.BLOCKS))
    def test_with_every_kind_of_block(self, block):
        net = networks.Network([[block, 8]]).train()

        def go_on(model, optimizer):
            for _ in range(2):
                optimizer.zero_grad()
                model(net.example).square().mean().backward()
                optimizer.step()

        optimizer = SGD(net.parameters(), lr=0.01, momentum=0.9)
        go_on(net, optimizer)
        result = prunekit.prune(net, net.example, keep=0.5, absorb=False)
        dense, dense_optimizer = twin(net, optimizer)
        result.narrow_optimizer(optimizer)
        go_on(result.model, optimizer)
        drop = result.graph.drop({name: ~mask for name, mask in result.masks.items()})
        with result.graph.silencer(dense, drop):
            go_on(dense, dense_optimizer)
        result.edits[0].apply(dense)
        close(result.model, dense)

    def test_without_the_state_it_is_another_training(self):
        """Check that the test above can fail."""
        net, optimizer, result = self.trained(OPTIMIZERS["momentum"])
        steps(result.model, OPTIMIZERS["momentum"](result.model.parameters()))
        with pytest.raises(AssertionError):
            close(result.model, self.masked(net, optimizer, result))

    def test_groups_options_rates_and_frozen_parameters(self):
        net = Net().double()
        net.inner.weight.requires_grad_(False)
        rest = [p for n, p in net.named_parameters() if "norm" not in n and p.requires_grad]
        norms = [*net.norm2.parameters(), *net.norm.parameters()]
        optimizer = SGD(
            [{"params": rest, "weight_decay": 0.1}, {"params": norms, "lr": 0.2}],
            lr=0.1,
            momentum=0.9,
        )
        plan = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        steps(net, optimizer)
        result = prunekit.prune(net, X, keep=0.5, absorb=False)
        dense, dense_optimizer = twin(net, optimizer)
        result.narrow_optimizer(optimizer)
        narrow = result.model
        groups = optimizer.param_groups
        assert [id(p) for p in groups[1]["params"]] == [
            id(p) for p in (*narrow.norm2.parameters(), *narrow.norm.parameters())
        ]
        assert len(groups[0]["params"]) == len(rest) and groups[0]["weight_decay"] == 0.1
        assert id(narrow.inner.weight) not in {id(p) for g in groups for p in g["params"]}
        assert narrow.one.weight is narrow.two.weight
        plan.step()
        assert [group["lr"] for group in groups] == [0.05, 0.1]
        for group in dense_optimizer.param_groups:
            group["lr"] *= 0.5
        steps(narrow, optimizer)
        close(narrow, self.masked(dense, dense_optimizer, result))

    def test_new_biases_join_their_weights(self):
        """Check the group of a new bias, which a convolution gets when it absorbs a constant."""
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1, bias=False)),
            *(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
        ).double()
        nn.init.constant_(net[1].bias, 0.5)
        convs = [*net[0].parameters(), *net[3].parameters()]
        optimizer = Adam([{"params": [*net[1].parameters()]}, {"params": convs, "lr": 0.2}])
        steps(net, optimizer)
        result = prunekit.prune(net, X, keep=0.5, absorb=True)
        assert net[3].bias is None and result.model[3].bias.abs().sum() > 0
        result.narrow_optimizer(optimizer)
        assert optimizer.param_groups[1]["params"][-1] is result.model[3].bias
        assert "exp_avg" in optimizer.state[result.model[3].weight]
        before = result.model[3].bias.detach().clone()
        steps(result.model, optimizer, 1)
        assert not torch.equal(before, result.model[3].bias)

    def test_what_is_refused_changes_nothing(self):
        net, optimizer, result = self.trained(OPTIMIZERS["adam"])
        foreign = SGD(Net().parameters(), lr=0.1)
        before = [*foreign.param_groups[0]["params"]]
        with pytest.raises(
            SurgeryError, match=r"shape \(8, 3, 3, 3\) that is not one of the dense"
        ):
            result.narrow_optimizer(foreign)
        assert all(a is b for a, b in zip(before, foreign.param_groups[0]["params"], strict=True))
        optimizer.state[net.stem.weight]["rows"] = torch.zeros(8)
        with pytest.raises(SurgeryError, match=r"'rows' of shape \(8,\) for stem.weight"):
            result.narrow_optimizer(optimizer)
        assert optimizer.param_groups[0]["params"][0] is net.stem.weight

    def test_recomputed_parameters_have_no_source(self):
        """Check a normalised weight, whose direction has another length without some inputs."""
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten())
        nn.utils.parametrizations.weight_norm(net[2])
        graph = ChannelGraph.trace(net, torch.zeros(1, 3, 5, 5))
        drop = graph.drop({"0": torch.tensor([False, True, False, True])})
        found = parameter_origins(net, [Narrow.of(graph, drop)])
        assert found["0.weight"].indices.tolist() == [
            *(torch.arange(108).view(4, 3, 3, 3)[[0, 2]].tolist())
        ]
        assert "2.parametrizations.weight.original0" not in found and "2.bias" in found


class TestCopies:
    """Tests of moving averages and other copies of the dense network."""

    def test_a_moving_average(self):
        net = Net().double()
        optimizer = SGD(net.parameters(), lr=0.1)
        average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        for _ in range(2):
            steps(net, optimizer, 1)
            average.update_parameters(net)
        result = prunekit.prune(net, X, keep=0.5, absorb=False)
        before = copy.deepcopy(average)
        narrow = result.narrow_copy(average)
        close(average, before)
        assert type(narrow) is AveragedModel and int(narrow.n_averaged) == 2
        drop = result.graph.drop({name: ~mask for name, mask in result.masks.items()})
        average.eval(), narrow.eval()
        with result.graph.silencer(average.module, drop):
            torch.testing.assert_close(narrow(X), average(X))
        steps(result.model, SGD(result.model.parameters(), lr=0.1), 1)
        narrow.update_parameters(result.model)
        assert int(narrow.n_averaged) == 3

    def test_constants_of_the_copy_are_its_own(self):
        """Check that a copy with other shifts absorbs its own constants."""
        net = nn.Sequential(
            *(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten())
        ).eval()
        other = copy.deepcopy(net)
        for model, shift in ((net, 1.0), (other, 3.0)):
            nn.init.zeros_(model[1].weight)
            nn.init.constant_(model[1].bias, shift)
        x = torch.randn(2, 3, 4, 4)
        result = prunekit.prune(net, x, keep=0.5, absorb=True)
        torch.testing.assert_close(result.model(x), net(x))
        torch.testing.assert_close(result.narrow_copy(other)(x), other(x))


class TestResult:
    """Tests of the result of `prune`."""

    def test_the_dense_network_is_untouched_and_modes_are_kept(self):
        net = Net()
        net.norm.eval()
        before, modes = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
        result = prunekit.prune(net, X[:1].float(), keep=0.5)
        assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)
        assert [m.training for m in net.modules()] == modes
        assert [m.training for m in result.model.modules()] == modes
        mine = {p.data_ptr() for p in result.model.parameters()}
        assert not mine & {p.data_ptr() for p in net.parameters()}

    def test_what_was_kept(self):
        net = Net()
        result = prunekit.prune(net, X.float(), keep=0.5, criterion="l2_norm")
        for name, kept in result.kept.items():
            norms = L2Norm().scores(net, result.graph, None)[name]
            best = norms.argsort(descending=True)[: len(kept)].sort().values
            assert kept.tolist() == best.tolist()
        assert result.widths["inner"] == (6, 3) and result.widths["head"] == (3, 3)
        assert torch.equal(
            result.model.inner.weight,
            net.inner.weight[result.kept["inner"]][:, result.kept["stem"]],
        )
        assert result.after.params == sum(p.numel() for p in result.model.parameters())
        assert result.before.macs > result.after.macs and result.agreement.worst < 1e-5

    def test_it_prints_a_table(self):
        text = str(prunekit.prune(Net(), X.float(), keep=0.5))
        assert text.startswith("Net: ") and "parameters (" in text
        assert "narrow = silenced network up to" in text
        assert ["inner", "6", "3"] in [line.split() for line in text.splitlines()]

    def test_save_and_load(self, tmp_path):
        result = prunekit.prune(Net().eval(), X.float(), keep=0.5, absorb=True)
        result.save(tmp_path / "own.pt", note="x")
        result.save(tmp_path / "arch.pt", {"_target_": "prunekit.models.LeNet5"})
        saved = load_model(tmp_path / "own.pt", module=Net(8).eval())
        assert torch.equal(saved.model(X.float()), result.model(X.float()))
        assert saved.facts == {"note": "x"}
        assert torch.load(tmp_path / "arch.pt", weights_only=True)["arch"]["_target_"].endswith("5")

    def test_half_of_the_units_of_every_network(self):
        """Prune blocks of all kinds, save them and load them again."""
        for name in networks.BLOCKS:
            net = networks.Network([[name, 8]])
            result = prunekit.prune(net, net.example, keep=0.5)
            assert result.agreement.worst < 1e-9
            for group in result.graph.groups:
                assert len(result.kept[group.name]) <= max(0.75 * len(group.units), 2), name


class TestSettings:
    """Shares, scopes, patterns."""

    def net(self):
        torch.manual_seed(0)
        return models.LeNet5(widths=(8, 16, 32))

    def prune(self, **settings):
        return prunekit.prune(self.net(), torch.zeros(1, 1, 28, 28), **settings)

    def kept(self, **settings):
        return {name: len(kept) for name, kept in self.prune(**settings).kept.items()}

    def test_shares_of_channels(self):
        assert self.kept(keep=0.5) == {"conv1": 4, "conv2": 8, "fc1": 16}
        assert sum(self.kept(keep=0.5, scope="global").values()) == 28
        assert self.kept(keep=1) == {"conv1": 8, "conv2": 16, "fc1": 32}
        assert self.kept(keep=1e-6) == {"conv1": 1, "conv2": 1, "fc1": 1}
        assert self.kept(keep=0.4, round_to=4) == {"conv1": 4, "conv2": 8, "fc1": 12}
        assert self.kept(keep=0.5, ignore=["fc*"])["fc1"] == 32
        assert self.kept(keep=0.5, layers={"conv*": 0.25}) == {"conv1": 2, "conv2": 4, "fc1": 16}

    def test_the_least_width_is_told(self):
        assert any("least width" in note for note in self.prune(keep=1e-6).notes)

    @pytest.mark.parametrize("scope", ["local", "global"])
    def test_budgets(self, scope):
        found = self.prune(macs=0.5, scope=scope)
        assert 0.4 < found.after.macs / found.before.macs <= 0.5
        assert [budget.name for budget in found.budgets] == ["MACs"]
        found = self.prune(params=0.3, scope=scope, absorb=False)
        assert 0.2 < found.after.params / found.before.params <= 0.3

    def test_a_selection_in_place_of_a_share(self):
        net, rule = Net().double(), Slimming(0.3)
        found = prunekit.prune(net, X, selection=rule, criterion="bn_scale")
        scores = BatchNormScale().scores(net, found.graph, None)
        scored = Scored(scores, found.graph, CostModel(net, found.graph))
        masks = rule.select(scored).keep
        assert all(torch.equal(mask, found.masks[name]) for name, mask in masks.items())
        assert found.budgets == rule.select(scored).budgets
        rule = Slimming(0.99, rule="published")
        with pytest.raises(ConfigError, match=r"^selection.ratio=0.99 would leave nothing of"):
            prunekit.prune(net, X, selection=rule, criterion="bn_scale")

    def test_latency(self):
        found = self.prune(latency=1)
        assert found.after.macs <= found.before.macs and found.budgets[0].name == "latency"
        assert found.budgets[0].requested == 1 and found.budgets[0].achieved > 0

    def test_data_for_criteria_that_look_at_examples(self):
        data = Synthetic(train=40, val=10, test=10).load()
        batches = [*data.train.epoch(16, None)]
        judge, other = Taylor(samples=40), iter(batches)
        first, *others = [
            self.prune(keep=0.5, criterion=judge, data=source).kept
            for source in (data, batches, other)
        ]
        assert all(torch.equal(kept[n], first[n]) for kept in others for n in first)
        weights = self.prune(keep=0.5).kept
        assert any(not torch.equal(weights[name], first[name]) for name in first)
        with pytest.raises(PrunekitError, match="Taylor"):
            self.prune(keep=0.5, criterion="taylor")
        with pytest.raises(DataError, match=r"batches of \(inputs, labels\)"):
            self.prune(keep=0.5, criterion="taylor", data=[torch.zeros(2, 1, 28, 28)])
        with pytest.raises(DataError, match="holds no batch"):
            self.prune(keep=0.5, criterion="taylor", data=iter(()))

    def test_absorption_by_itself_where_something_scored(self):
        net = self.net()
        with torch.no_grad():
            net.conv1.weight[:4].zero_()
            net.conv1.bias[:4].fill_(1.0)
        example = torch.zeros(1, 1, 28, 28)
        options = {"keep": 0.5, "ignore": ["conv2", "fc1"]}
        for absorb in ("auto", True):
            exact = prunekit.prune(net, example, absorb=absorb, **options)
            assert exact.absorbed.layers and exact.absorbed.exact and exact.distance.exact
        assert self.prune(keep=0.5).absorbed is not None
        assert self.prune(keep=0.5, absorb=False).absorbed is None

    @pytest.mark.parametrize(
        ("settings", "parts"),
        [
            (
                {"selection": Slimming(0.5), "keep": 0.5, "round_to": 8, "ignore": []},
                ["keep, round_to beside selection=Slimming(...)", "give that to it"],
            ),
            ({"selection": 0.5}, ["selection=0.5 is a float, not a Selection", "slimming"]),
            ({"selection": "slim"}, ["selection='slim' is unknown; did you mean slimming"]),
            ({"selection": Slimming(0.5, rounds=2)}, ["selection.rounds=2", "give rounds=1"]),
            ({}, ["exactly one of keep, macs, params and latency, or a", "none of them"]),
            ({"keep": 0.5, "macs": 0.5}, ["exactly one", "keep=0.5, macs=0.5"]),
            ({"keep": 0}, ["keep=0", "above 0"]),
            ({"keep": 1.5}, ["keep=1.5", "at most 1"]),
            ({"macs": -1}, ["macs=-1", "above 0"]),
            ({"params": 2}, ["params=2", "at most 1"]),
            ({"keep": "x"}, ["keep='x'", "number"]),
            ({"keep": 0.5, "criterion": "l1norm"}, ["criterion='l1norm'", "did you mean l1_norm"]),
            ({"keep": 0.5, "scope": "x"}, ["scope='x'", "local, global"]),
            ({"keep": 0.5, "absorb": "x"}, ["absorb='x'", "true, false, auto"]),
            ({"keep": 0.5, "round_to": 0}, ["round_to=0"]),
            ({"keep": 0.5, "ignore": ["fcc*"]}, ["'fcc*'", "did you mean", "fc1"]),
            ({"macs": 0.5, "layers": {"fc1": 1}}, ["layers", "keep"]),
            ({"macs": 1e-6}, ["cannot be reached"]),
        ],
    )
    def test_what_is_refused(self, settings, parts):
        with pytest.raises(ConfigError) as caught:
            self.prune(**settings)
        assert all(part in str(caught.value) for part in parts), str(caught.value)
        assert "\n" not in str(caught.value)

    def test_an_example_of_another_shape(self):
        line = r"LeNet5 fails on an example of shape \(1, 3, 28, 28\) at conv1, Conv2d"
        with pytest.raises(TraceError, match=line):
            prunekit.prune(self.net(), torch.zeros(1, 3, 28, 28), keep=0.5)


def test_a_budget_out_of_reach_is_told_in_the_words_of_the_call():
    net, example = models.LeNet5(), torch.randn(2, 1, 28, 28)
    with pytest.raises(ConfigError, match=r"^macs=0.0001 cannot be reached: .* leave 0.0\d+ to 1;"):
        prunekit.prune(net, example, macs=0.0001)
    nearest = prunekit.prune(net, example, macs=0.0001, on_miss="nearest")
    assert all(len(kept) == 1 for kept in nearest.kept.values())
    with pytest.raises(ConfigError, match="on_miss"):
        prunekit.prune(net, example, macs=0.5, on_miss="never")
