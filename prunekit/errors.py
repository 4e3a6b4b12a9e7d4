"""Every error that prunekit raises on purpose: one line with the value, the place, the way out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class PrunekitError(Exception):
    """Something the user can mend; its text is one line, lower case, without a full stop."""


class ConfigError(PrunekitError):
    """A setting is unknown, has the wrong type, is out of range, or does not fit another one."""


class DataError(PrunekitError):
    """A data set is missing, incomplete or not what its settings say."""


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
    """Say what would have been accepted in place of `value`, the nearest names first."""
    names = sorted(set(accepted))
    near = get_close_matches(str(value), names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}?"
    if not names:
        return "nothing is accepted here"
    return f"accepted: {listed(names, 16)}"


def listed(names: Sequence[str], most: int = 3, between: str = ", ") -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return between.join(names[:most]) + more
