"""The command line: `main` picks the command, and Hydra composes its settings."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prunekit import console
from prunekit.cli.arguments import COMPLETION, QUIET, VERSION, hydra_arguments, is_override
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
    if arguments[0] in COMPLETION:
        command, arguments = _completed_command(arguments)
    elif VERSION in arguments:
        command = parser.parse_args([VERSION]).command
    else:
        command = parser.parse_args(arguments[:1]).command
        _refuse_unknown(parser, command)
    rest = [argument for argument in arguments[1:] if argument != QUIET]
    try:
        quiet = console.silence() if QUIET in arguments else contextlib.nullcontext()
        with terminable(), quiet:
            _run(command, rest)
    except PrunekitError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        _fail("interrupted; the same command continues", code=130)
    except Terminated:
        _fail("terminated; the same command continues", code=143)


def _run(command: str, argv: Sequence[str]) -> None:
    """Run a command with its arguments."""
    if command in STAGES:
        _launch(command, argv)
    else:
        importlib.import_module(_MODULES[command]).main(argv)


def _parser() -> argparse.ArgumentParser:
    from prunekit import __version__

    lines = "\n".join(f"  {name:<11} {text}" for name, text in (STAGES | TOOLS).items())
    parser = argparse.ArgumentParser(
        prog="prunekit",
        usage="prunekit COMMAND [GROUP=CHOICE] [KEY=VALUE] [-m] [--quiet] [--help]",
        description="Make convolutional networks smaller and faster.",
        epilog=f"commands:\n{lines}\n\nprunekit COMMAND --help lists every setting.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"prunekit {__version__}")
    parser.add_argument(QUIET, action="store_true", help="print only warnings and errors")
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
    from prunekit.cli.explain import admit_own_arguments, explain
    from prunekit.cli.own_files import check_own_files
    from prunekit.config import config_dir, top_names, warn_about_shadowed

    check_own_files(argv)
    argv = admit_own_arguments(stage, hydra_arguments(argv, top_names()))
    warn_about_shadowed(argv)
    with_trace = "HYDRA_FULL_ERROR" in os.environ
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra re-raises instead of printing and exiting

    def message_of(error: Exception) -> str | None:
        return None if with_trace else explain(error, stage, argv)

    failures: dict[str, str] = {}
    statuses: dict[int, JobStatus] = {}
    program = "prunekit" if {*COMPLETION} & {*argv} else f"prunekit {stage}"
    sys.argv = [program, *sorted(argv, key=is_override)]
    start = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=stage)
    try:
        if {"-m", "--multirun"} & {*argv}:
            sweep.check_before_jobs(stage, argv)
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


def _completed_command(arguments: Sequence[str]) -> tuple[str, list[str]]:
    """Return the command whose arguments a shell completes, and the arguments for Hydra.

    The shell asks without the command, which stands in the line that is typed so far. Without a
    command in it, the candidates are the commands themselves.
    """
    program, *words = os.environ.get("COMP_LINE", "prunekit run ").split(" ")
    if len(words) < 2:
        console.say(" ".join(STAGES | TOOLS))
        sys.exit()
    if words[0] not in STAGES:  # the tools take paths, which the shell knows
        sys.exit()
    os.environ["COMP_LINE"] = " ".join([program, *words[1:]])
    return words[0], [words[0], *arguments]


def _fail(message: str, code: int = 1) -> None:
    console.complain(f"prunekit: {message}")
    sys.exit(code)
