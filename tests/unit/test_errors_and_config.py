"""What people read when a setting is wrong, and how composed settings become plain ones."""

from __future__ import annotations

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from prunekit import errors
from prunekit.cli.explain import explain
from prunekit.config import choose_reconstruction, config_dir, groups, resolve
from prunekit.errors import ConfigError, PrunekitError, one_of
from prunekit.validate import choice, integer, number


def test_every_error_is_one_kind():
    kinds = [
        kind
        for kind in vars(errors).values()
        if getattr(kind, "__module__", "") == errors.__name__ and isinstance(kind, type)
    ]
    assert len(kinds) > 5
    assert all(issubclass(kind, PrunekitError) for kind in kinds)


def test_one_of_names_the_nearest_or_all():
    assert one_of("aulmm", ["aulm", "proximal"]) == "did you mean aulm?"
    assert one_of("zzz", ["b", "a"]) == "accepted: a, b"
    assert one_of("zzz", []) == "nothing is accepted here"
    assert one_of("zzz", map("x{}".format, range(30))).endswith("and 14 more")


@pytest.mark.parametrize("value", ["1", None, True, float("nan"), float("inf"), [1]])
def test_number_refuses_what_is_none(value):
    with pytest.raises(ConfigError, match="lam="):
        number("lam", value)


def test_number_and_integer_keep_their_bounds():
    assert number("a", 0, at_least=0) == 0 and number("a", 1.0, at_most=1) == 1
    for bound in ({"above": 1}, {"below": 1}, {"at_least": 1.5}, {"at_most": 0.5}):
        with pytest.raises(ConfigError, match=r"a=1 must be"):
            number("a", 1, **bound)
    for value in (1.5, "1", True, None):
        with pytest.raises(ConfigError, match="whole number"):
            integer("a", value)
    with pytest.raises(ConfigError, match="'c' is unknown; accepted: a, b"):
        choice("a", "c", ("a", "b"))


def test_resolve_follows_interpolations_and_names_what_is_missing():
    config = OmegaConf.create({"a": 1, "b": {"c": "${a}", "d": ["${b.c}"]}})
    found = resolve(config)
    assert found == {"a": 1, "b": {"c": 1, "d": [1]}}
    assert type(found["b"]) is dict and type(found["b"]["d"]) is list
    for broken in ({"a": "???"}, {"a": "${nowhere}"}):
        with pytest.raises(ConfigError) as caught:
            resolve(OmegaConf.create(broken))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("command", "changes", "chosen"),
    [
        ("prune", {}, "least_squares"),
        ("run", {}, "none"),  # fine-tuning follows
        ("run", {"pipeline": ["pretrain", "prune"]}, "least_squares"),
        ("prune", {"dataset": {"name": "none"}}, "none"),
        ("prune", {"absorb": "maps"}, "none"),
        ("prune", {"reconstruct": {"name": "none"}}, "none"),
        ("run", {"reconstruct": {"name": "least_squares", "images": 7}}, "least_squares"),
    ],
    ids=["alone", "tuned", "short", "imageless", "maps", "off", "on"],
)
def test_auto_refits_where_there_are_images_and_nothing_follows(command, changes, chosen):
    settings = {
        "reconstruct": {"name": "auto"},
        "dataset": {"name": "digits"},
        "absorb": "auto",
        "pipeline": ["pretrain", "prune", "finetune"],
        **changes,
    }
    found = choose_reconstruction(settings, command)
    assert found["reconstruct"]["name"] == chosen
    assert ("_target_" in found["reconstruct"]) == (
        chosen != "none" and "reconstruct" not in changes
    )
    assert {**found, "reconstruct": None} == {**settings, "reconstruct": None}


def test_groups_are_the_folders():
    found = groups()
    assert {"model", "dataset", "regularizer", "solver", "selection"} <= set(found)
    assert "hydra" not in found
    assert "lenet5" in found["model"]
    assert (config_dir() / "config.yaml").is_file()


def test_explain_leaves_bugs_alone_and_joins_lines():
    for bug in (KeyError("x"), RuntimeError("x"), ValueError("x"), TypeError("x")):
        assert explain(bug, "run", []) is None
    assert explain(ConfigError("two\nlines"), "run", []) == "two lines"
    error = PermissionError(13, "Permission denied", "outputs/a")
    line = "outputs/a cannot be used: Permission denied; mend that, or choose root=..."
    assert explain(error, "run", []) == line


def test_an_argument_of_ones_own_class_is_added_with_a_plus():
    choices = ["model=custom", "model._target_=mynet.MyNet", "model.width=8"]
    place = initialize_config_dir(version_base="1.3", config_dir=str(config_dir()))
    with place, pytest.raises(HydraException) as caught:
        compose(config_name="pretrain", overrides=choices)
    line = explain(caught.value, "pretrain", choices)
    assert line.startswith("model.width is not in the file of that choice; +model.width=... gives")
