"""Files in --config-dir that are no settings: one line, and nothing is made of them."""

from __future__ import annotations

import time

import pytest

from prunekit.cli.own_files import check_own_files
from prunekit.errors import ConfigError

ALIASES = "\n".join(
    ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
)
BAD = {
    "objects": ("seed: !!python/object/apply:os.mkdir [made]", "line 1: !!python/object/apply:os"),
    "names": ("a: 1\nseed: !!python/name:os.system", "line 2: !!python/name:os.system makes"),
    "bomb": (ALIASES, "holds more than 20,000 values; write fewer aliases"),
    "circle": ("seed: &a [*a]", "line 1: *a holds itself"),
    "deep": (f"seed: {'[' * 5000}{']' * 5000}", "line 1 is nested too deeply"),
    "tabs": ("seed:\n\t- 1", "is no YAML in line 2: found character '\\t'"),
    "documents": ("seed: 1\n---\nseed: 2", "holds several documents"),
    "binary": ("seed: \x00\x01", "is no YAML: special characters are not allowed"),
    "list": ("- 1\n- 2", "holds no settings; write KEY: VALUE lines"),
    "text": ("seed", "holds no settings; write KEY: VALUE lines"),
    "itself": ("defaults: [mine]", "lead back to it; take that entry out"),
    "each other": ("defaults: [{/experiment: other}]", "lead back to it; take that entry out"),
}
GOOD = {
    "empty": "",
    "comment": "# nothing yet",
    "aliases": "a: &a {seed: 1}\nb: [*a, *a]\nc: *a",
    "defaults": "defaults: [other, _self_, {override /solver: aulm}]\nseed: 1",
    "twenty levels": f"a: {'[' * 20}{']' * 20}",
}


@pytest.fixture
def check(tmp_path):
    """Return a function that checks a text as the chosen experiment."""
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "broken.yaml").write_text("seed: [")

    def run(text: str, other: str = "seed: 1") -> None:
        (folder / "mine.yaml").write_text(text)
        (folder / "other.yaml").write_text(other)
        check_own_files(["experiment=mine", f"--config-dir={tmp_path}"])

    return run


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_is_no_settings(check, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, message = BAD[name]
    begun = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        check(text, other="defaults: [mine]")
    said = str(caught.value)
    assert message in said and "mine.yaml" in said and "\n" not in said
    assert time.monotonic() - begun < 5
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", GOOD)
def test_a_file_of_settings_is_read_by_hydra(check, name):
    check(GOOD[name])


def test_only_chosen_files_are_checked(tmp_path, check):
    check("seed: 1")
    check_own_files(["experiment=absent", "--config-dir", str(tmp_path)])
    check_own_files(["experiment=broken"])
    with pytest.raises(ConfigError, match=r"broken\.yaml is no YAML"):
        check_own_files(["+experiment=mine,broken", "--config-dir", str(tmp_path)])
