"""Model files and checkpoints that torch can read and whose content is not what it should be."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.faults.campaign import Fault
from scripts.faults.kinds.hostile.use import use
from scripts.faults.trial import CANARY, Finding, Trial

Content = dict[str, Any]
Change = Callable[[Content], object]
_SHELL = {"_target_": "os.system", "command": f"touch {CANARY}"}
_HUGE = torch.zeros(1).expand(10**6, 10**5)  # 400 GB if it were copied
_DEEP: Any = {}
for _ in range(60):
    _DEEP = {"a": _DEEP}
_ODD: dict[str, object] = {
    "None": None,
    "a number": 5,
    "text": "text",
    "a list": [],
    "a dict": {},
    "nan": float("nan"),
    "a tensor": torch.zeros(2),
    "deep": _DEEP,
}


# a state that may be: no epoch is over, or none is begun
_CONSISTENT = (("history", "a list"), ("progress", "None"))


def faults() -> list[Fault]:
    """Return model files, each as the source of a run, and checkpoints of the unfinished run."""
    models = {
        **{
            f"{key} is {name}": _put(key, value)
            for key in ("arch", "edits", "weights")
            for name, value in _ODD.items()
        },
        **{f"no {key}": _drop(key) for key in ("arch", "edits", "weights", "facts", "format")},
        **_ARCHS,
        **_EDITS,
        **_WEIGHTS,
    }
    keys = ("history", "done", "model", "optimizer", "solver", "scaler", "progress", "identity")
    states = {
        **{
            f"{key} is {name}": _put(key, value)
            for key in keys
            for name, value in _ODD.items()
            if name in ("None", "a number", "a list", "a tensor") and (key, name) not in _CONSISTENT
        },
        **_STATES,
    }
    return [
        *(
            Fault("hostile", f"model: {name}", partial(_model, change))
            for name, change in models.items()
        ),
        *(
            Fault("hostile", f"weights: {name}", partial(_plain_weights, change))
            for name, change in _WEIGHTS.items()
        ),
        *(
            Fault("hostile", f"checkpoint: {name}", partial(_state, change))
            for name, change in states.items()
        ),
        *(
            Fault("hostile", f"{name} as {place}", partial(use, place, make))
            for name, make in _BOMBS.items()
            for place in ("source", "weights", "checkpoint")
        ),
    ]


def _put(key: str, value: object) -> Change:
    return lambda content: content.update({key: value})


def _drop(key: str) -> Change:
    return lambda content: content.pop(key)


def _arch(**values: object) -> Change:
    return lambda content: content["arch"].update(values)


def _edit(*edits: object) -> Change:
    return lambda content: content.update(edits=[*edits])


def _weight(value: Callable[[torch.Tensor], object], name: str = "conv2.weight") -> Change:
    def change(content: Content) -> None:
        content["weights"][name] = value(content["weights"][name])

    return change


def _under(name: str) -> Change:
    return lambda content: content["weights"].update({name: torch.zeros(2)})


_ARCHS: dict[str, Change] = {
    "arch is a shell": _put("arch", _SHELL),
    "arch holds a shell": _arch(widths=_SHELL),
    "arch is exec": _arch(_target_="builtins.exec"),
    "arch is a class of this machine": _arch(_target_="beside.Net"),
    "arch of huge widths": _arch(widths=[10**6, 10**6, 10**6]),
    "arch of widths below zero": _arch(widths=[-4, 6, 12]),
    "arch of widths that are text": _arch(widths="wide"),
    "arch of other widths": _arch(widths=[5, 6, 12]),
    "arch of no widths": _arch(widths=[]),
    "arch of huge classes": _arch(classes=10**11),
    "arch with another argument": _arch(depth=10**9),
    "arch that downloads": _put(
        "arch", {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}
    ),
    "arch of a module": _arch(_target_="prunekit.models"),
    "arch of a private function": _arch(_target_="prunekit.atomic_write.set_aside"),
    "arch that interpolates": _arch(widths="${oc.env:HOME}"),
}
_EDITS: dict[str, Change] = {
    "an edit that is a number": _edit(5),
    "an edit of no kind": _edit({}),
    "an edit of unknown kind": _edit({"kind": "nothing"}),
    "an edit that is a shell": _edit(_SHELL),
    "a thousand edits": lambda content: content.update(edits=content["edits"] * 1000),
    "an edit with huge indices": lambda content: _indices(content["edits"], 10**15),
    "an edit with indices below zero": lambda content: _indices(content["edits"], -7),
    "an edit with indices that are text": lambda content: _indices(content["edits"], "x"),
}


def _indices(node: Any, value: object) -> None:
    """Put a value in place of the first entry of every list of numbers."""
    if isinstance(node, list) and node and all(isinstance(entry, int) for entry in node):
        node[0] = value
        return
    for child in (
        node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    ):
        _indices(child, value)


_WEIGHTS: dict[str, Change] = {
    "a weight is nan": _weight(lambda old: old * float("nan")),
    "a weight is infinite": _weight(lambda old: old + float("inf")),
    "a weight of other shape": _weight(lambda old: old[:1]),
    "a weight of a huge shape": _weight(lambda old: _HUGE),
    "a weight without entries": _weight(lambda old: old[:0]),
    "a weight that is a number": _weight(lambda old: 5),
    "a weight that is text": _weight(lambda old: "text"),
    "a weight that is None": _weight(lambda old: None),
    "a weight of whole numbers": _weight(lambda old: old.long()),
    "a weight of complex numbers": _weight(lambda old: old.to(torch.complex64)),
    "a weight that is sparse": _weight(lambda old: old.to_sparse()),
    "a weight on the meta device": _weight(lambda old: old.to("meta")),
    "a weight that is missing": lambda content: content["weights"].pop("conv2.weight"),
    "a weight with a path as its name": _under("../../outside/mine.txt"),
    "a weight with a long name": _under("x" * 100_000),
    "a weight whose name is a number": lambda content: content["weights"].update(
        {5: torch.zeros(1)}
    ),
}


def _nested(key: str, *path: object, value: object) -> Change:
    def change(content: Content) -> None:
        node = content[key]
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


_STATES: dict[str, Change] = {
    "nothing in it": lambda content: content.clear(),
    "a key more": _put("evil", 1),
    "an epoch of text": _put("history", ["one", "two"]),
    "a thousand epochs": lambda content: content.update(history=content["history"] * 1000),
    "a history of lists": _put("history", [[1], [2]]),
    "a weight of a huge shape": _nested("model", "conv1.weight", value=_HUGE),
    "a weight that is nan": lambda c: c["model"]["conv1.weight"].mul_(float("nan")),
    "a momentum of other shape": lambda c: _momentum(c, torch.zeros(3)),
    "a momentum of a huge shape": lambda c: _momentum(c, _HUGE),
    "a momentum that is text": lambda c: _momentum(c, "text"),
    "a rate that is text": lambda c: c["optimizer"]["param_groups"][0].update(lr="fast"),
    "a solver's copy of other shape": lambda c: c["solver"].update(F=[torch.zeros(2)] * 9),
    "a solver's counter that is text": lambda c: c["solver"].update(steps="x"),
    "more steps than the epoch has": _nested("progress", "steps", value=10**9),
    "steps below zero": _nested("progress", "steps", value=-5),
    "random numbers of no generator": _nested("progress", "random", value={"cpu": torch.zeros(9)}),
    "random numbers of no device": _nested("progress", "random", value={"moon": torch.zeros(9)}),
}


def _momentum(content: Content, value: object) -> None:
    for state in content["optimizer"]["state"].values():
        state["momentum_buffer"] = value


def _model(change: Change, trial: Trial) -> Finding:
    """The file of the small run's pruned network, changed, is what another run starts from."""
    return use(
        "source",
        partial(_rewritten, _small(trial, "whole/outputs/whole/prune/model.pt"), change),
        trial,
    )


def _plain_weights(change: Change, trial: Trial) -> Finding:
    """A state dict of another tool."""
    return use(
        "weights",
        partial(_weights_only, _small(trial, "whole/outputs/whole/pretrain/model.pt"), change),
        trial,
    )


def _state(change: Change, trial: Trial) -> Finding:
    return use(
        "checkpoint",
        partial(_rewritten, _small(trial, "begun/outputs/begun/sparsify/last.pt"), change),
        trial,
    )


def _small(trial: Trial, name: str) -> Path:
    return trial.small.path / name


def _rewritten(original: Path, change: Change, file: Path) -> None:
    content = torch.load(original, weights_only=True)
    change(content)
    torch.save(content, file)


def _weights_only(original: Path, change: Change, file: Path) -> None:
    content = {"weights": torch.load(original, weights_only=True)["weights"]}
    change(content)
    torch.save(content["weights"], file)


def _compressed(file: Path) -> None:
    """Write an archive of 300 kB that unpacks to 300 MB."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("evil/data/0", "w", force_zip64=True) as entry:
            for _ in range(60):
                entry.write(bytes(5_000_000))
        archive.writestr("evil/data.pkl", b"\x80\x02}.")
        archive.writestr("evil/version", "3\n")


def _overlapping(file: Path) -> None:
    """Write an archive in whose directory one entry stands ten thousand times."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("evil/data/0", bytes(2_000_000))
        archive.writestr("evil/data.pkl", b"\x80\x02}.")
        archive.writestr("evil/version", "3\n")
        archive.filelist += archive.filelist[:1] * 10_000
        archive._didModify = True  # type: ignore[attr-defined]


_BOMBS: dict[str, Callable[[Path], object]] = {
    "a compressed bomb": _compressed,
    "an overlapping bomb": _overlapping,
    "an archive without entries": lambda file: zipfile.ZipFile(file, "w").close(),
    "a text": lambda file: file.write_text("weights"),
    "a picture": lambda file: file.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)),
    "a folder": lambda file: file.mkdir(),
}
