"""The report of a stage, and the facts about the machine it ran on."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

Metrics = dict[str, float | int | str | None]
Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a stage function returns: one flat row of numbers, and what the reader must know.

    `command` is the line that was typed, where there was one.
    """

    metrics: Metrics
    notes: tuple[str, ...] = ()
    command: str | None = None


@dataclass(frozen=True)
class Report:
    """The content of `report.json`; `metrics` is one row of a table.

    `source` says what the source is called and holds, `origin` where it lay: relative to the
    directory of the stage, and no part of what the stage is. `command` makes it again. `files` are
    digests of what the stage left, by name, and `digest` is that of the report itself; both are
    empty in reports of earlier versions.
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

    def sealed(self) -> Report:
        """The same with a digest of itself."""
        return replace(self, digest=self._digest())

    @property
    def edited(self) -> bool:
        """Whether it was changed since it was written, as far as it can tell."""
        return self.digest is not None and self.digest != self._digest()

    def _digest(self) -> str:
        """Sixteen characters that say what it holds, however its json is indented."""
        plain = json.loads(json.dumps(asdict(replace(self, digest=None)), default=str))
        return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`; TypeError or ValueError for values of another kind."""
        report = cls(**{**values, "notes": tuple(values.get("notes", ()))})
        kinds = {"stage": str, "settings": Mapping, "metrics": Mapping, "files": Mapping}
        for key, kind in kinds.items():
            if not isinstance(getattr(report, key), kind):
                raise ValueError(f"{key} is a {type(getattr(report, key)).__name__}")
        return report


def environment() -> dict[str, str]:
    """Versions and hardware that a reader needs to judge a number."""
    import torch

    from prunekit import __version__

    facts = {
        "prunekit": __version__,
        **({"commit": found} if (found := _commit()) else {}),
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
    """The commit of the checkout that runs, "+" where files differ; None where it is installed."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():
        return None
    line = ["git", "-C", str(checkout), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        found = subprocess.run(line, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
