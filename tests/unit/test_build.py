"""Settings become objects, and mistakes in them are found before anything is called."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass

import pytest

from prunekit.build import build, locate
from prunekit.errors import ConfigError, DataError


@dataclass
class Leaf:
    size: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.size, int):
            raise TypeError(f"size is a {type(self.size).__name__}")
        if self.size < 0:
            raise ConfigError(f"size={self.size} must be at least 0")


@dataclass
class Tree:
    left: object
    right: object = None


@dataclass
class Named:
    name: str


def anything(**settings):
    return settings


def broken():
    raise DataError("node.path=x is not there")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """The module under the name that targets use, however the tests were imported."""
    from types import ModuleType

    module = ModuleType("made_of_settings")
    for found in (Leaf, Tree, Named, anything, broken):
        setattr(module, found.__name__, found)
    monkeypatch.setitem(sys.modules, "made_of_settings", module)


def target(name: str, /, **settings: object) -> dict[str, object]:
    return {"_target_": f"made_of_settings.{name}", **settings}


def test_plain_values_come_back_unchanged():
    node = {"a": [1, "two", None, {"b": 2.5}], "c": True}
    assert build(node) == node


def test_targets_are_built_children_first_wherever_they_are():
    node = {"list": [target("Tree", left=target("Leaf", size=2), right=[target("Leaf")])]}
    assert build(node) == {"list": [Tree(Leaf(2), [Leaf(1)])]}


def test_building_changes_nothing_and_can_be_repeated():
    node = target("Tree", left=target("Leaf", size=2, name="label"))
    before = repr(node)
    assert build(node) == build(node)
    assert repr(node) == before


def test_a_partial_is_a_callable_with_its_arguments_bound():
    made = build(target("Tree", right=target("Leaf", size=3), _partial_=True))
    assert isinstance(made, functools.partial)
    assert made(1) == Tree(1, Leaf(3))
    assert build(target("Tree", left=1, _partial_=False)) == Tree(1)


def test_name_is_a_label_unless_the_class_takes_it():
    assert build(target("Leaf", name="small", size=2)) == Leaf(2)
    assert build(target("Named", name="small")) == Named("small")
    assert build(target("anything", name="small", size=2)) == {"size": 2}


def test_an_object_of_another_class_is_refused_where_it_stands():
    assert build(target("Leaf"), "a", Leaf) == Leaf()
    for node, what in ((target("Leaf"), "Leaf"), ({"left": 1}, "dict")):
        with pytest.raises(ConfigError, match=rf"^a describes a {what}, not a Tree; give a _tar"):
            build(node, "a", Tree)


def test_a_module_in_the_current_folder_is_found_and_what_is_installed_comes_first(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_of_hers.py").write_text("class Net:\n    pass\n")
    (tmp_path / "math.py").write_text("raise AssertionError\n")
    assert locate("nets_of_hers.Net").__module__ == "nets_of_hers"
    assert locate("math.sqrt")(4) == 2
    monkeypatch.delitem(sys.modules, "nets_of_hers")


@pytest.mark.parametrize(
    ("node", "where", "parts"),
    [
        (target("Leaf", sise=2), "model", ["model.sise", "Leaf", "did you mean size"]),
        (target("Leaf", sise=2, _partial_=True), "model", ["model.sise", "did you mean size"]),
        (target("Tree"), "model", ["model", "Tree", "'left'"]),
        (target("Tree", left=target("Leaf", sise=2)), "a", ["a.left.sise"]),
        ([target("Leaf", size="big")], "a", ["a.0", "size='big'", "size is a str"]),
        (target("Leaf", size=-1), "a", ["a.size=-1", "at least 0"]),
        ({"_target_": "made_of_settings.Leef"}, "a", ["a._target_", "Leef", "dotted path"]),
        ({"_target_": "no_such_package.Net"}, "a", ["a._target_", "no_such_package"]),
        ({"_target_": "Leaf"}, "a", ["a._target_='Leaf'", "dotted path"]),
        ({"_target_": 3}, "a", ["a._target_", "3"]),
        ({"_target_": "math.pi"}, "a", ["a._target_='math.pi'", "not a class"]),
    ],
)
def test_mistakes_name_the_key_and_the_way_out(node, where, parts):
    with pytest.raises(ConfigError) as caught:
        build(node, where)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_the_kind_of_an_error_stays_and_a_named_place_is_not_named_twice():
    with pytest.raises(DataError, match=r"^node\.path=x is not there$"):
        build(target("broken"), "node")
    with pytest.raises(DataError, match=r"^other: node\.path=x"):
        build(target("broken"), "other")


def test_built_ins_without_a_signature_can_be_targets():
    assert build({"_target_": "builtins.dict", "a": 1}) == {"a": 1}


def test_locate_finds_nested_modules():
    assert locate("prunekit.penalties.L1").__name__ == "L1"
