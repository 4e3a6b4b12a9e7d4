"""The functions that Hydra calls with a composed config, once for every command or job."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from prunekit.errors import ConfigError

if TYPE_CHECKING:
    from prunekit.runs.job_status import StatusWriter

MessageOf = Callable[[Exception], str | None]  # one line for an error that can be mended


def task(command: str, message_of: MessageOf, failures: dict[str, str]) -> Callable[[Any], Any]:
    """Return the function that Hydra calls for a command.

    The error of a single command is stored in `failures`, by directory. A job of a sweep writes
    its error to the status board, so that the other jobs go on.
    """

    def run(config: Any) -> Any:
        from hydra.core.hydra_config import HydraConfig
        from hydra.types import RunMode

        directory = HydraConfig.get().runtime.output_dir
        job = _run_job if HydraConfig.get().mode is RunMode.MULTIRUN else _run_command
        try:
            _refuse_other_directory(directory, config.stage)
            return job(command, config, directory, message_of)
        except Exception as error:
            if (message := message_of(error)) is None:
                raise
            failures[directory] = message
            return float("nan")
        finally:
            _remove_empty(os.path.relpath(directory))

    return run


def _refuse_other_directory(directory: str, stage: str) -> None:
    """Raise ConfigError where Hydra's settings name a directory that is not that of a stage.

    A run is the parent of that directory, which no setting of Hydra may move unseen: the parent of
    / is / itself.
    """
    if Path(directory).name != stage:
        raise ConfigError(
            f"hydra.run.dir or hydra.sweep.subdir is set, so that {stage} would write to "
            f"{Path(directory).parent}; leave them as they are, and set root=... and name=..."
        )


def _remove_empty(directory: str) -> None:
    """Remove the directory that Hydra created, and its parents, where they are empty."""
    while directory and not os.path.exists(directory):
        directory = os.path.dirname(directory)
    with contextlib.suppress(OSError):
        os.removedirs(directory)


def _run_command(command: str, config: Any, directory: str, message_of: MessageOf) -> Any:
    """Run a single command; its errors go to the caller."""
    del message_of
    settings = _settings(command, config)
    from prunekit.stages import inspect, pipeline  # imports torch, after settings were checked

    if command == "inspect":
        return inspect.inspect(settings, directory)
    stages = pipeline.run if command == "run" else pipeline.run_stage
    return stages(settings, directory)


def _settings(command: str, config: Any) -> dict[str, Any]:
    """Return the composed settings, with the command line that repeats them."""
    from hydra.core.hydra_config import HydraConfig

    from prunekit.config import check_complete, choose_reconstruction, command_line, resolve

    check_complete(config, command)
    settings = resolve(config)
    settings = choose_reconstruction(settings, command)
    return {**settings, "command": command_line(command, HydraConfig.get())}


def _run_job(command: str, config: Any, directory: str, message_of: MessageOf) -> Any:
    """Run one job of a sweep, with its output in a log, its progress and errors on the board."""
    from hydra.core.hydra_config import HydraConfig

    from prunekit.cli.sweep import current_board, end_with_sweep
    from prunekit.console import complain, redirect_output
    from prunekit.runs.job_status import DONE, FAILED, JobStatus, StatusWriter

    hydra, board = HydraConfig.get(), current_board()
    if board is not None:
        end_with_sweep(board.path)
    folder = Path(directory).parent
    status = JobStatus(os.path.relpath(folder), tuple(hydra.overrides.task))
    notice = StatusWriter(board, hydra.job.num, status)
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as log,
        _redirect_logging(log),
        redirect_output(log, notice.progress),
    ):
        try:
            settings = _settings(command, config)
            objectives = _run_stages(command, settings, directory, hydra.sweep.dir, notice)
        except Exception as error:
            message = message_of(error)
            complain(f"prunekit: {message or repr(error)}")
            if message is None:
                logging.exception("a defect of prunekit, or of a class of your own")
            notice.update(state=FAILED, error=message or f"{type(error).__name__}: {error}")
            return float("nan")
        notice.update(state=DONE, step="")
        return objectives


def _run_stages(
    command: str, settings: dict[str, Any], directory: str, root: str, notice: StatusWriter
) -> Any:
    """Run the stages of a job, sharing equal ones with the other jobs; return the objectives."""
    from prunekit.runs.stage_cache import SHARED, StageCache
    from prunekit.stages import inspect, pipeline

    if command == "inspect":
        return inspect.inspect(settings, directory)
    stages = pipeline.run if command == "run" else pipeline.run_stage
    return stages(settings, directory, StageCache(Path(root) / SHARED), notice.stage)


@contextlib.contextmanager
def _redirect_logging(file: TextIO) -> Iterator[None]:
    """Send log records to a file instead of to the terminal."""
    root = logging.getLogger()
    handlers, handler = root.handlers[:], logging.StreamHandler(file)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    root.handlers[:] = [handler]
    try:
        yield
    finally:
        root.handlers[:] = handlers
