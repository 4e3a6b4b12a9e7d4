"""Every option composes and builds, and every key of every config file does something."""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import functools
import inspect
import itertools
import math
import operator
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from torch import nn

from prunekit.build import build
from prunekit.config import config_dir, groups, resolve
from prunekit.errors import ConfigError, PrunekitError
from prunekit.stages import STAGES, find_stage_class, network
from prunekit.stages.network import Dense
from prunekit.stages.sparsify import build_regularizer

CONFIGS = config_dir()
STARTING = ("search", "launch")  # how jobs are started: test_launchers.py
GROUPS = {name: options for name, options in groups().items() if name not in STARTING}
COMMANDS = sorted(file.stem for file in CONFIGS.glob("*.yaml") if file.stem != "config")
# an option that says ??? somewhere wants to be told
WANTED = {
    "selection.path": "a/run",
    "selection.widths": {"conv1": 2},
    "model.arch": "resnet18",  # torchvision and timm both have it
    "model._target_": "prunekit.models.LeNet5",
}
# what the test below sees at work; a root key that is not here fails
ROOT_KEYS = {
    *("seed", "stage", "pipeline", "source", "weights", "keep_zeros", "overwrite", "root", "name"),
    *("absorb", "over_norms", "channel_selection", "diagnose", "statistics", "objectives"),
    *("defaults", "hydra"),
}


@pytest.fixture(autouse=True)
def here(monkeypatch, tmp_path):
    """Settings are built as on a machine with a GPU, beside a run that has been pruned."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    for run in ("a/run", "a/runx"):
        plan = tmp_path / run / "plan.json"
        plan.parent.mkdir(parents=True)
        plan.write_text('{"groups": {"conv1": {"kept": 1, "of": 2}}}')
    yield
    GlobalHydra.instance().clear()


INNER = {  # groups within a group: where they go, and a criterion that has one
    "similarity": ("", "sglp"),
    "order": ("", "stlp"),
    "pairs": ("@criterion.structure.pairs", "sglp"),
}


@functools.cache
def composed(command: str, *overrides: str, place: Path = CONFIGS) -> DictConfig:
    """The config of a command, not resolved; shared, so copy it before a change."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(place)):
        return compose(config_name=command, overrides=list(overrides))


def plain(file: Path) -> bool:
    """Whether a file of a group sets its group and nothing else."""
    return "defaults" not in OmegaConf.load(file) and "# @package" not in file.read_text()


def chosen(group: str, option: str, place: Path = CONFIGS) -> DictConfig:
    """What `composed("run", "GROUP=OPTION")` is, without Hydra reading fifty files for it.

    Where a file is plain, its choice replaces the group, which a test below looks at.
    """
    file = place / group / f"{option}.yaml"
    if not plain(file):
        return composed("run", f"{group}={option}", place=place)
    config = copy.deepcopy(composed("run", place=place))
    config[group] = OmegaConf.load(file)
    return config


def told(config: DictConfig) -> DictConfig:
    """A copy in which every ??? is filled in."""
    config = copy.deepcopy(config)
    for key, value in WANTED.items():
        group, _, name = key.partition(".")
        if OmegaConf.is_missing(config[group], name):
            OmegaConf.update(config, key, value)
    return config


def built(config: DictConfig, group: str, device: str = "meta") -> Any:
    """What the stages make of one group, in a form that compares; networks on `device`."""
    parts = {group, "solver"} if group == "regularizer" else {group}
    settings = {key: resolve(config[key]) for key in parts}
    if group == "regularizer":
        root = (config.name, config.absorb, config.channel_selection, config.pipeline)
        return seen(build_regularizer(settings)), *root
    if group == "schedule":
        read = {key for name in STAGES for key in find_stage_class(name).reads(sourced=False)}
        keys = {key for key in read if group in key}
        return [seen(build(settings[group][key.split(".")[1]], key)) for key in sorted(keys)]
    torch.manual_seed(0)
    if group == "model":
        with torch.device(device):
            start = network.build_network(Dense.of(settings), SimpleNamespace(device=device))
        return seen(start.model), config.name
    shown = OmegaConf.select(config, f"{group}.name")  # in tables of runs
    return seen(build(settings[group], group)), config.name, shown


def seen(thing: Any) -> Any:
    """Objects as plain values that are equal only when the objects do the same."""
    if isinstance(thing, nn.Module):
        state = thing.state_dict()
        sums = [float(v.double().sum()) for v in state.values() if not v.is_meta]
        return type(thing), repr(thing), {key: tuple(v.shape) for key, v in state.items()}, sums
    if isinstance(thing, type):
        return thing
    if isinstance(thing, functools.partial):
        return thing.func, seen(thing.args), seen(thing.keywords)
    if dataclasses.is_dataclass(thing):
        return type(thing), seen({f.name: getattr(thing, f.name) for f in fields(thing)})
    if isinstance(thing, dict):
        return {key: seen(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [seen(value) for value in thing]
    return (type(thing), seen(vars(thing))) if hasattr(thing, "__dict__") else thing


def fields(thing: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(thing) if field.init]


def rows() -> list[list[str]]:
    """Group choices such that every option of every group is in one of them.

    order=hinge asks the selection, so it comes with the only one that can answer.
    """
    count = max(len(options) for group, options in GROUPS.items() if group != "experiment")
    choices = [
        {g: o[i % len(o)] for g, o in GROUPS.items() if g != "experiment"} for i in range(count)
    ]
    for choice in choices:
        choice["order"] = "joint" if choice["order"] == "hinge" else choice["order"]
    choices.append({**choices[0], "order": "hinge", "selection": "threshold"})
    return [[f"{group}={option}" for group, option in choice.items()] for choice in choices]


def builds(config: DictConfig) -> None:
    config = told(config)
    resolve(config)
    for group in GROUPS.keys() - {"experiment", "regularizer"}:
        assert built(config, group)
    config.solver = {"_target_": "prunekit.solvers.Proximal"}  # goes with every penalty
    assert built(config, "regularizer")


@pytest.mark.parametrize("row", range(len(rows())))
def test_every_option_composes_and_builds(row):
    config = composed("run", *rows()[row])
    builds(config)
    for group, option in (choice.split("=") for choice in rows()[row]):
        file = CONFIGS / group / f"{option}.yaml"
        sides = (OmegaConf.to_container(side) for side in (config[group], OmegaConf.load(file)))
        assert not plain(file) or operator.eq(*sides), file


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command):
    assert resolve(composed(command))["stage"] == command
    builds(composed(command))


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_composes_with_every_command(command):
    for choices in [*rows(), *([f"experiment={e}"] for e in GROUPS["experiment"])]:
        builds(composed(command, *choices))


@pytest.mark.parametrize("experiment", GROUPS["experiment"])
def test_every_experiment_builds_with_every_regularizer_it_names(experiment):
    """And every key of its file does something, which needs the same configs."""
    file = CONFIGS / "experiment" / f"{experiment}.yaml"
    for name in OmegaConf.load(file).get("strength", {None: None}):
        choice = [f"regularizer={name}"] if name else []
        builds(composed("run", f"experiment={experiment}", *choice))
    assert dead_keys(file) == []


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Paths and values of everything in a config that is no mapping."""
    if not isinstance(node, dict) or not node:
        yield path, node
        return
    for key, value in node.items():
        yield from leaves(value, (*path, key))


def others(key: str, value: Any) -> list[Any]:
    """Values that differ from the one in the file, the likeliest to be accepted first."""
    if key == "_target_":
        return ["prunekit.absent.Class"]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value * 2]
    if isinstance(value, float):
        return [value * 0.5 + 0.125, value + 1]
    if isinstance(value, list):
        return [[item + 1 if isinstance(item, int) else 0.25 for item in value] or ["a.b"]]
    if value is None:
        return [{"*": 0.5}, 0.25, "x"]
    return [0.125] if str(value).startswith("${") else [f"{value}x"]


@contextlib.contextmanager
def changed(config: DictConfig, path: tuple[Any, ...], value: Any) -> Iterator[DictConfig]:
    """The config with another value in one place."""
    parent = functools.reduce(lambda node, key: node[key], path[:-1], config)
    before = OmegaConf.to_container(parent, resolve=False)[path[-1]]
    parent[path[-1]] = value
    try:
        yield config
    finally:
        parent[path[-1]] = before


def verdict(config: DictConfig, path: tuple[Any, ...], value: Any, group: str) -> str:
    """Whether a key is alive: "", or why it is not."""
    refusals = []
    before = functools.cache(lambda device: built(config, group, device))
    for other in others(path[-1], value):
        for device in ("meta", "cpu") if group == "model" else ("meta",):
            old = before(device)
            try:
                with changed(config, path, other):
                    after = built(config, group, device)
            except ConfigError as error:
                refusals.append(str(error))
                break
            if after != old:
                return ""
        else:
            return f"{other!r} in place of {value!r} changes nothing"
    places = (str(path[-1]), ".".join(map(str, path[:-1])))
    named = any(place in text for text in refusals for place in places)
    return "" if named else f"refused without its name: {refusals[-1]}"


def arrives(config: DictConfig, path: tuple[Any, ...], value: Any) -> bool:
    """Whether what the file says is what was composed."""
    raw = OmegaConf.to_container(config, resolve=False)
    return functools.reduce(lambda node, key: node[key], path, raw) == value


def dead_keys(file: Path, place: Path = CONFIGS) -> list[str]:
    """Keys of a config file that can be changed without any effect."""
    group, option = file.parent.name, file.stem
    raw = OmegaConf.to_container(OmegaConf.load(file))
    if group == "experiment":
        return _dead_in_experiment(file, place, raw)
    config = told(chosen(group, option, place))
    found = []
    for at, value in leaves(content(file)):
        if value == "???":
            value = OmegaConf.select(config, ".".join(at))
        elif not arrives(config, at, value):
            found.append(f"{'.'.join(at)}: the file does not decide it")
            continue
        why = verdict(config, at, value, group)
        found += [f"{'.'.join(at)}: {why}"] if why else []
    return found


def content(file: Path) -> dict[str, Any]:
    """What a file of a group sets, from the root on."""
    raw = OmegaConf.to_container(OmegaConf.load(file))
    raw.pop("defaults", None)  # another group's choice that comes along
    return raw if "# @package _global_" in file.read_text() else {file.parent.name: raw}


def _dead_in_experiment(file: Path, place: Path, raw: dict[str, Any]) -> list[str]:
    """A key is alive when it is under one of the regularizers that the experiment names."""
    names = [[f"regularizer={name}"] for name in raw.get("strength", ())] or [[]]
    variants = [told(composed("run", f"experiment={file.stem}", *n, place=place)) for n in names]
    found = []
    for path, value in leaves({k: v for k, v in raw.items() if k != "defaults"}):
        group = path[0] if path[0] in GROUPS else "regularizer"
        whys = [verdict(config, path, value, group) for config in variants]
        if all(whys) or not all(arrives(config, path, value) for config in variants):
            found.append(f"{'.'.join(map(str, path))}: {whys[0]}")
    overrides = (entry for entry in raw.get("defaults", ()) if not isinstance(entry, str))
    for entry in overrides:  # what is no override is another experiment, or the file itself
        (key, option), *_ = entry.items()
        group = key.removeprefix("override /")
        whole = composed("run", f"experiment={file.stem}", place=place)
        sides = (whole[group], chosen(group, option, place)[group])
        ours, alone = (OmegaConf.to_container(side, resolve=False) for side in sides)
        if ours != alone:
            changed = {k: raw[k] for k in raw if k == group}
            found += [] if changed else [f"defaults.{group}: not the option {option}"]
    return found


FILES = sorted(file for group in GROUPS for file in (CONFIGS / group).glob("*.yaml"))


OPTIONS = [file for file in FILES if file.parent.name != "experiment"]


@pytest.mark.parametrize("file", OPTIONS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_key_does_something(file):
    assert dead_keys(file) == []


@pytest.mark.parametrize("model", ["torchvision", "timm", "custom"])
def test_networks_without_data_bring_none_unless_told_otherwise(model):
    raw = OmegaConf.to_container(OmegaConf.load(CONFIGS / "model" / f"{model}.yaml"))
    assert raw["defaults"] == [{"override /dataset@_global_.dataset": "none"}, "_self_"]
    assert composed("prune", f"model={model}").dataset.name == "none"
    assert composed("prune", f"model={model}", "dataset=digits").dataset.name == "digits"
    assert composed("prune", f"model={model}", "experiment=demo").dataset.name == "digits"


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("model=torchvision model.arch=resnet50", "resnet50-pruned"),
        ("model=custom", "custom-pruned"),
        ("model=torchvision model.arch=resnet50 dataset=cifar10", "resnet50-cifar10-l21"),
        ("model=torchvision model.arch=resnet50 name=mine", "mine"),
        ("model=vgg16 regularizer=none", "vgg16-digits-none"),
        ("", "lenet5-digits-l21"),
    ],
)
def test_runs_without_data_are_named_for_what_is_done_to_them(overrides, name):
    assert composed("prune", *overrides.split()).name == name


def inner(group: str) -> list[Path]:
    return sorted((CONFIGS / "criterion" / group).glob("*.yaml"))


@pytest.mark.parametrize("group", INNER)
def test_every_choice_within_a_criterion_makes_another_one(group):
    place, criterion = INNER[group]
    found = [
        built(
            composed("prune", f"criterion={criterion}", f"criterion/{group}{place}={file.stem}"),
            "criterion",
        )
        for file in inner(group)
    ]
    assert all(a != b for a, b in itertools.combinations(found, 2)) and len(found) > 1


@pytest.mark.parametrize("criterion", ["stlp_block", "stlp_mixed", "max_cka", "apib"])
def test_every_criterion_on_similarities_takes_another_one(criterion):
    whole, other = (
        built(composed("prune", f"criterion={criterion}", *choice), "criterion")
        for choice in ((), ("criterion/similarity=linear",))
    )
    assert whole != other


def test_a_criterion_is_called_in_reports_what_it_is_called_on_the_command_line():
    files = sorted((CONFIGS / "criterion").glob("*.yaml"))
    assert [OmegaConf.load(file).name for file in files] == [file.stem for file in files]


def test_no_config_file_is_left_out():
    known = {*FILES, *CONFIGS.glob("*.yaml"), *(CONFIGS / "hydra").rglob("*.yaml")}
    known |= {file for group in INNER for file in inner(group)}
    known |= {file for group in STARTING for file in (CONFIGS / group).glob("*.yaml")}
    assert known == set(CONFIGS.rglob("*.yaml")) and len(FILES) > 60


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_file_says_its_name_alone(command):
    raw = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{command}.yaml"))
    assert raw == {"defaults": ["config", "_self_"], "stage": command}


def test_every_root_key_is_seen_at_work():
    assert set(OmegaConf.load(CONFIGS / "config.yaml")) == ROOT_KEYS
    defaults = OmegaConf.to_container(OmegaConf.load(CONFIGS / "config.yaml"))["defaults"]
    chosen = {k: v for entry in defaults if isinstance(entry, dict) for k, v in entry.items()}
    assert {key for key in chosen if "hydra" not in key} == {*GROUPS, *STARTING}
    for group in GROUPS.keys() - {"experiment"}:
        assert composed("run")[group] == composed("run", f"{group}={chosen[group]}")[group]


@pytest.mark.parametrize(
    ("file", "line", "key"),
    [
        ("regularizer/l21.yaml", "dead: 3", "regularizer.dead"),
        ("schedule/smoke.yaml", "warm: 3", "schedule.warm"),
        ("experiment/demo.yaml", "dead: 0.5", "dead"),
        ("runtime/cpu.yaml", "label: here", "runtime.label"),
    ],
)
def test_a_key_that_nothing_reads_is_found(tmp_path, file, line, key):
    """Where the class refuses an unknown key the file does not even build."""
    place = tmp_path / "configs"
    shutil.copytree(CONFIGS, place)
    with open(place / file, "a") as text:
        text.write(f"\n{line}\n")
    try:
        assert [found.split(":")[0] for found in dead_keys(place / file, place)] == [key]
    except ConfigError as error:
        assert key in str(error)


def test_a_value_of_another_kind_is_refused_in_words():
    """Whatever a key is set to, building ends in an object or in one of our errors."""
    crashes, tried = [], set()
    for file in OPTIONS:
        config = told(chosen(file.parent.name, file.stem))
        for path, _ in leaves(content(file)[file.parent.name]):
            at = (file.parent.name, *path)
            owner = OmegaConf.select(config, ".".join(at[:-1])).get("_target_")
            if (owner, path[-1]) in tried:
                continue
            tried.add((owner, path[-1]))
            for odd in ("text", -3, math.nan, [], {}, None, True):
                crashes += crash(config, at, odd)
    assert crashes == []


def crash(config: DictConfig, at: tuple[Any, ...], odd: Any) -> list[str]:
    try:
        with changed(config, at, odd):
            built(config, at[0])
    except PrunekitError:
        return []
    except Exception as error:
        return [f"{'.'.join(at)}={odd!r}: {error!r}"]
    return []


def config_built() -> set[type]:
    """The dataclasses that configs make, with all inside them."""
    found: set[type] = set()

    def collect(thing: Any) -> None:
        if isinstance(thing, dict):
            thing = list(thing.values())
        if isinstance(thing, list | tuple):
            for item in thing:
                collect(item)
        elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
            found.add(type(thing))
            collect([getattr(thing, field.name) for field in fields(thing)])

    for choices in rows():
        settings = resolve(told(composed("run", *choices, "regularizer.lam=0.001")))
        for group in GROUPS.keys() - {"experiment", "model"}:
            collect(build(settings[group], group))
    return found


@functools.cache
def reads() -> dict[str, tuple[set[str], set[str]]]:
    """Class or "": attributes read of self outside checks, and attributes read of others."""
    found: dict[str, tuple[set[str], set[str]]] = {"": (set(), set())}
    for file in (CONFIGS.parent / "prunekit").rglob("*.py"):
        tree = ast.parse(file.read_text())
        owner = {
            id(inner): (cls.name, getattr(method, "name", ""))
            for cls in ast.walk(tree)
            if isinstance(cls, ast.ClassDef)
            for method in cls.body
            for inner in ast.walk(method)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                cls, method = owner.get(id(node), ("", ""))
                own = isinstance(node.value, ast.Name) and node.value.id == "self"
                if own and method not in ("__post_init__", "_try_optimizer"):
                    found.setdefault(cls, (set(), set()))[0].add(node.attr)
                elif not own:
                    found[""][1].add(node.attr)
    return found


def unread(cls: type) -> list[str]:
    """Fields that are only checked, never used."""
    own = set().union(*(reads().get(base.__name__, ((), ()))[0] for base in inspect.getmro(cls)))
    return [f.name for f in fields(cls) if f.name not in own and f.name not in reads()[""][1]]


def test_every_field_of_a_built_object_is_read():
    classes = config_built()
    assert {cls.__name__ for cls in classes} >= {"Schedule", "AULM", "Runtime", "Budgets", "SCAD"}
    assert {cls.__name__: unread(cls) for cls in classes if unread(cls)} == {}


def test_a_field_that_is_never_read_is_found():
    made = dataclasses.make_dataclass("Made", [("epochs", int), ("never_read_by_anyone", int)])
    assert unread(made) == ["never_read_by_anyone"]
