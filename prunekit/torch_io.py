"""Read and write files of torch: completely or not at all, checked, without running code."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.atomic_write import replacing
from prunekit.errors import ArtifactError, ConfigError, DamageError

_WAY_OUT = "check its permissions and the disk"
_DIRECTORY = 0x10  # the attribute of directories in zip archives


def write_torch(path: Path, content: Any) -> None:
    """Write tensors, numbers, text, lists and dicts; ArtifactError when that fails."""
    with replacing(path) as draft:
        torch.save(content, draft)


def read_torch(
    path: Path,
    device: torch.device | str = "cpu",
    mend: str = "make it again",
    foreign: bool = False,
) -> Any:
    """Read what `write_torch` wrote, with tensors on `device`; ArtifactError for other files.

    The checksums of zip archives are verified first, which `torch.load` does not do; DamageError
    where they differ. `mend` is the advice in the message about a damaged or unsafe file. Files of
    other tools (`foreign`) may hold the command line of that tool, which is plain data.
    """
    _refuse_absent(path)
    if not _intact(path):
        raise DamageError(f"{path} is damaged: its checksums do not agree; {mend}")
    allowed: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    if foreign:
        allowed = [argparse.Namespace]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # torch warns about pickles of other tools
            return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}; {_WAY_OUT}"
        ) from error
    except Exception as error:  # torch.load raises many types for damaged files
        if isinstance(error, pickle.UnpicklingError) and _asks_for_code(str(error)):
            raise ArtifactError(f"{path} is not loaded, since it could run code; {mend}") from error
        raise DamageError(f"{path} is damaged or no file of torch; {mend}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; ConfigError where the package is missing.

    ArtifactError where the file cannot be read.
    """
    _refuse_absent(path)
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ConfigError(
            f"{path} needs safetensors; pip install 'prunekit[safetensors]'"
        ) from error
    try:
        return load_file(path)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}; {_WAY_OUT}"
        ) from error
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is damaged or no file of safetensors; save it again"
        ) from error


def _refuse_absent(path: Path) -> None:
    if not path.is_file():
        if path.exists():
            raise ArtifactError(f"{path} is no file; remove it, or give the path of a file")
        raise ArtifactError(f"{path} does not exist; give the path of a file")


def _intact(path: Path) -> bool:
    """Return False for a zip archive that differs from its checksums; other files have none.

    It takes a fraction of a second for a few hundred megabytes.
    """
    try:
        if not zipfile.is_zipfile(path):
            return True
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            # torch reads nothing from entries marked as directories, whose mark has no checksum
            odd = any(e.external_attr & _DIRECTORY and not e.is_dir() for e in entries)
            return not odd and _is_plain(entries, path) and archive.testzip() is None
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}; {_WAY_OUT}"
        ) from error
    except Exception:  # zipfile raises many types for damaged archives
        return False


def _is_plain(entries: Sequence[zipfile.ZipInfo], path: Path) -> bool:
    """Return False for entries that unpack to more bytes than the file has; torch packs none."""
    return sum(entry.file_size for entry in entries) <= path.stat().st_size


def _asks_for_code(text: str) -> bool:
    return "Unsupported" in text or "GLOBAL" in text
