"""The command line starts on platforms that lack modules of Unix."""

from __future__ import annotations

import subprocess
import sys

import pytest

WITHOUT_FCNTL = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == "fcntl":
            raise ImportError("No module named 'fcntl'")

sys.modules.pop("fcntl", None)
sys.meta_path.insert(0, Missing())
"""
MODULES = (
    *("prunekit.cli.jobs", "prunekit.cli.sweep", "prunekit.runs.lock", "prunekit.runs.clean"),
    *("prunekit.reporting.command", "prunekit.stages.pipeline", "filelock"),
)


def run_without_fcntl(line: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, "-c", f"{WITHOUT_FCNTL}\n{line}\nassert 'fcntl' not in sys.modules"]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_the_help_needs_no_fcntl():
    ended = run_without_fcntl("from prunekit.cli import main; main(['--help'])")
    assert ended.returncode == 0, ended.stderr
    assert "pretrain" in ended.stdout and "sparsify" in ended.stdout


@pytest.mark.parametrize("name", MODULES)
def test_modules_of_the_command_line_need_no_fcntl(name):
    ended = run_without_fcntl(f"import {name}")
    assert ended.returncode == 0, ended.stderr


def test_the_hook_hides_the_module():
    assert run_without_fcntl("import fcntl").returncode != 0
