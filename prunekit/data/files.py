"""Read the files of data sets without running code in them, and identify the images."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import stat
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from heapq import nsmallest
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.atomic_write import replacing
from prunekit.errors import DataError, PrunekitError

_HARMLESS = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, _="latin1": text.encode("latin1"),
    # old and new numpy have the function in different modules
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArrayUnpickler(pickle.Unpickler):
    """Build arrays, numbers, text, lists and dicts only, and refuse every other global."""

    def find_class(self, module: str, name: str) -> Any:
        """Return an allowed object; raise UnpicklingError for all others."""
        if (module, name) not in _HARMLESS:
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of arrays")
        return _HARMLESS[module, name]


def read_pickle(path: Path) -> dict[str, Any]:
    """Read a pickled dict of arrays and lists, with text keys; raise DataError, run no code."""
    try:
        with open(path, "rb") as file:
            content = _ArrayUnpickler(file, encoding="bytes").load()
        return {_text(key): value for key, value in content.items()}
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError) as error:
        raise damaged(path, error) from error


def read_idx(path: Path) -> np.ndarray:
    """Read an array in the IDX format of MNIST, gzipped or not; raise DataError."""
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
    """Return the nonempty lines of a text file; raise DataError that ends with `mend`."""
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path.resolve()} cannot be read: {reason}; {mend}") from error
    return [line.strip() for line in lines if line.strip()]


def damaged(path: Path, error: object) -> DataError:
    """Return the error for a file that exists but cannot be read."""
    return DataError(f"{path} is damaged or not what its name says: {error}; delete and refetch it")


def _text(key: str | bytes) -> str:
    return key.decode() if isinstance(key, bytes) else key


Files = Mapping[str, str | Path]  # relative names, and the paths of the files now

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_WHOLE = (1024, 256 << 20)  # sets of up to so many files and bytes are hashed completely
_SAMPLED = 256  # number of files of larger sets that are hashed
_SAMPLED_BYTES = 64 << 20  # bytes that are hashed of all of these together
_BLOCK = 64 << 10
_FRESH = 2_000_000_000  # nanoseconds; a younger file may change without another time stamp
_CACHED = 128  # digests and other texts that are cached
_digests: dict[str, str] = {}


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, as caches and copies of some systems are."""
    return name.startswith(".")


def images_under(root: str | Path, folder: str) -> dict[str, str]:
    """Return the image files below `root`/`folder` by their names below `root`, through links.

    Hidden files and folders are left out.
    """
    files = {}
    for directory, folders, names in os.walk(os.path.join(root, folder), followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inside = os.path.relpath(directory, root).replace(os.sep, "/")
        for name in names:
            if name.lower().endswith(IMAGES) and not is_hidden(name):
                files[f"{inside}/{name}"] = os.path.join(directory, name)
    return files


def identity_of_files(files: Files) -> dict[str, Any]:
    """Return the number of files and bytes, and a digest of names, sizes and content.

    Small sets are hashed completely; of larger ones, a fixed sample of files and of blocks in them.
    Digests are cached, in this process and in the user's cache folder, until a file changes its
    size or its times. Raises DataError where a file cannot be read.
    """
    with _readable():
        facts = _facts(files)
        sizes = {name: fact.st_size for name, fact in facts.items()}
        content = _cached(_stamp(facts), facts, lambda: _content(files, sizes))
    return {"files": len(sizes), "bytes": sum(sizes.values()), "content": f"sha256:{content}"}


def cached_text(kind: str, files: Files, compute: Callable[[], str]) -> str:
    """Return the text that `compute` derives from these files, cached as digests are.

    `kind` says which text of these files it is. Raises DataError where a file cannot be read.
    """
    with _readable():
        facts = _facts(files)
        return _cached(f"{kind} {_stamp(facts)}", facts, compute)


def _facts(files: Files) -> dict[str, os.stat_result]:
    """Return size and times of every file; DataError for one from which reading may never end."""
    facts = {name: os.stat(files[name]) for name in sorted(files)}
    for name, fact in facts.items():
        if not stat.S_ISREG(fact.st_mode):
            raise irregular(files[name])
    return facts


def irregular(path: str | Path) -> DataError:
    """Return the error for what has the name of a file but is none."""
    return DataError(f"{path} is no regular file but a pipe, device or folder; remove it")


@contextmanager
def _readable() -> Iterator[None]:
    """Raise DataError for a file that cannot be read."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{error.filename} cannot be read: {reason}; mend it, or fetch it again"
        ) from error


def _stamp(facts: Mapping[str, os.stat_result]) -> str:
    """Return a digest that changes with the name, the size and the times of a file."""
    return _digest(
        f"{name}\0{f.st_size} {f.st_mtime_ns} {f.st_ctime_ns} {f.st_dev} {f.st_ino}"
        for name, f in facts.items()
    )


def _cached(stamp: str, facts: Mapping[str, os.stat_result], compute: Callable[[], str]) -> str:
    """Return the cached text of a stamp, or compute it; that of fresh files is not cached."""
    text = _cached_digest(stamp)
    if text is None:
        text = compute()
        newest = max(max(f.st_mtime_ns, f.st_ctime_ns) for f in facts.values())
        if time.time_ns() - newest > _FRESH:
            _store_digest(stamp, text)
    return text


def _content(files: Files, sizes: Mapping[str, int]) -> str:
    """Return the digest of names, sizes and the hashed content."""
    names, budget = list(sizes), max(sizes.values())
    if len(names) > _WHOLE[0] or sum(sizes.values()) > _WHOLE[1]:
        # drawn by digests of names, which are the same in all versions of Python
        names = sorted(nsmallest(_SAMPLED, names, key=lambda name: _hash(name).digest()))
        budget = _SAMPLED_BYTES // len(names)
    digest = hashlib.sha256()
    for name, size in sizes.items():
        digest.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    for name in names:
        with open(files[name], "rb") as file:
            for start, length in _parts(name, sizes[name], budget):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()[:32]


def _parts(name: str, size: int, budget: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the parts of a file to hash: all, or both ends and random blocks."""
    if size <= budget:
        for start in range(0, size, _BLOCK):
            yield start, _BLOCK
        return
    yield 0, _BLOCK
    for number in range(max(0, budget // _BLOCK - 2)):
        random = int.from_bytes(_hash(f"{name} {number}").digest()[:8], "big")
        yield random % (size // _BLOCK) * _BLOCK, _BLOCK
    yield size - _BLOCK, _BLOCK


def _hash(text: str) -> hashlib._Hash:
    return hashlib.sha256(text.encode(errors="surrogateescape"))


def _digest(lines: Iterator[str]) -> str:
    return _hash("\n".join(lines)).hexdigest()


def _cached_digest(stamp: str) -> str | None:
    """Return the digest of files with this stamp, None if it is not cached."""
    if stamp not in _digests:
        entry = _read_cache().get(stamp)
        if isinstance(entry, list) and len(entry) == 2 and entry[1] == _check(stamp, entry[0]):
            _digests[stamp] = str(entry[0])
    return _digests.get(stamp)


def _store_digest(stamp: str, content: str) -> None:
    """Cache a digest, for this process only if the cache file cannot be written."""
    _digests[stamp] = content
    entries = {**_read_cache(), stamp: [content, _check(stamp, content)]}
    latest = dict(list(entries.items())[-_CACHED:])
    with suppress(OSError, RuntimeError, PrunekitError), replacing(_cache_file()) as draft:
        draft.write_text(json.dumps(latest, indent=0), encoding="utf-8")


def _read_cache() -> dict[str, Any]:
    with suppress(OSError, RuntimeError, ValueError):
        entries = json.loads(_cache_file().read_text(encoding="utf-8"))
        return entries if isinstance(entries, dict) else {}
    return {}


def _cache_file() -> Path:
    """Return the path of the cache; raise RuntimeError for a user without a home folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prunekit" / "images.json"


def _check(stamp: str, content: object) -> str:
    """Return a checksum that detects damaged entries of the cache file."""
    return _hash(f"{stamp} {content}").hexdigest()[:8]
