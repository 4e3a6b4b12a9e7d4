"""`prunekit clean`: list the files that no run uses, and delete them."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from prunekit import console
from prunekit.errors import ArtifactError
from prunekit.runs import lock
from prunekit.runs.files import read_json
from prunekit.runs.job_status import FOLDER_PREFIX, is_abandoned
from prunekit.runs.layout import BACKUP, DRAFTS, SET_ASIDE, STAGES, matching_files, own_files
from prunekit.runs.stage_cache import SHARED, entry_name

_STAGE = "|".join(STAGES)
_ENTRY = re.compile(rf"({_STAGE})-[0-9a-f]{{8}}")
_DAMAGED_STAGE = re.compile(rf"({_STAGE})\.damaged(-\d+)?")


@dataclass(frozen=True)
class Leftover:
    """Files that can be deleted, and their kind, provided that nobody uses the directory `run`."""

    run: Path
    place: Path
    kind: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """The bytes that deleting frees: none for files that have another name."""
        stats = [file.lstat() for file in self.files]
        return sum(stat.st_size for stat in stats if stat.st_nlink == 1)

    def remove(self) -> None:
        """Delete the files, and folders that are empty then."""
        for file in self.files:
            file.unlink(missing_ok=True)
        folders = {folder for file in self.files for folder in _up_to(self.run, file.parent)}
        for folder in sorted(folders, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # it is not empty
                folder.rmdir()


def main(argv: Sequence[str]) -> None:
    """List what no run uses, with sizes, and delete it unless `--dry-run` is given."""
    arguments = _parser().parse_args(list(argv))
    for path in arguments.paths:
        if not os.path.isdir(path):
            raise ArtifactError(f"{path} is no directory; give one that runs are kept in")
    lines, total, busy = [], 0, {}
    for leftover in find_leftovers(map(Path, arguments.paths)):
        with lock.try_hold(leftover.run) as free:
            if not free:
                busy[os.path.relpath(leftover.run)] = True
                continue
            total += leftover.size
            place = os.path.relpath(leftover.place)
            lines.append((place, leftover.kind, _format_size(leftover.size)))
            if not arguments.dry_run:
                leftover.remove()
    if lines:
        console.table("what no run uses", ("place", "what it is", "size"), lines)
    for run in busy:
        console.say(f"{run} is in use and stays as it is")
    verb = "would be freed" if arguments.dry_run else "freed"
    console.say(f"{_format_size(total)} {verb}" if lines else "nothing to remove")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunekit clean",
        description="Remove what no run uses: stages that runs once shared, files and boards of "
        "killed processes, what was set aside. Results of runs stay.",
    )
    parser.add_argument("paths", nargs="*", default=["outputs"], help="where runs are kept")
    parser.add_argument("--dry-run", action="store_true", help="show it with sizes, no more")
    return parser


def find_leftovers(roots: Iterable[Path]) -> Iterator[Leftover]:
    """Yield what no run below the given folders uses; no file occurs twice."""
    reported: set[Path] = set()
    begun: dict[Path, frozenset[str]] = {}
    for root in roots:
        for name, subfolders, _ in os.walk(os.path.abspath(root)):
            folder = Path(name)
            subfolders.sort()
            cache = folder.parent
            if cache.name == SHARED and cache not in begun:
                begun[cache] = _begun_entries(cache.parent)
            for leftover in _leftovers_in(folder, begun.get(cache, frozenset())):
                if leftover.files and reported.isdisjoint(leftover.files):
                    reported.update(leftover.files)
                    yield leftover


def _leftovers_in(folder: Path, begun: frozenset[str]) -> Iterator[Leftover]:
    """Yield the folder itself, or files in it; runs still need the cache entries `begun`."""
    if folder.name.startswith(FOLDER_PREFIX) and is_abandoned(folder):
        yield Leftover(folder, folder, "board of a killed sweep", _status_files(folder))
    elif folder.parent.name == SHARED and _ENTRY.fullmatch(folder.name):
        if not _is_used(folder, begun):
            yield Leftover(folder, folder, "shared once, used by no run", _entry_files(folder))
    elif _DAMAGED_STAGE.fullmatch(folder.name) and folder.parent.parent.name == SHARED:
        yield Leftover(folder.parent, folder, "set aside, damaged", own_files(folder))
    elif folder.name in STAGES:
        for kind, patterns in (("of a killed process", DRAFTS), ("set aside", SET_ASIDE)):
            files = tuple(matching_files(folder, patterns))
            place = files[0] if len(files) == 1 else folder
            yield Leftover(folder.parent, place, kind, files)


def _is_used(entry: Path, begun: frozenset[str]) -> bool:
    """Return whether a run links to files of a cached stage, or has begun the same stage."""
    stage = entry / entry.name.rpartition("-")[0]
    linked = any(file.lstat().st_nlink > 1 for file in own_files(stage))
    return linked or entry.name in begun


def _begun_entries(root: Path) -> frozenset[str]:
    """Return the names in the cache of all stages that runs below a folder have begun."""
    entries = set()
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        stage = Path(folder).name
        if stage in STAGES and "settings.json" in files:
            with contextlib.suppress(ArtifactError):
                identity = read_json(Path(folder) / "settings.json")
                identity.pop("format", None)
                entries.add(entry_name(stage, identity))
    return frozenset(entries)


def _entry_files(entry: Path) -> tuple[Path, ...]:
    """Return the files of a cached stage and of its damaged copies; the lock file is last."""
    folders = [path for path in sorted(entry.iterdir()) if path.is_dir()]
    stages = [f for f in folders if f.name in STAGES or _DAMAGED_STAGE.fullmatch(f.name)]
    files = [file for stage in stages for file in (*own_files(stage / BACKUP), *own_files(stage))]
    return (*files, *matching_files(entry, (lock.LOCK_FILE,)))


def _status_files(folder: Path) -> tuple[Path, ...]:
    return tuple(matching_files(folder, ("[0-9]*.json", ".[0-9]*.json.part*")))


def _up_to(top: Path, folder: Path) -> list[Path]:
    """Return the folder and those above it up to `top`, or up to the cache that holds `top`."""
    above = [path for path in (folder, *folder.parents) if top in (path, *path.parents)]
    return [*above, *([top.parent] if top.parent.name == SHARED else [])]


def _format_size(count: float) -> str:
    if count < 1000:
        return f"{count} bytes"
    for unit in ("kB", "MB"):
        count /= 1000
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1000:.3g} GB"
