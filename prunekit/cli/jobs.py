"""What Hydra calls with a composed config: once for a command, once a job in a sweep."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from prunekit.runs.job_status import Notice

Shown = Callable[[Exception], str | None]


def task(command: str, shown: Shown, failures: dict[str, str]) -> Callable[[Any], Any]:
    """The function for one command. `shown` makes a line of what the user can mend.

    Of a single command that line lands in `failures`; a job of a sweep says it on the board, so
    that the others go on.
    """

    def run(config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        place = HydraConfig.get().runtime.output_dir
        job = _job if HydraConfig.get().mode is RunMode.MULTIRUN else _single
        try:
            return job(command, config, place, shown)
        except Exception as error:
            if (message := shown(error)) is None:
                raise
            failures[place] = message
            return float("nan")
        finally:
            _tidy(os.path.relpath(place))

    return run


def _tidy(place: str) -> None:
    """Remove the folder that Hydra makes, and those above it, where they are empty."""
    while place and not os.path.exists(place):
        place = os.path.dirname(place)
    with contextlib.suppress(OSError):
        os.removedirs(place)


def _single(command: str, config: Any, place: str, shown: Shown) -> Any:
    del shown  # errors go to the caller
    settings = _settings(command, config)
    from prunekit.stages import inspect, pipeline  # torch is imported here, after that

    commands = {"run": pipeline.run, "inspect": inspect.inspect}
    return commands.get(command, pipeline.one)(settings, place)


def _settings(command: str, config: Any) -> dict[str, Any]:
    """The composed settings, and the command that asks for them."""
    from hydra.core.hydra_config import HydraConfig

    from prunekit.config import command_of, resolve

    return {**resolve(config), "command": command_of(command, HydraConfig.get())}


def _job(command: str, config: Any, place: str, shown: Shown) -> Any:
    """One job of a sweep: its lines go to a log, its progress and its errors to the board."""
    from hydra.core.hydra_config import HydraConfig

    from prunekit.cli.sweep import board, follow
    from prunekit.console import aside, complain
    from prunekit.runs.job_status import DONE, FAILED, Notice, Status

    hydra, seen = HydraConfig.get(), board()
    if seen is not None:
        follow(seen.path)
    folder = Path(place).parent
    status = Status(os.path.relpath(folder), tuple(hydra.overrides.task))
    notice = Notice(seen, hydra.job.num, status)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as log,
        _logged_to(log),
        aside(log, notice.progress),
    ):
        try:
            found = _work(command, _settings(command, config), place, hydra.sweep.dir, notice)
        except Exception as error:
            message = shown(error)
            complain(f"prunekit: {message or repr(error)}")
            if message is None:
                logging.exception("a defect of prunekit, or of a class of your own")
            notice.tell(state=FAILED, error=message or f"{type(error).__name__}: {error}")
            return float("nan")
        notice.tell(state=DONE, step="")
        return found


def _work(command: str, settings: dict[str, Any], place: str, root: str, notice: Notice) -> Any:
    from prunekit.runs.stage_cache import SHARED, StageCache
    from prunekit.stages import inspect, pipeline

    if command == "inspect":
        return inspect.inspect(settings, place)
    pool = StageCache(Path(root) / SHARED)
    stages = pipeline.run if command == "run" else pipeline.one
    return stages(settings, place, pool, notice.stage)


@contextlib.contextmanager
def _logged_to(file: TextIO) -> Iterator[None]:
    """Send what is logged to a file instead of to the terminal."""
    root = logging.getLogger()
    before, handler = root.handlers[:], logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = before
