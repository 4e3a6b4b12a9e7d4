"""`prunekit clean`: show what no run uses, and remove it."""

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
from prunekit.runs.job_status import FOLDER, left
from prunekit.runs.layout import ASIDE, DRAFTS, FORMER, STAGES, named, ours
from prunekit.runs.stage_cache import SHARED, entry_name

_STAGE = "|".join(STAGES)
_ENTRY = re.compile(rf"({_STAGE})-[0-9a-f]{{8}}")
_SET_ASIDE = re.compile(rf"({_STAGE})\.damaged(-\d+)?")


@dataclass(frozen=True)
class Waste:
    """Files that can go, and what they are; `run` is the directory that must not be in use."""

    run: Path
    place: Path
    kind: str
    files: tuple[Path, ...]

    @property
    def size(self) -> int:
        """Bytes that are free then: what has another name stays."""
        known = [file.lstat() for file in self.files]
        return sum(one.st_size for one in known if one.st_nlink == 1)

    def remove(self) -> None:
        """Delete the files, and folders that are empty then."""
        for file in self.files:
            file.unlink(missing_ok=True)
        folders = {folder for file in self.files for folder in _up_to(self.run, file.parent)}
        for folder in sorted(folders, key=lambda path: -len(path.parts)):
            with contextlib.suppress(OSError):  # it holds something else
                folder.rmdir()


def main(argv: Sequence[str]) -> None:
    """List what no run uses, with sizes, and remove it unless it is only to be shown."""
    arguments = _parser().parse_args(list(argv))
    for path in arguments.paths:
        if not os.path.isdir(path):
            raise ArtifactError(f"{path} is no directory; give one that runs are kept in")
    rows, total, busy = [], 0, {}
    for waste in wastes(map(Path, arguments.paths)):
        with lock.free(waste.run) as alone:
            if not alone:
                busy[os.path.relpath(waste.run)] = True
                continue
            total += waste.size
            rows.append((os.path.relpath(waste.place), waste.kind, _shown(waste.size)))
            if not arguments.dry_run:
                waste.remove()
    if rows:
        console.table("what no run uses", ("place", "what it is", "size"), rows)
    for run in busy:
        console.say(f"{run} is in use and stays as it is")
    verb = "would be freed" if arguments.dry_run else "freed"
    console.say(f"{_shown(total)} {verb}" if rows else "nothing to remove")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prunekit clean",
        description="Remove what no run uses: stages that runs once shared, files and boards of "
        "killed processes, what was set aside. Results of runs stay.",
    )
    parser.add_argument("paths", nargs="*", default=["outputs"], help="where runs are kept")
    parser.add_argument("--dry-run", action="store_true", help="show it with sizes, no more")
    return parser


def wastes(roots: Iterable[Path]) -> Iterator[Waste]:
    """What no run uses, below the given folders; nothing twice."""
    seen: set[Path] = set()
    begun: dict[Path, frozenset[str]] = {}
    for root in roots:
        for folder, inside, _ in os.walk(os.path.abspath(root)):
            place = Path(folder)
            inside.sort()
            pool = place.parent
            if pool.name == SHARED and pool not in begun:
                begun[pool] = _begun(pool.parent)
            for waste in _here(place, begun.get(pool, frozenset())):
                if waste.files and seen.isdisjoint(waste.files):
                    seen.update(waste.files)
                    yield waste


def _here(place: Path, begun: frozenset[str]) -> Iterator[Waste]:
    """What the folder itself is, or holds, that can go; runs want the shared stages `begun`."""
    if place.name.startswith(FOLDER) and left(place):
        yield Waste(place, place, "board of a killed sweep", _boards(place))
    elif place.parent.name == SHARED and _ENTRY.fullmatch(place.name) and not _used(place, begun):
        yield Waste(place, place, "shared once, used by no run", _entry(place))
    elif _SET_ASIDE.fullmatch(place.name) and place.parent.parent.name == SHARED:
        yield Waste(place.parent, place, "set aside, damaged", ours(place))
    elif place.name in STAGES:
        for kind, files in (
            ("of a killed process", named(place, DRAFTS)),
            ("set aside", named(place, ASIDE)),
        ):
            yield Waste(place.parent, files[0] if len(files) == 1 else place, kind, (*files,))


def _used(entry: Path, begun: frozenset[str]) -> bool:
    """Whether a run has links to the files of a shared stage, or was begun as that stage."""
    stage = entry / entry.name.rpartition("-")[0]
    linked = any(file.lstat().st_nlink > 1 for file in ours(stage))
    return linked or entry.name in begun


def _begun(root: Path) -> frozenset[str]:
    """What the stages of the runs below a folder would be called where they are shared."""
    found = set()
    for folder, inside, files in os.walk(root):
        inside[:] = [name for name in inside if not name.startswith(".")]
        stage = Path(folder).name
        if stage in STAGES and "settings.json" in files:
            with contextlib.suppress(ArtifactError):
                identity = read_json(Path(folder) / "settings.json")
                identity.pop("format", None)
                found.add(entry_name(stage, identity))
    return frozenset(found)


def _entry(entry: Path) -> tuple[Path, ...]:
    """The files of a shared stage, what was set aside of it too; the lock goes last."""
    places = [place for place in sorted(entry.iterdir()) if place.is_dir()]
    known = [p for p in places if p.name in STAGES or _SET_ASIDE.fullmatch(p.name)]
    files = [file for place in known for file in (*ours(place / FORMER), *ours(place))]
    return (*files, *named(entry, (lock.NAME,)))


def _boards(place: Path) -> tuple[Path, ...]:
    return (*named(place, ("[0-9]*.json", ".[0-9]*.json.part*")),)


def _up_to(top: Path, folder: Path) -> list[Path]:
    """The folder, and those above it up to `top`; that of shared stages too."""
    above = [place for place in (folder, *folder.parents) if top in (place, *place.parents)]
    return [*above, *([top.parent] if top.parent.name == SHARED else [])]


def _shown(size: int) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{size} bytes"
        size /= 1000
    return f"{size:.3g} GB"
