"""Stages as frozen values of typed parts: what they read, and what a finished one does not need."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from prunekit.config import config_dir, resolve
from prunekit.data import Synthetic
from prunekit.errors import ConfigError
from prunekit.runs.layout import PIPELINE, READ_ONLY_STAGES, STAGES
from prunekit.selection import Zeros
from prunekit.stages import find_stage_class, network
from prunekit.stages.stage import select_settings

START = {"model", "weights"}
READS = {
    "pretrain": {"schedule.pretrain", *START},
    "sparsify": {"regularizer", "solver", "order", "schedule.sparsify", "placement"}
    | {"channel_selection", *START},
    "sensitivity": {"criterion", "sensitivity", "absorb", "over_norms", "statistics", "placement"}
    | {"channel_selection", *START},
    "prune": {"criterion", "selection", "absorb", "over_norms", "statistics", "diagnose"}
    | {"schedule.between", "placement", "channel_selection", "reconstruct", *START},
    "features": {"features"},
    "finetune": {"schedule.finetune", "keep_zeros", "distill", "head"},
    "export": {"latency", "export", "quantize"},
    "measure": {"latency", "source"},
}


@pytest.fixture(scope="module")
def settings():
    with initialize_config_dir(version_base="1.3", config_dir=str(config_dir())):
        return resolve(compose(config_name="run", overrides=["dataset=synthetic"]))


def changed(settings: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """The settings with another value at a dotted key."""
    first, _, rest = key.partition(".")
    return {**settings, first: changed(settings[first], rest, value) if rest else value}


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_reads_what_its_fields_say(settings, name):
    kind = find_stage_class(name)
    assert set(kind.reads(sourced=False)) == READS[name] | {"seed", "dataset"}
    kept = START if name == "pretrain" else set()
    assert set(kind.reads(sourced=True)) == READS[name] - (START - kept) | {"seed", "dataset"}
    stage = kind.of(settings)
    assert isinstance(stage.dataset, Synthetic)
    assert not any(isinstance(getattr(stage, field.name), dict) for field in fields(stage))
    with pytest.raises(FrozenInstanceError):
        stage.seed = 1
    told = select_settings(settings, kind.reads(sourced=False))
    assert told["dataset"] == settings["dataset"] and "runtime" not in told


def test_every_stage_has_one_class_and_one_entry():
    assert [find_stage_class(entry.name).name for entry in PIPELINE] == [*STAGES]
    assert {entry.name for entry in PIPELINE if entry.read_only} == READ_ONLY_STAGES


@pytest.mark.parametrize(
    ("name", "key", "value", "words"),
    [
        ("prune", "absorb", "always", "absorb='always' is unknown; accepted: auto, maps, true"),
        ("prune", "selection", {"_target_": "prunekit.penalties.L1", "lam": 1}, "selection descri"),
        ("prune", "selection.min_keep", -1, "selection.min_keep=-1 must be at least 0"),
        ("pretrain", "seed", 0.5, "seed=0.5 is not a whole number"),
        ("finetune", "keep_zeros", "no", "keep_zeros='no'"),
        ("finetune", "schedule", {}, "the setting schedule.finetune is missing"),
        ("sparsify", "regularizer", {"name": "x"}, "regularizer has no penalty and target"),
    ],
)
def test_a_mistake_is_named_before_any_work(settings, name, key, value, words):
    with pytest.raises(ConfigError) as refusal:
        find_stage_class(name).of(changed(settings, key, value))
    assert words in str(refusal.value)


def test_a_choice_that_describes_nothing_is_none(settings):
    stage = find_stage_class("finetune").of(settings)
    assert stage.distill is None and stage.head is None
    assert find_stage_class("prune").of(settings).selection == Zeros()


def test_finished_before_needs_neither_network_nor_images(finished, go, monkeypatch):
    def refuse(*given, **named):
        raise AssertionError("nothing is loaded for what is finished")

    monkeypatch.setattr(Synthetic, "load", refuse)
    monkeypatch.setattr(network, "_module", refuse)
    monkeypatch.setattr("prunekit.surgery.files.load_model", refuse)
    assert go("run", "name=whole").count("finished before") == 5
