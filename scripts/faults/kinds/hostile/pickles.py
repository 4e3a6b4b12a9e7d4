"""Pickles that run code when they are read, in every format that torch and others know."""

from __future__ import annotations

import builtins
import importlib
import os
import pickle
import runpy
import subprocess
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from scripts.faults.campaign import Fault
from scripts.faults.kinds.hostile.use import USES, use
from scripts.faults.trial import CANARY, Finding, Trial


class Payload:
    """An object that is a call once it is pickled."""

    def __init__(self, function: Callable[..., Any], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        """Return what unpickling calls."""
        return self.call


PAYLOADS = {
    "os.system": Payload(os.system, f"touch {CANARY}"),
    "os.mkdir": Payload(os.mkdir, CANARY),
    "subprocess.call": Payload(subprocess.call, ["touch", CANARY]),
    "eval": Payload(builtins.eval, f"open({CANARY!r}, 'w')"),
    "exec": Payload(builtins.exec, f"open({CANARY!r}, 'w')"),
    "import of a file beside it": Payload(importlib.import_module, "beside"),
    "runpy of a file beside it": Payload(runpy.run_path, "beside.py"),
    "torch.save": Payload(torch.save, 1, CANARY),
}
Save = Callable[[object, Path], object]


def _as_torch(content: object, file: Path) -> None:
    torch.save(content, file)


def _as_old_torch(content: object, file: Path) -> None:
    torch.save(content, file, _use_new_zipfile_serialization=False)


def _as_pickle(content: object, file: Path, protocol: int) -> None:
    file.write_bytes(pickle.dumps(content, protocol=protocol))


def _as_archive(content: object, file: Path, name: str) -> None:
    """Write a zip that looks like one of torch, with the pickle under another name."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"evil/{name}", pickle.dumps(content, protocol=2))
        archive.writestr("evil/version", "3\n")
        archive.writestr("evil/byteorder", "little")


FORMATS: dict[str, Save] = {
    "of torch": _as_torch,
    "of torch before 1.6": _as_old_torch,
    "of pickle 0": partial(_as_pickle, protocol=0),
    "of pickle 2": partial(_as_pickle, protocol=2),
    "of pickle 4": partial(_as_pickle, protocol=4),
    "with constants": partial(_as_archive, name="constants.pkl"),
    "made by hand": partial(_as_archive, name="data.pkl"),
}


def faults() -> list[Fault]:
    """Return every payload for every use, in formats that take turns."""
    formats = [*FORMATS]
    found = []
    for i, place in enumerate(USES):
        for j, payload in enumerate(PAYLOADS):
            name = formats[(i * len(PAYLOADS) + j) % len(formats)]
            title = f"{payload} {name} as {place}"
            found.append(Fault("hostile", title, partial(_run, payload, name, place)))
    return found


def _run(payload: str, name: str, place: str, trial: Trial) -> Finding:
    """No call is made; the file is refused or set aside."""
    (trial.place / "beside.py").write_text(f"open({CANARY!r}, 'w')\n")
    content = {"format": "prunekit-model-1", "weights": {}, "evil": PAYLOADS[payload]}
    finding = use(place, partial(FORMATS[name], content), trial)
    return finding
