"""Files of torch: written whole or not at all, checked, read without running code from them."""

from __future__ import annotations

import argparse
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.atomic_write import replacing
from prunekit.errors import ArtifactError, ConfigError, DamageError

_DIRECTORY = 0x10  # an attribute of entries of zip archives


def write_torch(path: Path, content: Any) -> None:
    """Write tensors, numbers, text, lists and dicts; ArtifactError when the disk refuses."""
    with replacing(path) as draft:
        torch.save(content, draft)


def read_torch(
    path: Path,
    device: torch.device | str = "cpu",
    mend: str = "make it again",
    foreign: bool = False,
) -> Any:
    """What `write_torch` wrote, tensors on `device`; ArtifactError for what is no such file.

    Archives, which all newer files are, are compared with their own checksums first: DamageError
    where they differ, which `torch.load` does not notice. `mend` says in the error what to do about
    a file that is damaged or asks for more. Files of other tools (`foreign`) may hold the command
    line they were made with, which is plain data.
    """
    _refuse_absent(path)
    if not _intact(path):
        raise DamageError(f"{path} is damaged: its checksums do not agree; {mend}")
    allowed = [argparse.Namespace] if foreign else []
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(allowed):
            warnings.simplefilter("ignore")  # about pickles that torch did not write
            return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load reports damage in a dozen ways
        if isinstance(error, pickle.UnpicklingError) and _asks_for_code(str(error)):
            raise ArtifactError(f"{path} is not loaded, since it could run code; {mend}") from error
        raise DamageError(f"{path} is damaged or no file of torch; {mend}") from error


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; ArtifactError, ConfigError without that package."""
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
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise ArtifactError(
            f"{path} is damaged or no file of safetensors; save it again"
        ) from error


def _refuse_absent(path: Path) -> None:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist" if not path.exists() else f"{path} is no file")


def _intact(path: Path) -> bool:
    """Whether an archive agrees with its checksums; what is no archive has none to disagree with.

    A few hundred megabytes take a fraction of a second.
    """
    try:
        if not zipfile.is_zipfile(path):
            return True
        with zipfile.ZipFile(path) as archive:
            # torch reads nothing of an entry that says it is a directory, and no checksum is on it
            odd = any(
                entry.external_attr & _DIRECTORY and not entry.is_dir()
                for entry in archive.infolist()
            )
            return not odd and archive.testzip() is None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception:  # damaged archives make zipfile raise in a dozen ways
        return False


def _asks_for_code(text: str) -> bool:
    return "Unsupported" in text or "GLOBAL" in text
