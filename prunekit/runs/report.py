"""The report of a stage, and the versions and hardware that it ran with."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path, PurePath
from typing import Any

Metrics = dict[str, float | int | str | None]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """The result of a stage: its metrics and notes for the user.

    `command` is the command line that asked for it, None if there was none.
    """

    metrics: Metrics
    notes: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True)
class Report:
    """The content of `report.json`.

    `source` is the name and digest of the model file that the stage started from, `origin` its path
    relative to the stage directory, which may change without making it another stage. `command`
    repeats the run. `files` maps the names of the stage's files to their digests, and `digest` is
    that of the report; reports of earlier versions have neither.
    """

    stage: str
    settings: Settings
    source: str | None
    metrics: Metrics
    notes: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    origin: str | None = None
    command: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    digest: str | None = None

    def with_digest(self) -> Report:
        """Return a copy that holds the digest of its other fields."""
        plain = json.loads(json.dumps(asdict(self), default=str))
        return replace(self, digest=_digest(plain))

    @property
    def edited(self) -> bool:
        """Return whether it differs from its own digest; False if it has none."""
        return self.digest is not None and self.digest != _digest(vars(self))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """Invert `to_dict`; raises TypeError or ValueError if the values are no report."""
        report = cls(**{**values, "notes": tuple(values.get("notes", ()))})
        for key, kinds in _KINDS.items():
            if not isinstance(value := getattr(report, key), kinds):
                raise ValueError(f"{key} is a {type(value).__name__}")
        for key, plain in _PLAIN.items():
            node = getattr(report, key)
            for value in node.values() if isinstance(node, Mapping) else node:
                if not isinstance(value, plain):
                    raise ValueError(f"{key} holds a {type(value).__name__}")
        for key, number in {**report.metrics, "seconds": report.seconds}.items():
            if isinstance(number, int) and abs(number) > _LARGEST:
                raise ValueError(f"{key} holds a number that no measurement gives")
        elsewhere = [n for n in report.files if n != PurePath(n).name or n == ".."]
        if elsewhere:
            raise ValueError(f"files names {elsewhere[0]!r}, which lies elsewhere")
        return report


def _digest(values: Mapping[str, Any]) -> str:
    """Return 16 characters for the plain values of a report, which do not depend on their order.

    A digest among the values does not count.
    """
    text = json.dumps({**values, "digest": None}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_LARGEST = 1 << 62  # of whole numbers; tables hold them in 64 bits
_OPTIONAL = (str, type(None))
_KINDS: Mapping[str, type | tuple[type, ...]] = {
    **{"stage": str, "settings": Mapping, "metrics": Mapping, "files": Mapping},
    **{"environment": Mapping, "seconds": (int, float), "source": _OPTIONAL},
    **{"origin": _OPTIONAL, "command": _OPTIONAL, "digest": _OPTIONAL},
}
_PLAIN: Mapping[str, type | tuple[type, ...]] = {  # the values inside
    **{"notes": str, "metrics": (int, float, *_OPTIONAL), "environment": str, "files": str},
}


def flatten(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Return nested settings with dotted keys, for example {"solver.rho": 1.0}."""
    values: dict[str, Any] = {}
    for key, value in settings.items():
        if (type(value) is dict or isinstance(value, Mapping)) and value:  # dicts are told fast
            values.update(flatten(value, f"{prefix}{key}."))
        else:
            values[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return values


def fingerprint(values: object) -> str:
    """Return eight characters that are equal for equal plain values."""
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def environment() -> dict[str, str]:
    """Return the versions and hardware that a reader needs to judge a number."""
    import torch

    from prunekit import __version__

    facts = {
        "prunekit": __version__,
        **({"commit": commit} if (commit := _commit()) else {}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(terse=True),
        "cpu": _cpu_model(),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


@cache
def _commit() -> str | None:
    """Return the commit of this checkout, with "+" if files differ from it; None if installed."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    line = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        process = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
