"""What is said of a setting on its field is what the class keeps to."""

from __future__ import annotations

import functools
import importlib
import math
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
import torch

import prunekit
from prunekit.build import build
from prunekit.errors import ConfigError
from prunekit.schema import (
    REQUIRED,
    Checked,
    Count,
    Filled,
    OneOf,
    Positive,
    Range,
    Setting,
    SomeShare,
    Text,
    Whole,
    settings_of,
)
from prunekit.stages.spec import Parts


@dataclass(frozen=True)
class Inner(Checked):
    size: Annotated[Count, "how large it is"] = 1


@dataclass(frozen=True)
class Every(Checked):
    """A field of every kind."""

    share: Annotated[SomeShare, "what stays"] = 0.5
    limit: Annotated[Positive | None, "null: none"] = None
    count: Whole = 0
    endless: Annotated[float, Range(at_least=3, infinite=True)] = 3.0
    plain: float = 0.0
    on: bool = False
    maybe: bool | None = None
    word: Annotated[Literal["one", "two"], "which"] = "one"
    name: Annotated[str, OneOf(("a", "b"))] = "a"
    text: Text | None = None
    path: str | Path | None = None
    levels: Annotated[Sequence[Positive], Filled(), "falling"] = (1.0,)
    weights: Mapping[str, Positive] | None = None
    inner: Inner = field(default_factory=Inner)
    make: Callable[..., Any] = dict
    anything: Any = None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"share": 0}, "share=0 must be above 0"),
        ({"share": 1.5}, "share=1.5 must be at most 1"),
        ({"share": "half"}, "share='half' is not a finite number"),
        ({"share": True}, "share=True is not a finite number"),
        ({"share": None}, "share=None is not a finite number"),
        ({"limit": 0}, "limit=0 must be above 0"),
        ({"count": 1.0}, "count=1.0 is not a whole number"),
        ({"count": -1}, "count=-1 must be at least 0"),
        ({"endless": 2}, "endless=2 must be at least 3"),
        ({"endless": math.nan}, "endless=nan is not a number"),
        ({"plain": math.inf}, "plain=inf is not a finite number"),
        ({"on": 1}, "on=1 is unknown; accepted: true, false"),
        ({"on": None}, "on=None is unknown; accepted: true, false"),
        ({"maybe": "no"}, "maybe='no' is unknown; accepted: true, false"),
        ({"word": "three"}, "word='three' is unknown; accepted: one, two"),
        ({"name": "c"}, "name='c' is unknown; accepted: a, b"),
        ({"text": ""}, "text='' is empty; give at least one"),
        ({"text": 3}, "text=3 is no text; quote it if it is one"),
        ({"path": 3}, "path=3 is no path; quote it if it is one"),
        ({"levels": 1.0}, "levels=1.0 is not a list; write [1.0] for one"),
        ({"levels": "1"}, "levels='1' is not a list; write [1] for one"),
        ({"levels": []}, "levels=[] is empty; give at least one"),
        ({"levels": [1, 0]}, "levels=0 must be above 0"),
        ({"weights": 3}, "weights=3 is not a mapping; write {NAME: NUMBER}"),
        ({"weights": {"conv*": 0}}, "weights.conv*=0 must be above 0"),
        ({"inner": 3}, "inner=3 is a int, not a Inner; give a _target_ that makes one"),
        ({"inner": Inner}, "inner=Inner is a class; give an object of it, Inner(...)"),
        ({"make": 3}, "make is a int, not a function or a class; give one of those"),
    ],
)
def test_what_does_not_belong_is_refused_by_name(given, message):
    with pytest.raises(ConfigError) as caught:
        Every(**given)
    assert str(caught.value) == message


def test_what_belongs_is_kept_and_lists_become_tuples():
    given = {
        "share": 1, "limit": 2, "count": 3, "endless": math.inf, "on": True, "maybe": False,
        "word": "two", "name": "b", "text": "t", "path": Path("p"), "levels": [2, 1],
        "weights": {"conv*": 0.5}, "inner": Inner(2), "make": list, "anything": [1],
    }  # fmt: skip
    made = Every(**given)
    for name, value in given.items():
        assert getattr(made, name) == (tuple(value) if name == "levels" else value)


def test_in_settings_the_place_is_named_too():
    node = {"_target_": "prunekit.penalties.L1", "lam": -1}
    with pytest.raises(ConfigError, match=r"^regularizer\.penalty\.lam=-1 must be at least 0$"):
        build(node, "regularizer.penalty")


def test_settings_are_told_in_plain_words():
    told = {setting.name: setting for setting in settings_of(Every)}
    assert told["share"] == Setting("share", Annotated[SomeShare, "what stays"], 0.5)
    shown = {name: (setting.type, setting.range) for name, setting in told.items()}
    assert shown == {
        "share": ("number", "above 0, at most 1"),
        "limit": ("number or null", "above 0"),
        "count": ("whole number", "at least 0"),
        "endless": ("number", "at least 3"),
        "plain": ("number", ""),
        "on": ("true or false", ""),
        "maybe": ("true or false or null", ""),
        "word": ("word", "one | two"),
        "name": ("text", "a | b"),
        "text": ("text or null", ""),
        "path": ("path or null", ""),
        "levels": ("list of number", "above 0"),
        "weights": ("mapping of names to number or null", "above 0"),
        "inner": ("Inner", ""),
        "make": ("function or class", ""),
        "anything": ("anything", ""),
    }
    assert told["share"].comment == "what stays (above 0, at most 1)"
    assert told["levels"].default == (1.0,) and told["inner"].default == Inner()
    assert told["count"].comment == told["count"].meaning == ""


def test_functions_have_settings_too():
    def function(size: Annotated[Count, "how large"], *rest: int, on: bool = True, **more: int):
        """Whatever it does."""

    size, on = settings_of(function)
    assert (size.comment, size.default) == ("how large (at least 1)", REQUIRED)
    assert (on.name, on.type, on.default) == ("on", "true or false", True)


def everything() -> list[type[Checked]]:
    """All classes of prunekit that keep to their annotations and can be made."""
    for module in pkgutil.walk_packages(prunekit.__path__, "prunekit."):
        if module.name != "prunekit.__main__":
            importlib.import_module(module.name)

    def below(kind: type) -> Iterator[type]:
        for one in kind.__subclasses__():
            yield from (one, *below(one))

    ours = {kind for kind in below(Checked) if kind.__module__.startswith("prunekit.")}
    ours -= {Parts, *below(Parts)}  # whose parts are built of settings
    concrete = [kind for kind in ours if not getattr(kind, "__abstractmethods__", None)]
    return sorted(concrete, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


def wanted() -> dict[str, Any]:
    """Values for what has no default, by name."""
    from prunekit.methods.gram_lasso.graph_lasso import Edges
    from prunekit.methods.gram_lasso.tree_lasso import Tree
    from prunekit.methods.hinge import Threshold
    from prunekit.penalties import L1
    from prunekit.solvers import Proximal
    from prunekit.targets import Filters

    return {
        **{"lam": 0.1, "gamma": 2.0, "a": 2.0, "eps": 0.1, "kappa": 0.1, "epochs": 1, "batch": 1},
        **{"milestones": [0.5], "optimizer": functools.partial(torch.optim.SGD, lr=0.1)},
        **{"selection": Threshold(0.5), "penalty": L1(0.1), "target": Filters()},
        **{"solver": Proximal(), "teacher": torch.nn.Linear(1, 1), "root": ".", "pad": 1},
        **{"path": "nowhere", "widths": {"a": 1}},
        **{"stage": "run", "pipeline": ["prune"], "name": "one"},
        "edges": Edges.threshold(torch.eye(2), 0.5),
        "tree": Tree(1, (), torch.zeros(0, dtype=torch.double)),
    }


def ranges(hint: Any, inside: Callable[[Any], Any] = lambda value: value) -> Iterator[Any]:
    """Every range in an annotation, whether of whole numbers, and what holds such a number."""
    if get_origin(hint) is Annotated:
        for limit in hint.__metadata__:
            if isinstance(limit, Range):
                whole = int in (hint.__origin__, *get_args(hint.__origin__))
                yield limit, whole, inside
        yield from ranges(hint.__origin__, inside)
    elif get_origin(hint) is Mapping:
        yield from ranges(get_args(hint)[1], lambda value: inside({"x": value}))
    elif get_origin(hint) in (Sequence, tuple):
        yield from ranges(get_args(hint)[0], lambda value: inside([value]))
    elif get_args(hint) and get_origin(hint) is not Literal:
        for part in get_args(hint):
            yield from ranges(part, inside)


def beside(limit: Range, whole: bool) -> Iterator[tuple[float, bool]]:
    """Numbers at the ends of a range and just outside, and whether they are in it."""
    step = 1 if whole else 1e-9
    for bound, out, closed in (
        (limit.above, -1, False),
        (limit.at_least, -1, True),
        (limit.below, 1, False),
        (limit.at_most, 1, True),
    ):
        if bound is not None:
            yield bound, closed
            yield bound + out * step, False
            yield bound - out * step, True


def test_every_declared_range_is_kept_to_exactly():
    tried = 0
    for kind in everything():
        settings = settings_of(kind)
        given = {s.name: wanted()[s.name] for s in settings if s.default is REQUIRED}
        assert "must be" not in refusal(kind, given)
        for setting in settings:
            for limit, whole, inside in ranges(setting.hint):
                for value, accepted in beside(limit, whole):
                    said = refusal(kind, {**given, setting.name: inside(value)})
                    out = f"={value} must be "
                    assert (out not in said) == accepted, (kind, setting.name, value, said)
                    if not accepted:
                        assert said.startswith(setting.name), said
                        assert "\n" not in said
                        tried += 1
    assert tried > 100


def refusal(kind: type, given: dict[str, Any]) -> str:
    """What a class says against its arguments; empty where it takes them."""
    try:
        kind(**given)
    except prunekit.errors.PrunekitError as error:
        return str(error)
    return ""
