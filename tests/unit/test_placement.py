"""Blocks of networks by hand counts, the places in them, and what is refused."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torchvision
from omegaconf import OmegaConf
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from prunekit import models
from prunekit.build import build
from prunekit.config import config_dir, groups, resolve
from prunekit.errors import ConfigError
from prunekit.methods.hinge import InsertMatrices, Placement, Site
from prunekit.methods.hinge.blocks import Block, blocks
from prunekit.methods.hinge.places import Sites

X = torch.zeros(1, 3, 32, 32)


def conv(inputs, outputs, kernel=3, groups=1):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)


def ours(name):
    """A network of ours without numbers, which nothing here needs."""
    with torch.device("meta"):
        return getattr(models, name)()


def foreign(name):
    extra = {"init_weights": False} if name == "googlenet" else {}
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        return torchvision.models.get_model(name, weights=None, **extra)


def counted(net, side=32):
    return dict(Counter(one.kind for one in blocks(net, torch.zeros(1, 3, side, side))))


class Net(nn.Module):
    """A stem, a residual branch, and a head; `shared` activates in front of the fork."""

    def __init__(self, branch, stem=None, shared=None, width=8):
        super().__init__()
        self.stem, self.branch = stem or conv(3, width), branch
        self.shared = shared or nn.Identity()
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.shared(self.stem(x))
        return self.head(F.relu(self.branch(x) + x).mean((2, 3)))


def norm(width=8):
    return nn.BatchNorm2d(width)


def acted(width=8):
    return nn.Sequential(norm(width), nn.ReLU())


# by hand: 9 and 27 blocks of two; 13 convolutions but the stem; 3 * 12 layers and 2 transitions
OURS = {
    "resnet20": {"basic": 9},
    "resnet56": {"basic": 27},
    "vgg16": {"plain": 12},
    "vgg16_three_linear": {"plain": 12},
    "densenet40": {"dense": 38},
    "preresnet164": {"bottleneck": 54},
    "resnet164": {"bottleneck": 54},
    "resnext20": {"grouped": 6},
    "resnext164": {"grouped": 54},
    "wrn16_10": {"preactivation": 6},
}
OTHERS = {
    "resnet18": {"basic": 8},
    "resnet50": {"bottleneck": 3 + 4 + 6 + 3},
    "resnext50_32x4d": {"grouped": 16},
    "wide_resnet50_2": {"bottleneck": 16},
    # 17 blocks, 10 of them residual; 1 projection alone, 6 expansions and projections, the end
    "mobilenet_v2": {"grouped": 10, "plain": 1 + 6 * 2 + 1},
    # 11 blocks, 6 of them residual; gates are left out
    "mobilenet_v3_small": {"grouped": 6, "plain": 1 + 4 * 2 + 1},
    # 9 modules: 4 convolutions are concatenated, 2 come before them; 2 before all modules
    "googlenet": {"dense": 9 * 4, "plain": 2 + 9 * 2},
    # 6 + 12 + 24 + 16 layers of two, 3 transitions
    "densenet121": {"plain": 58, "dense": 58 + 3},
    "regnet_y_400mf": {"grouped": 1 + 3 + 6 + 6},
    "regnet_x_400mf": {"grouped": 1 + 2 + 7 + 12},
    "convnext_tiny": {"plain": 3},  # all others are stem or depthwise
    # 16 units: expansions, projections, 3 projections of other branches, the end
    "shufflenet_v2_x1_0": {"plain": 16 + 1, "dense": 16 + 3},
    "squeezenet1_1": {"plain": 8 + 1, "dense": 8 * 2},
}


@pytest.mark.parametrize("name", OURS)
def test_kinds_in_our_networks(name):
    assert counted(ours(name)) == OURS[name]


@pytest.mark.parametrize("name", OTHERS)
def test_kinds_in_networks_of_torchvision(name):
    assert counted(foreign(name), 64) == OTHERS[name]


def test_layers_and_names():
    first, *_, last = blocks(ours("resnet20"), X)
    assert first == Block("basic", "layer1.0", ("layer1.0.conv1", "layer1.0.conv2"))
    assert last.name == "layer3.2"
    found = {one.name: one for one in blocks(foreign("mobilenet_v2"), X)}
    layers = tuple(f"features.3.conv.{part}" for part in ("0.0", "1.0", "2"))
    assert found["features.3.conv"] == Block("grouped", "features.3.conv", layers)
    assert found["features.1.conv.1"].layers == ("features.1.conv.1",)


def test_a_module_around_two_blocks_names_neither():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = conv(3, 8)
            self.convs = nn.ModuleList(conv(8, 8) for _ in range(4))

        def forward(self, x):
            x = self.stem(x)
            for first, second in zip(self.convs[::2], self.convs[1::2], strict=True):
                x = x + second(F.relu(first(x)))
            return x

    found = blocks(Two(), X)
    assert [one.name for one in found] == ["convs.0", "convs.2"]
    assert {one.kind for one in found} == {"basic"}


class Gated(nn.Module):
    """Expansion, grouped convolution, squeeze and excitation, projection."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = conv(8, 8, 1), conv(8, 8, 3, groups=4), conv(8, 8, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down, self.up = conv(8, 4, 1), conv(4, 8, 1)

    def forward(self, x):
        x = F.relu(self.two(F.relu(self.one(x))))
        scale = torch.sigmoid(self.up(F.relu(self.down(self.pool(x)))))
        return self.three(x * scale)


class Parallel(nn.Module):
    """Two convolutions side by side."""

    def __init__(self, joined):
        super().__init__()
        self.one, self.two = conv(8, 4 if joined else 8), conv(8, 4 if joined else 8)
        self.joined = joined

    def forward(self, x):
        one, two = self.one(x), self.two(x)
        return torch.cat([one, two], 1) if self.joined else one + two


class Shuffled(nn.Module):
    """Channels change places in front of the grouped convolution."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = conv(8, 8, 1), conv(8, 8, 3, groups=4), conv(8, 8, 1)
        self.shuffle = nn.ChannelShuffle(2)

    def forward(self, x):
        return self.three(self.two(self.shuffle(self.one(x))))


class Repeated(nn.Module):
    """One convolution called twice."""

    def __init__(self):
        super().__init__()
        self.conv = conv(8, 8)

    def forward(self, x):
        return self.conv(F.relu(self.conv(x)))


POST = (conv(8, 8), acted(), conv(8, 8), norm())
PRE = (acted(), conv(8, 8), acted(), conv(8, 8))
BRANCHES = {
    "norms behind": (Net(nn.Sequential(*POST)), "basic"),
    "no norms": (Net(nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8))), "basic"),
    "norms in front": (Net(nn.Sequential(*PRE)), "preactivation"),
    "norms in front and behind": (Net(nn.Sequential(acted(), *POST)), "preactivation"),
    "norm of the stem": (Net(nn.Sequential(*POST), shared=acted()), "basic"),
    "norm of the stem alone": (
        Net(nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8)), shared=acted()),
        "basic",
    ),
    "norm in front of the fork": (Net(nn.Sequential(*PRE[1:]), shared=acted()), "preactivation"),
    "1 x 3 and 3 x 1": (
        Net(nn.Sequential(nn.Conv2d(8, 8, (1, 3), padding=(0, 1)), nn.ReLU(), conv(8, 8))),
        "basic",
    ),
    "one": (Net(conv(8, 8)), "branch"),
    "three": (Net(nn.Sequential(*(conv(8, 8) for _ in range(3)))), "branch"),
    "gate": (Net(Gated()), "grouped"),
    "concatenated": (Net(Parallel(True)), "branch"),
    "added": (Net(Parallel(False)), "branch"),
    "shuffled": (Net(Shuffled()), "branch"),
    "repeated": (Net(Repeated()), "branch"),
    "depthwise alone": (Net(conv(8, 8, 3, groups=8)), None),
    "wider groups": (
        Net(nn.Sequential(conv(8, 8, 1), conv(8, 16, 3, groups=8), conv(16, 8, 1))),
        "branch",
    ),
    "on the input": (Net(nn.Sequential(conv(3, 3), conv(3, 3)), nn.Identity(), width=3), "branch"),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_kinds_of_branches(name):
    net, kind = BRANCHES[name]
    assert {one.kind for one in blocks(net, X)} == ({kind} if kind else set())


class Inner(nn.Module):
    """A basic block, and a convolution behind it."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.end = conv(8, 8), conv(8, 8), conv(8, 8)

    def forward(self, x):
        return self.end(F.relu(x + self.two(F.relu(self.one(x)))))


def test_blocks_within_a_branch_come_first():
    found = {one.name: one.kind for one in blocks(Net(Inner()), X)}
    assert found == {"branch.one": "basic", "branch.end": "branch"}


def test_shortcuts_and_gates_are_in_no_block():
    held = {name for one in blocks(ours("resnet164"), X) for name in one.layers}
    assert not any("shortcut" in name for name in held)
    (gated,) = blocks(Net(Gated()), X)
    assert gated.layers == ("branch.one", "branch.two", "branch.three")


def placed(net, *args, **kwargs):
    found = Placement(*args, **kwargs).sites(net, X)
    return {one.layer: (one.sides, one.start, one.role) for one in found.sites}, found


ROWS, COLUMNS, GROUPS, BOTH = ("rows",), ("columns",), ("groups",), ("rows", "columns")


def test_basic_blocks_get_rows_twice():
    found = Placement().sites(ours("resnet20"), X).sites
    assert len(found) == 18
    names = [
        f"layer{stage}.{block}.conv{n}" for stage in (1, 2, 3) for block in range(3) for n in (1, 2)
    ]
    assert [one.layer for one in found] == names
    assert found[1] == Site("layer1.0.conv2", ROWS, "svd", "layer1.0", "second")


def test_each_kind_has_its_defaults():
    first, second = ("branch.2", "branch.4")
    net = Net(nn.Sequential(norm(), nn.ReLU(), conv(8, 8), acted(), conv(8, 8)))
    assert placed(net)[0] == {
        first: (COLUMNS, "identity", "first"),
        second: (ROWS, "identity", "second"),
    }
    net = Net(nn.Sequential(conv(8, 4, 1), conv(4, 4), conv(4, 8, 1)))
    assert placed(net)[0] == {
        "branch.0": (COLUMNS, None, "first"),
        "branch.2": (ROWS, None, "second"),
    }
    assert placed(Net(conv(8, 8)))[0] == {"branch": (ROWS, "svd", "")}


@pytest.mark.parametrize("groups", [8, 4, 2])
def test_groups_of_one_channel_need_no_mark(groups):
    net = Net(nn.Sequential(conv(8, 8, 1), conv(8, 8, 3, groups), conv(8, 8, 1)))
    sites, found = placed(net)
    assert sites == {"branch.0": (GROUPS, None, "first"), "branch.2": (GROUPS, None, "second")}
    assert {one.block for one in found.sites} == {"branch"}
    assert found.whole == (("branch.1",) if groups < 8 else ())


def test_plain_chains_keep_what_a_linear_layer_reads():
    sites, found = placed(ours("vgg16"), {"plain": ["rows+columns"]})
    assert sites.pop("features.conv5_3") == (ROWS, "svd", "")
    assert set(sites.values()) == {(BOTH, "svd", "")}
    assert found.notes == ("features.conv5_3 gets no columns: a linear layer reads them",)
    sites, found = placed(ours("vgg16"), {"plain": ["columns"]})
    assert set(sites.values()) == {(COLUMNS, "identity", "")} and len(sites) == 11


def test_columns_that_are_added_or_leave_the_network_stay():
    chain = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8))
    sites, found = placed(chain)
    assert sites == {"2": (BOTH, "svd", ""), "4": (ROWS, "svd", "")}
    assert found.notes == ("4 gets no columns: they leave the network",)
    net = Net(conv(8, 8), stem=nn.Sequential(conv(3, 8), conv(8, 8)))
    assert placed(net)[0]["stem.1"][0] == ROWS


def test_starts():
    net = ours("resnet20")
    assert {one for _, one, _ in placed(net, start="identity")[0].values()} == {"identity"}
    columns, rows = [*placed(net, {"basic": ["columns", "rows"]})[0].values()][:2]
    assert (columns[1], rows[1]) == ("identity", "svd")
    weighed = placed(ours("vgg16"), {"plain": ["columns"]}, start="svd_weight")[0]
    assert {one for _, one, _ in weighed.values()} == {"svd_weight"}
    assert {one for _, one, _ in placed(Net(Gated()), start="svd")[0].values()} == {None}


def test_ignored_layers_leave_their_partner_alone():
    sites, _ = placed(ours("resnet20"), ignore=["layer1.*", "*2.0.conv1"])
    assert "layer2.0.conv1" not in sites and not any(name.startswith("layer1") for name in sites)
    assert sites["layer2.0.conv2"] == (ROWS, "svd", "")
    assert sites["layer2.1.conv2"] == (ROWS, "svd", "second")
    with pytest.raises(ConfigError, match="finds no place for a matrix in Net; set placement=none"):
        placed(Net(Gated()), ignore=["branch.one"])


def test_layers_by_name_come_before_patterns_and_blocks():
    layers = {"layer1.*": "columns", "layer1.0.conv1": "rows+columns", "conv1": "rows"}
    sites, found = placed(ours("resnet20"), layers=layers)
    assert sites["conv1"] == (ROWS, "svd", "")
    assert sites["layer1.0.conv1"] == (BOTH, "svd", "first")
    assert sites["layer1.1.conv1"] == (COLUMNS, "identity", "first")
    assert sites["layer1.1.conv2"] == (ROWS, "svd", "second")  # columns reach an addition
    assert sites["layer2.0.conv1"] == (ROWS, "svd", "first")
    assert "layer1.1.conv2 gets no columns: its outputs are added to others" in found.notes


def test_a_layer_that_is_named_is_not_ignored():
    sites, _ = placed(ours("resnet20"), layers={"layer1.0.conv1": "rows"}, ignore=["layer1.0.*"])
    assert "layer1.0.conv1" in sites and "layer1.0.conv2" not in sites


def test_patterns_reach_every_convolution_of_a_block():
    sites, _ = placed(ours("resnet164"), {}, layers={"layer1.0.*": "rows"})
    assert sites == {f"layer1.0.conv{n}": (ROWS, "svd", "") for n in (1, 2, 3)}
    sites, _ = placed(Net(Gated()), {}, layers={"*": "rows"})
    assert [*sites] == ["branch.one", "branch.three"]


def tied():
    net = Net(nn.Sequential(conv(8, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 8)))
    net.branch[2].weight = net.branch[0].weight
    return net


def test_weights_that_a_matrix_cannot_take_apart_are_left_out():
    sites, found = placed(tied())
    assert [*sites] == ["branch.4"]
    assert "branch.0 gets no rows: another layer has the same weight" in found.notes
    net = Net(nn.Sequential(weight_norm(conv(8, 8)), conv(8, 8), conv(8, 8)))
    sites, found = placed(net)
    assert [*sites] == ["branch.1", "branch.2"] and "is computed" in found.notes[0]


class Called(nn.Module):
    """Convolutions in ways that no matrix goes with."""

    def __init__(self):
        super().__init__()
        self.stem, self.next = conv(3, 8), conv(8, 8)
        self.function, self.up = conv(8, 8), nn.ConvTranspose2d(8, 8, 1)
        self.deep, self.normed = conv(8, 8, 3, 8), weight_norm(conv(8, 8))
        self.unused, self.own = conv(8, 8), Own(8, 8, 3, padding=1)
        self.act, self.end = nn.ReLU(), conv(8, 4)

    def forward(self, x):
        x = self.act(self.next(self.stem(x)))
        x = F.conv2d(x, self.function.weight, padding=1)
        return self.end(self.own(self.normed(self.deep(self.up(x)))))


class Own(nn.Conv2d):
    """A class of the user's own."""


REFUSED = {
    "act": "ReLU is no convolution",
    "nxt": "no layer has that name; did you mean next",
    "function": "is not called as a module",
    "unused": "is not called as a module",
    "up": "is transposed",
    "deep": "its 8 groups would be mixed",
    "normed": "its weight is computed; remove the parametrisation",
    "own": "Own is a class of its own",
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_take_no_matrix_are_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"^placement\.layers\.{name}.*{REFUSED[name]}") as found:
        placed(Called(), {}, layers={name: "rows"})
    assert "\n" not in str(found.value)


def test_columns_that_stay_are_refused_by_name():
    with pytest.raises(ConfigError, match=r"layers\.end=columns: they leave the network; name"):
        placed(Called(), {}, layers={"end": "columns"})
    with pytest.raises(ConfigError, match=r"conv2=rows\+columns: its outputs are added"):
        placed(ours("resnet20"), layers={"layer1.0.conv2": "columns+rows"})


BAD = {
    "an unknown kind": ({"blocks": {"bsic": ["rows"]}}, r"blocks\.bsic.*did you mean basic"),
    "one side for two": ({"blocks": {"basic": ["rows"]}}, r"list of 2, such as \[rows, rows\]"),
    "no list": ({"blocks": {"plain": "rows"}}, r"^blocks\.plain='rows' is not a list"),
    "no mapping": ({"blocks": ["basic"]}, r"^blocks=\['basic'\] is not a mapping"),
    "an unknown side": ({"blocks": {"plain": ["row"]}}, r"plain\[0\]='row' .*accepted: rows, "),
    "half a side": ({"layers": {"x": "rows+"}}, r"layers\.x='rows\+' is not accepted"),
    "a side twice": ({"layers": {"x": "rows+rows"}}, r"is not accepted"),
    "no word": ({"layers": {"x": 1}}, r"^layers\.x=1 is no text"),
    "groups of a chain": ({"layers": {"x": "groups"}}, r"accepted: rows, columns, rows\+columns"),
    "columns added": ({"blocks": {"basic": ["rows", "columns"]}}, r"basic\[1\]='columns'"),
    "rows of 1 x 1": ({"blocks": {"bottleneck": ["rows", "rows"]}}, r"bottleneck\[0\]='rows'"),
    "groups and rows": ({"blocks": {"grouped": ["groups", "rows"]}}, r"accepted: groups$"),
    "an unknown start": ({"start": "qr"}, r"^start='qr' is unknown"),
    "one pattern": ({"ignore": "layer1.*"}, r"^ignore='layer1\.\*' is not a list"),
    "rows of norm 1": ({"blocks": {"dense": ["rows"]}, "start": "svd_weight"}, r"take start=svd$"),
    "all of norm 1": ({"start": "svd_weight"}, r"svd_weight with rows"),
    "norm 1 by name": (
        {"blocks": {}, "layers": {"x": "rows"}, "start": "svd_weight"},
        r"svd_weight with rows in layers\.x",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_settings_are_refused_where_they_are_given(name):
    settings, message = BAD[name]
    with pytest.raises(ConfigError, match=message) as found:
        Placement(**settings)
    assert "\n" not in str(found.value)


def test_what_the_network_lacks_is_refused():
    for settings, message in (
        ({"blocks": {"plain": ["rows"]}}, r"has no plain blocks; it has basic \(9\)"),
        ({"ignore": ["layr1.*"]}, r"ignore=layr1\.\* matches no convolution; did you mean"),
        ({"layers": {"layr1.*": "rows"}}, r"layers\.layr1\.\* matches no convolution"),
    ):
        with pytest.raises(ConfigError, match=message):
            Placement(**settings).sites(ours("resnet20"), X)
    for net in (nn.Sequential(nn.Flatten(), nn.Linear(3072, 2)), nn.Sequential(conv(3, 8))):
        for layers in ({}, {"*": "rows"}):
            with pytest.raises(ConfigError, match="finds no place for a matrix in Sequential"):
                Placement(layers=layers).sites(net, X)
    with pytest.raises(ConfigError, match="has no plain blocks; it has none of any kind"):
        Placement({"plain": ["rows"]}).sites(nn.Sequential(conv(3, 8)), X)


def test_a_network_with_matrices_gets_no_more():
    net = models.resnet20()
    InsertMatrices.of(net, X, Placement()).apply(net)
    with pytest.raises(ConfigError, match="has matrices already; fold them first"):
        Placement().sites(net, X)


class Frozen(nn.Module):
    """The inner channels of a block leave the network too."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.three = (
            conv(3, 8),
            conv(8, 4, 1),
            conv(4, 4),
            conv(4, 8, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        inner = self.one(x)
        return F.relu(x + self.three(F.relu(self.two(inner)))), inner


def test_a_block_whose_channels_stay_is_refused_or_left_out():
    with pytest.raises(
        ConfigError, match=r"columns of one cannot vanish: they leave.*ignore=\[one"
    ):
        placed(Frozen(), {"bottleneck": ["columns", "rows"]})
    sites, found = placed(Frozen())
    assert sites == {"three": (ROWS, None, "")}
    assert found.notes == ("one gets no columns: they leave the network",)


FITTING = {
    "auto": ("resnet20", 18),
    "rows_rows": ("resnet20", 18),
    "columns_rows": ("resnet20", 18),
    "bottleneck": ("resnet164", 2 * 54),
    "groups": ("resnext20", 12),
    "rows_columns": ("vgg16", 12),
    "dense_rows": ("densenet40", 38),
    "identity": ("wrn16_10", 12),
    "low_rank": ("preresnet164", 3 * 54),
}


@pytest.mark.parametrize("name", FITTING)
def test_configs_fit_networks(name):
    net, count = FITTING[name]
    assert len(build(composed(name), "placement").sites(ours(net), X).sites) == count


def test_there_is_no_other_config():
    assert set(groups()["placement"]) == {*FITTING, "none"}
    assert build(composed("none"), "placement").sites(ours("resnet20"), X) == Sites(())


def composed(name):
    return resolve(OmegaConf.load(config_dir() / "placement" / f"{name}.yaml"))
