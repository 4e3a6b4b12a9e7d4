"""Every criterion and every selection keeps the units that it kept, on six networks.

A cross-section of what `python -m scripts.golden record` wrote; its `compare` is the whole.
Entries that a change of the weights by three millionths flips are left out, since the last bits of
another processor may flip them too; so are the numbers of a clock.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scripts.golden.cells import CRITERIA, SELECTIONS
from scripts.golden.kept import (
    ALIKE,
    KEPT,
    ON_THE_COMMAND_LINE,
    PLAINLY,
    REFUSED,
    Bench,
    on_the_command_line,
    read,
    selections,
)
from scripts.golden.networks import NETWORKS

SLOW = {  # lassos, and what a stage has to leave its files for: on one network
    **{"apib": "vgg", "sglp": "lenet", "stlp": "vgg", "stlp_block": "mobilenet"},
    **{"stlp_mixed": "lenet", "matrix": "resnet", "stored": "densenet"},
}
KNOWN = {name: read(KEPT / f"{name}.json") for name in NETWORKS}


def python_cells():
    """Each criterion once a network, with another selection on each."""
    for place, network in enumerate(NETWORKS):
        for number, criterion in enumerate(CRITERIA):
            if SLOW.get(criterion, network) != network:
                continue
            names = _sure(network, criterion)
            if names:
                yield network, criterion, names[(number + 5 * place) % len(names)]


def cli_cells():
    """Each selection that is asked on the command line once, on one network after another."""
    networks = [*NETWORKS]
    quick = [name for name in CRITERIA if name not in SLOW]
    for number, name in enumerate(ON_THE_COMMAND_LINE):
        network = "lenet" if name == "lenet_2_8_77" else networks[number % len(networks)]
        asked = [
            criterion
            for criterion in quick
            if on_the_command_line(network, criterion, name)
            and name in _sure(network, criterion)
            and not _kept(network, criterion, name)[0]
        ]
        yield network, asked[number % len(asked)], name


def _sure(network, criterion):
    """Selections whose outcome no last bit decides."""
    fragile = KNOWN[network]["fragile"].get(criterion, ())
    return [name for name in selections(network) if name not in fragile]


def _kept(network, criterion, name):
    """Whether the pair is refused, and what is kept."""
    text = KNOWN[network]["python"][criterion][name]
    return text.startswith(REFUSED), text


@pytest.fixture(scope="module")
def benches(tmp_path_factory):
    """The networks, with what belongs to them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: Bench(name, tmp_path_factory.mktemp("golden")) for name in NETWORKS}
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("network", "criterion", "selection"), [*python_cells()])
def test_python_keeps_what_it_kept(benches, network, criterion, selection):
    refused, known = _kept(network, criterion, selection)
    found = benches[network].python(criterion, selection)
    if refused:  # in whatever words, by the same kind of error
        assert found.split(":")[0] == known.split(":")[0]
    else:
        assert found == known


@pytest.mark.parametrize(("network", "criterion", "selection"), [*cli_cells()])
def test_the_command_line_keeps_what_it_kept(benches, network, criterion, selection):
    known = KNOWN[network]["cli"][criterion][selection]
    expected = KNOWN[network]["python"][criterion][selection] if known == ALIKE else known
    assert benches[network].cli(criterion, selection) == expected


@pytest.mark.parametrize(
    ("criterion", "asked"),
    [*((criterion, "macs") for criterion in CRITERIA if criterion not in SLOW)]
    + [(criterion, asked) for criterion in ("l1_norm", "lamp") for asked in PLAINLY],
)
def test_a_name_and_a_share_mean_the_same_at_both_doors(benches, criterion, asked):
    """Where nothing else is said, too: in the past defaults stood in two places."""
    bench = benches["resnet"]
    assert bench.bare_python(criterion, PLAINLY[asked]) == bench.bare_cli(criterion, asked)


def test_the_cross_section_has_everything():
    python, cli = [*python_cells()], [*cli_cells()]
    assert {cell[0] for cell in python} == set(NETWORKS)
    assert {cell[1] for cell in python} == set(CRITERIA)
    assert {cell[2] for cell in (*python, *cli)} == set(SELECTIONS)
    assert {cell[2] for cell in cli} == set(ON_THE_COMMAND_LINE)


def test_both_doors_kept_the_same():
    for known in KNOWN.values():
        assert {one for row in known["cli"].values() for one in row.values()} == {ALIKE}


def test_every_choice_of_the_configs_is_there():
    configs = Path(__file__).resolve().parents[2] / "configs"
    assert {file.stem for file in (configs / "criterion").glob("*.yaml")} == set(CRITERIA)
    asked = (*ON_THE_COMMAND_LINE, "latency", "refit_error")  # of refits: test_refit_error.py
    for file in (configs / "selection").glob("*.yaml"):
        assert any(name.startswith(file.stem) for name in asked), file.stem
