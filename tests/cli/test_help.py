"""Help that is quick, and complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from prunekit import __version__
from prunekit.cli import STAGES, TOOLS
from prunekit.config import config_dir, groups
from prunekit.schema import settings_of
from prunekit.solvers import AULM

HEAVY = ("torch", "hydra", "omegaconf", "rich", "pandas", "fvcore", "matplotlib", "sklearn")


def loaded(*arguments: str) -> set[str]:
    """The heavy packages that a command has imported when it ends."""
    script = (
        "import sys\nfrom prunekit.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n"
        f"    sys.stderr.write(' '.join(m for m in {HEAVY!r} if m in sys.modules))"
    )
    line = [sys.executable, "-c", script, *arguments]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    return set(found.stderr.split()) & set(HEAVY)


def test_help_lists_every_command(cli):
    found = cli("--help", smoke=False)
    assert found.code == 0 and found.err == ""
    for name, text in (STAGES | TOOLS).items():
        assert re.search(rf"^  {name} +{re.escape(text)}$", found.out, re.MULTILINE)
    assert set(STAGES) == {file.stem for file in config_dir().glob("*.yaml")} - {"config"}


def test_no_command_shows_the_help_as_a_mistake(cli):
    from prunekit.cli import main

    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


def test_version(cli):
    found = cli("--version", smoke=False)
    assert found.code == 0 and found.out == f"prunekit {__version__}\n"


def test_help_waits_for_nothing():
    assert loaded("--help") == set() and loaded("--version") == set()


def test_the_help_of_a_command_does_not_wait_for_torch():
    assert loaded("run", "--help") == {"hydra", "omegaconf"}


def test_a_wrong_override_does_not_wait_for_torch():
    assert "torch" not in loaded("run", "solver=absent")


@pytest.mark.parametrize("command", ["run", "measure"])
def test_the_help_of_a_command_lists_groups_and_settings(cli, command):
    found = cli(command, "--help", smoke=False)
    assert found.code == 0 and found.out.startswith(f"prunekit {command}: ")
    for group, options in groups().items():
        assert f"{group}: {', '.join(options)}\n" in found.out
    shown = [line.partition("  # ") for line in found.out.splitlines()]
    told = {line.rstrip(): meaning for line, _, meaning in shown}
    for line in ("solver:", "  rho: 1.0", "keep_zeros: false", "seed: 0", f"stage: {command}"):
        assert line in told
    assert told["  inner: null"] == settings_of(AULM)[1].comment
    assert told["absorb: auto"].endswith("(auto | maps | true | false)")
    assert "name: ${model.name}-${dataset.name}-${regularizer.name}" in told
    assert f"prunekit {command} -m regularizer.lam" in found.out and "--cfg job" in found.out


def test_settings_are_shown_without_running(cli, tmp_path):
    found = cli("run", "--cfg", "job", "--resolve", "regularizer.lam=0.7", smoke=False)
    assert found.code == 0 and found.out.count("lam: 0.7") == 2
    assert list(tmp_path.iterdir()) == []


def test_report_has_help_of_its_own(cli):
    found = cli("report", "--help", smoke=False)
    assert found.code == 0 and "--out" in found.out and "--plot" in found.out


def test_python_m_prunekit_is_the_same_command():
    line = [sys.executable, "-m", "prunekit", "--version"]
    found = subprocess.run(line, capture_output=True, text=True, check=True, cwd=Path("/"))
    assert found.stdout == f"prunekit {__version__}\n"
