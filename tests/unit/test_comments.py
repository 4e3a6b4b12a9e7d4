"""Comments of config files say what the classes say, for help to read without torch."""

from __future__ import annotations

from typing import Any

import yaml

from prunekit.build import locate
from prunekit.comments import keys, package, read_comments, write_comments
from prunekit.config import config_dir
from prunekit.schema import settings_of
from prunekit.stages.settings import Root
from scripts import comment_configs as script

FILES = [f for f in sorted(config_dir().rglob("*.yaml")) if "hydra" not in f.parts]


def test_comments_are_what_the_classes_say():
    stale = [str(file) for file in FILES if script.written(file) != file.read_text()]
    assert not stale, f"run python scripts/comment_configs.py, which rewrites {stale}"


def named() -> set[tuple[str, str]]:
    """Classes and functions of prunekit that configs name, with every key they are given."""
    found: set[tuple[str, str]] = set()

    def look(node: Any) -> None:
        if isinstance(node, dict):
            target = str(node.get("_target_", ""))
            if target.startswith("prunekit."):
                names = {setting.name for setting in settings_of(locate(target))}
                found.update((target, key) for key in node if key in names)
        for inner in node.values() if isinstance(node, dict) else node:
            if isinstance(inner, dict | list):
                look(inner)

    for file in FILES:
        look(yaml.safe_load(file.read_text()) or {})
    return found


def test_every_setting_of_the_configs_has_a_meaning_and_a_comment_somewhere():
    told = read_comments(config_dir())
    for target, key in named():
        settings = {setting.name: setting for setting in settings_of(locate(target))}
        assert settings[key].meaning, f"{target}.{key} says nothing of itself"
        assert told.get((target, key)) == settings[key].comment, (
            f"no file comments {target}.{key}: give it a line of its own in one of them"
        )
    assert len(named()) > 150


def test_the_root_of_all_configs_is_described_whole():
    keys_of = set(yaml.safe_load((config_dir() / "config.yaml").read_text()))
    assert keys_of - {"defaults", "hydra"} == {setting.name for setting in settings_of(Root)}
    assert all(setting.meaning for setting in settings_of(Root))


TEXT = """\
# a line of its own stays
_target_: made.Thing
size: 3   # an old remark
of:
  - 1
inner:
  _target_: made.Other
  size: 4
again: {_target_: made.Other, size: 5}
long: {_target_: made.Other, size: 6}
other: "a # b"
"""


def test_a_comment_goes_behind_each_key_once_and_in_place_of_the_old_one():
    told = {
        ("made.Thing", "size"): "how large",
        ("made.Thing", "of"): "of what",
        ("made.Thing", "again"): "once more",
        ("made.Thing", "long"): "much too long " * 5,
        ("made.Thing", "other"): "text",
        ("made.Other", "size"): "another size",
    }
    assert (
        write_comments(TEXT, told)
        == """\
# a line of its own stays
_target_: made.Thing
size: 3         # how large
of:             # of what
  - 1
inner:
  _target_: made.Other
  size: 4  # another size
again: {_target_: made.Other, size: 5}  # once more
long: {_target_: made.Other, size: 6}
other: "a # b"  # text
"""
    )
    assert write_comments(write_comments(TEXT, told), told) == write_comments(TEXT, told)


def test_comments_are_read_by_class_or_by_place(tmp_path):
    (tmp_path / "penalty").mkdir()
    (tmp_path / "penalty" / "one.yaml").write_text("lam: 1  # strength\nof: {a: 1}\n")
    (tmp_path / "all.yaml").write_text("# @package _global_\nlam: 2  # only here\n")
    (tmp_path / "thing.yaml").write_text(TEXT)
    assert read_comments(tmp_path) == {
        ("penalty", "lam"): "strength",
        ("made.Thing", "size"): "an old remark",
    }
    assert package(tmp_path, tmp_path / "a" / "b" / "c.yaml", "x: 1") == "a.b"
    assert keys("") == []
