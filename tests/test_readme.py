"""What README.md says works: the Python, the commands, the make targets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
from cli.conftest import call

import prunekit
from prunekit.graph import ChannelGraph
from prunekit.measure import CostModel

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str = "") -> list[str]:
    """The fenced blocks of README.md in a language."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in fenced if name == language]


def commands() -> list[str]:
    """Every prunekit command line, in blocks and in running text."""
    lines = [line for text in blocks() for line in text.splitlines()]
    return [line.split("#")[0].strip() for line in lines if line.startswith("prunekit ")]


def first(word: str) -> str:
    """The first value of a sweep; a list is one value."""
    return word if "=[" in word else word.split(",")[0]


def test_the_loop_of_your_own_makes_a_smaller_network():
    """Fewer steps than there; the narrow network computes what the silenced one does."""
    (code,) = [text for text in blocks("python") if "attach" in text]
    short = code.replace("range(200)", "range(55)")
    assert short != code
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names: dict[str, object] = {}
    try:
        exec(compile(short, "README.md", "exec"), names)
    finally:
        torch.set_num_threads(threads)
    model, narrow, sparse = (names[key] for key in ("model", "narrow", "sparse"))
    images = torch.randn(16, 1, 28, 28)
    cost = CostModel(model, sparse.graph)
    keep = names["half"].choose(sparse.scores(), sparse.graph, cost)
    drop = sparse.graph.drop({name: ~mask for name, mask in keep.items()})
    with torch.no_grad(), sparse.graph.silencer(model.eval(), drop):
        silenced = model(images)
    assert sum(p.numel() for p in narrow.parameters()) == cost.params(drop) < cost.params() / 2
    with torch.no_grad():
        torch.testing.assert_close(narrow.eval()(images), silenced, rtol=1e-4, atol=1e-5)
    groups = ChannelGraph.trace(narrow, images[:1]).groups
    assert [len(group.units) for group in groups] == [10, 25, 250]


@pytest.mark.parametrize("line", commands())
def test_every_command_is_one(line, tmp_path, monkeypatch, capfd):
    """Settings are composed, nothing runs; `report` gets a directory without runs."""
    monkeypatch.chdir(tmp_path)
    shown = blocks("yaml")[0]
    place = tmp_path / shown.splitlines()[0].removeprefix("# ")
    place.parent.mkdir(parents=True)
    place.write_text(shown)
    command, *rest = shlex.split(line)[1:]
    if command == "report":
        assert call(command, *rest) == 1 and "no run found" in capfd.readouterr().err
        return
    swept = [first(word) for word in rest if word != "-m"]
    assert call(command, *swept, "--cfg", "job", "--resolve") == 0, capfd.readouterr().err
    out = capfd.readouterr().out
    for word in swept:
        key, _, value = word.partition("=")
        if "." in key and "@" not in key:
            assert f"{key.rsplit('.', 1)[1]}: {value}" in out
    assert [path.name for path in tmp_path.iterdir()] == [place.parts[len(tmp_path.parts)]]


def test_no_command_is_left_out():
    assert len(commands()) >= 5
    named = set(re.findall(r"`prunekit (\w+)", README)) | {line.split()[1] for line in commands()}
    from prunekit.cli import STAGES, TOOLS

    assert named - {"COMMAND"} == set(STAGES | TOOLS)


def test_choices_in_the_text_exist():
    from prunekit.config import groups

    for group, options in groups().items():
        for text in re.findall(rf"`{group}=([\w |]+?)[ `]", README):
            assert text in options
        for text in re.findall(rf"`{group}=(\w+(?: \| \w+)+)`", README):
            assert set(text.split(" | ")) == set(options)


def test_every_make_target_exists():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = re.findall(r"`?make ([a-z-]+)", " ".join(re.findall(r"`[^`]+`", README)))
    named += [line.split()[1] for text in blocks() for line in text.splitlines() if "make " in line]
    assert len(named) >= 3 and set(named) <= set(targets)


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        assert link.startswith("http") or (ROOT / link).exists(), link


def test_public_names_are_not_hidden_by_modules_of_the_same_name() -> None:
    """Importing a module puts it on the package, over a function that has its name."""
    modules = {file.stem for file in (ROOT / "prunekit").glob("*.py")}
    assert not modules & set(prunekit._OWNERS)


def test_the_one_call_prunes_saves_and_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = [text for text in blocks("python") if "prunekit.prune" in text]
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    pruned, narrow, images = (names[key] for key in ("pruned", "narrow", "images"))
    assert pruned.after.macs <= pruned.before.macs / 2
    assert "narrow = silenced network up to" in capsys.readouterr().out
    with torch.no_grad():
        torch.testing.assert_close(narrow.eval()(images), pruned.model.eval()(images))
