"""What the images of a data set are, wherever they lie: names, sizes and content of their files."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from heapq import nsmallest
from pathlib import Path
from typing import Any

from prunekit.atomic_write import replacing
from prunekit.errors import DataError, PrunekitError

Files = Mapping[str, str | Path]  # names that move with the files, and where these lie now

IMAGES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
_WHOLE = (1024, 256 << 20)  # so many files of so many bytes together are read to the last byte
_SAMPLED = 256  # files of larger sets that are looked into
_LOOKED_AT = 64 << 20  # bytes of them, all together
_BLOCK = 64 << 10
_FRESH = 2_000_000_000  # nanoseconds; a file that is younger may change and show the same time
_KEPT = 64  # sets that are remembered
_known: dict[str, str] = {}


def images_under(root: str | Path, folder: str) -> dict[str, str]:
    """The image files below `root`/`folder`, by their names below `root`; links are followed."""
    found = {}
    for place, _, names in os.walk(os.path.join(root, folder), followlinks=True):
        inside = os.path.relpath(place, root).replace(os.sep, "/")
        for name in names:
            if name.lower().endswith(IMAGES):
                found[f"{inside}/{name}"] = os.path.join(place, name)
    return found


def identity_of_files(files: Files) -> dict[str, Any]:
    """How many files, of how many bytes, and a digest of their names, sizes and content.

    Small sets are read whole, of larger ones a sample of files and of blocks in them, always the
    same one. A digest is remembered for as long as no file changes its size or its times, in this
    process and in the user's cache folder: data sets are read by many runs in many places.
    DataError where a file cannot be read.
    """
    try:
        facts = {name: os.stat(files[name]) for name in sorted(files)}
        sizes = {name: fact.st_size for name, fact in facts.items()}
        stamp = _digest(
            f"{name}\0{f.st_size} {f.st_mtime_ns} {f.st_ctime_ns} {f.st_dev} {f.st_ino}"
            for name, f in facts.items()
        )
        content = _remembered(stamp)
        if content is None:
            content = _content(files, sizes)
            newest = max(max(f.st_mtime_ns, f.st_ctime_ns) for f in facts.values())
            if time.time_ns() - newest > _FRESH:
                _remember(stamp, content)
    except OSError as error:
        reason = error.strerror or error
        raise DataError(
            f"{error.filename} cannot be read: {reason}; mend it, or fetch it again"
        ) from error
    return {"files": len(sizes), "bytes": sum(sizes.values()), "content": f"sha256:{content}"}


def _content(files: Files, sizes: Mapping[str, int]) -> str:
    """The digest of names, sizes, and of the content that is looked at."""
    names, budget = list(sizes), max(sizes.values())
    if len(names) > _WHOLE[0] or sum(sizes.values()) > _WHOLE[1]:
        # drawn by digests of names: no generator could do this alike in all versions of Python
        names = sorted(nsmallest(_SAMPLED, names, key=lambda name: _hash(name).digest()))
        budget = _LOOKED_AT // len(names)
    whole = hashlib.sha256()
    for name, size in sizes.items():
        whole.update(f"{name}\0{size}\n".encode(errors="surrogateescape"))
    for name in names:
        with open(files[name], "rb") as file:
            for start, length in _parts(name, sizes[name], budget):
                file.seek(start)
                whole.update(file.read(length))
    return whole.hexdigest()[:32]


def _parts(name: str, size: int, budget: int) -> Iterator[tuple[int, int]]:
    """What to read of a file, as (start, length): all, or its ends and blocks between, drawn."""
    if size <= budget:
        for start in range(0, size, _BLOCK):
            yield start, _BLOCK
        return
    yield 0, _BLOCK
    for number in range(max(0, budget // _BLOCK - 2)):
        drawn = int.from_bytes(_hash(f"{name} {number}").digest()[:8], "big")
        yield drawn % (size // _BLOCK) * _BLOCK, _BLOCK
    yield size - _BLOCK, _BLOCK


def _hash(text: str) -> Any:
    return hashlib.sha256(text.encode(errors="surrogateescape"))


def _digest(lines: Iterator[str]) -> str:
    return _hash("\n".join(lines)).hexdigest()


def _remembered(stamp: str) -> str | None:
    """The digest that files with this stamp had, where it is known."""
    if stamp not in _known:
        entry = _stored().get(stamp)
        if isinstance(entry, list) and len(entry) == 2 and entry[1] == _check(stamp, entry[0]):
            _known[stamp] = str(entry[0])
    return _known.get(stamp)


def _remember(stamp: str, content: str) -> None:
    """Keep a digest; where no file can be written, for this process only."""
    _known[stamp] = content
    entries = {**_stored(), stamp: [content, _check(stamp, content)]}
    kept = dict(list(entries.items())[-_KEPT:])
    with suppress(OSError, RuntimeError, PrunekitError), replacing(_place()) as draft:
        draft.write_text(json.dumps(kept, indent=0), encoding="utf-8")


def _stored() -> dict[str, Any]:
    with suppress(OSError, RuntimeError, ValueError):
        entries = json.loads(_place().read_text(encoding="utf-8"))
        return entries if isinstance(entries, dict) else {}
    return {}


def _place() -> Path:
    """RuntimeError for a user without a home."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "prunekit" / "images.json"


def _check(stamp: str, content: object) -> str:
    """Tells an entry whose bytes have changed on the disk."""
    return _hash(f"{stamp} {content}").hexdigest()[:8]
