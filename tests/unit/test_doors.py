"""The same request gives the same network from Python and from the command line."""

from __future__ import annotations

import re

import pytest
import torch
from hydra import compose, initialize_config_dir

import prunekit
from prunekit.build import build
from prunekit.config import config_dir, groups, resolve
from prunekit.criteria import CRITERIA, Criterion
from prunekit.selection import SELECTIONS, Selection, Widths
from prunekit.solvers import SOLVERS, Solver

KINDS = {
    "criterion": (CRITERIA, Criterion),
    "selection": (SELECTIONS, Selection),
    "solver": (SOLVERS, Solver),
}
PRESETS = {"lenet_2_8_77", "aulm_50", "admm_50"}  # other settings of a choice with a name
NEEDED = {"widths", "like_run"}  # have no default


@pytest.fixture(scope="module")
def composed():
    """What the command line makes of a choice, with the defaults of its file."""

    def make(group: str, name: str) -> object:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
            config = compose(config_name="prune", overrides=[f"{group}={name}"])
        return build(resolve(config)[group], group)

    return make


def text(made: object) -> str:
    """An object with all of its settings."""
    return re.sub(r" object at 0x\w+|(?<=\d)\.0\b", "", repr(made))


@pytest.mark.parametrize("group", KINDS)
def test_names_are_those_of_the_files(group):
    assert set(KINDS[group][0]) == set(groups()[group]) - PRESETS


@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in KINDS for n in groups()[g] if n not in PRESETS | NEEDED]
)
def test_a_name_means_the_same_at_both_doors(composed, group, name):
    registry, kind = KINDS[group]
    assert text(registry.resolve(name, kind)) == text(composed(group, name))


def test_what_has_no_default_is_asked_for_at_both_doors(composed):
    for name in NEEDED:
        with pytest.raises(prunekit.errors.ConfigError, match="needs "):
            SELECTIONS.resolve(name, Selection)
        with pytest.raises(prunekit.errors.ConfigError, match="is not set; give selection"):
            composed("selection", name)
    assert composed("selection", "lenet_2_8_77") == Widths({"conv1": 2, "conv2": 8, "fc1": 77})


def test_a_registered_name_of_ones_own_is_taken():
    @CRITERIA.register("last_first")
    class LastFirst(Criterion):
        def scores(self, model, graph, data, device="cpu"):
            return {g.name: torch.arange(len(g.units)).double() for g in graph.groups}

    try:
        net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        found = prunekit.prune(net, torch.randn(4, 3), keep=0.5, criterion="last_first")
        assert found.kept["0"].tolist() == [4, 5, 6, 7]
    finally:
        del CRITERIA._makers["last_first"]
