"""Read the file formats of well-known data sets without trusting their content."""

from __future__ import annotations

import gzip
import pickle
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.errors import DataError

_HARMLESS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, _="latin1": text.encode("latin1"),
    # old and new numpy keep the function in different places; every array leads to it
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArrayUnpickler(pickle.Unpickler):
    """Builds arrays, numbers, text, lists and dicts; refuses every other global."""

    def find_class(self, module: str, name: str) -> Any:
        """The harmless object of that name."""
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")
        return _HARMLESS[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """A pickled dict of arrays and lists, keys as text; raises DataError, never runs code."""
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        return {_text(key): value for key, value in content.items()}
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def read_idx(path: Path) -> np.ndarray:
    """An array in the IDX format of MNIST, gzipped or not; raises DataError."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        dims = content[3]
        if content[:3] != b"\0\0\x08":
            raise ValueError("it does not start as a file of bytes in IDX format")
        shape = np.frombuffer(content, ">i4", dims, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape).copy()
    except (ValueError, IndexError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise damaged(path, error) from error


def read_lines(path: Path, mend: str) -> list[str]:
    """The lines of a text file that hold something; DataError, which says how to `mend` it."""
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path.resolve()} cannot be read: {reason}; {mend}") from error
    return [line.strip() for line in lines if line.strip()]


def damaged(path: Path, error: object) -> DataError:
    """The error for a file that is there but cannot be read."""
    return DataError(f"{path} is damaged or not what its name says: {error}; delete and refetch it")


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key
