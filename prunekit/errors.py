"""The errors that prunekit raises on purpose; each is one line that says how to go on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class PrunekitError(Exception):
    """The base of errors that the user can mend; the text is one line without a full stop."""


class ConfigError(PrunekitError):
    """A setting is unknown, has the wrong type, is out of range, or does not fit another one."""


class DataError(PrunekitError):
    """A data set is missing, incomplete or does not agree with its settings."""


class TraceError(PrunekitError):
    """A network cannot be traced into a channel graph."""


class SurgeryError(PrunekitError):
    """A structural edit does not fit the network it is applied to."""


class ArtifactError(PrunekitError):
    """A file of a run is missing, damaged, foreign, in use, or made with other settings."""


class DamageError(ArtifactError):
    """The bytes of a file are not those that were written."""


class ExportError(PrunekitError):
    """A network cannot be written for another engine, or would compute something else there."""


class TrainingError(PrunekitError):
    """Training broke down, for instance because the loss is no longer finite."""


class SweepError(PrunekitError):
    """Some jobs of a sweep failed; the others were finished."""


def one_of(value: object, accepted: Iterable[str]) -> str:
    """Return a hint that names the accepted values nearest to `value`, or all of them."""
    names = sorted(set(accepted))
    near = get_close_matches(str(value), names, n=3, cutoff=0.5)
    near = _same_but_for_the_number(str(value), names)[:3] or near
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not names:
        return "nothing is accepted here"
    return f"accepted: {listed(names, 16)}"


def _same_but_for_the_number(value: str, names: Sequence[str]) -> list[str]:
    """Return the names that differ from `value` in a number at the end only, the nearest first."""
    pattern = re.compile(r"(.*?)(\d+)")
    if (typed := pattern.fullmatch(value)) is None:
        return []
    numbered = [match for name in names if (match := pattern.fullmatch(name))]
    same = [match for match in numbered if match[1] == typed[1]]
    return [m[0] for m in sorted(same, key=lambda match: abs(int(match[2]) - int(typed[2])))]


def listed(names: Sequence[str], limit: int = 3, separator: str = ", ") -> str:
    """Join the first names of a list, and say how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return separator.join(names[:limit]) + more
