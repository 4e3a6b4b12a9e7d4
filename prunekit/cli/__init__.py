"""The command line: `main` picks the command, and Hydra composes its settings."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit.errors import PrunekitError, one_of
from prunekit.runs.layout import PIPELINE
from prunekit.termination import Terminated, terminable

if TYPE_CHECKING:
    from prunekit.runs.job_status import JobStatus

STAGES = {
    **{entry.name: entry.title for entry in PIPELINE},
    "run": "all stages in order; skips what is finished, resumes what was interrupted",
    "inspect": "channel groups, what is frozen and why, predicted cost; trains nothing",
}
TOOLS = {
    "report": "finished runs as a table and as one page: report.html",
    "clean": "remove what no run uses; --dry-run shows it first",
}
_MODULES = {"report": "prunekit.reporting.command", "clean": "prunekit.runs.clean"}


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; exit with 1 on errors that the user can mend, with 2 on wrong usage.

    A command that is interrupted exits with 130, one that receives SIGTERM with 143.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = _parser()
    if not arguments:
        parser.print_help()
        sys.exit(2)
    parsed = parser.parse_args(arguments[:1])
    _refuse_unknown(parser, parsed.command)
    try:
        with terminable():
            if parsed.command in STAGES:
                _launch(parsed.command, arguments[1:])
            else:
                importlib.import_module(_MODULES[parsed.command]).main(arguments[1:])
    except PrunekitError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", code=130)
    except Terminated:
        _fail("terminated; the same command continues", code=143)


def _parser() -> argparse.ArgumentParser:
    from prunekit import __version__

    lines = "\n".join(f"  {name:<11} {text}" for name, text in (STAGES | TOOLS).items())
    parser = argparse.ArgumentParser(
        prog="prunekit",
        usage="prunekit COMMAND [GROUP=CHOICE] [KEY=VALUE] [-m] [--help]",
        description="Make convolutional networks smaller and faster.",
        epilog=f"commands:\n{lines}\n\nprunekit COMMAND --help lists every setting.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"prunekit {__version__}")
    parser.add_argument("command", metavar="COMMAND", help="one of those below")
    return parser


def _refuse_unknown(parser: argparse.ArgumentParser, command: str) -> None:
    if command not in STAGES | TOOLS:
        parser.exit(
            2, f"prunekit: unknown command {command!r}; {one_of(command, STAGES | TOOLS)}\n"
        )


def _launch(stage: str, argv: Sequence[str]) -> None:
    """Run a command through Hydra, and print one line for every error that can be mended."""
    import hydra

    from prunekit.cli import jobs, sweep
    from prunekit.config import config_dir, explain, warn_about_shadowed

    separators = "," if {"-m", "--multirun"} & {*argv} else ""
    argv = [_quote(argument, separators) for argument in argv]
    warn_about_shadowed(argv)
    with_trace = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises instead of printing and exiting

    def message_of(error: Exception) -> str | None:
        return None if with_trace else explain(error, stage, argv)

    failures: dict[str, str] = {}
    statuses: dict[int, JobStatus] = {}
    sys.argv = [f"prunekit {stage}", *sorted(argv, key=_is_override)]
    start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=stage)
    try:
        start(jobs.task(stage, message_of, failures))()
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        _fail(message)
    finally:
        statuses = sweep.close()
        if not with_trace:
            os.environ.pop("HYDRA_FULL_ERROR", None)
    for message in failures.values():
        _fail(message)
    if statuses:
        sweep.conclude(statuses)


def _quote(argument: str, separators: str) -> str:
    """Quote a value that contains =, as the paths of sweeps do, because Hydra requires it.

    Values with characters of Hydra's grammar, or with separators of a sweep, stay as they are
    unless they are existing paths.
    """
    key, _, value = argument.partition("=")
    if not _is_override(argument) or "=" not in value or {*value} & {*"'\"\\"}:
        return argument
    plain = not {*value} & {*"()[]{}", *separators}
    return f'{key}="{value}"' if plain or os.path.exists(value) else argument


def _is_override(argument: str) -> bool:
    """Return True for an override; Hydra 1.3 does not accept flags between overrides."""
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _fail(message: str, code: int = 1) -> None:
    from prunekit.console import complain

    complain(f"prunekit: {message}")
    sys.exit(code)
