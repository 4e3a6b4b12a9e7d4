"""Files of torch: written whole or not at all, read without running code from them."""

from __future__ import annotations

import argparse
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunekit.atomic import replacing
from prunekit.errors import ArtifactError, ConfigError


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

    `mend` says in the error what to do about a file that is damaged or asks for more. Files of
    other tools (`foreign`) may hold the command line they were made with, which is plain data.
    """
    _refuse_absent(path)
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
        raise ArtifactError(f"{path} is damaged or no file of torch; {mend}") from error


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


def _asks_for_code(text: str) -> bool:
    return "Unsupported" in text or "GLOBAL" in text
