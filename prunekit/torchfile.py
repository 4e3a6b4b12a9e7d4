"""Files of torch: written whole or not at all, read without running code from them."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from prunekit.atomic import replacing
from prunekit.errors import ArtifactError


def write_torch(path: Path, content: Any) -> None:
    """Write tensors, numbers, text, lists and dicts; ArtifactError when the disk refuses."""
    with replacing(path) as draft:
        torch.save(content, draft)


def read_torch(path: Path, device: torch.device | str = "cpu", mend: str = "make it again") -> Any:
    """What `write_torch` wrote, tensors on `device`; ArtifactError for what is no such file.

    `mend` says in the error what to do about a file that is damaged or asks for more.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    try:
        with warnings.catch_warnings():  # about pickles that torch did not write
            warnings.simplefilter("ignore")
            return torch.load(path, map_location=device, weights_only=True)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch.load reports damage in a dozen ways
        if isinstance(error, pickle.UnpicklingError) and _asks_for_code(str(error)):
            raise ArtifactError(f"{path} is not loaded, since it could run code; {mend}") from error
        raise ArtifactError(f"{path} is damaged or no file of torch; {mend}") from error


def _asks_for_code(text: str) -> bool:
    return "Unsupported" in text or "GLOBAL" in text
