"""Runs that are killed, terminated or interrupted, and started again."""

from __future__ import annotations

from functools import partial

from scripts.faults.campaign import Fault
from scripts.faults.small import STEPS, TRAINED
from scripts.faults.trial import Finding, Outcome, Trial

_LINE = (*TRAINED, "name=trained")
_SWEEP = (*TRAINED[:1], "-m", *TRAINED[1:], "name=swept", "seed=0,1")
_ENDS = {"kill": -9, "terminate": 143, "interrupt": 130}


def faults() -> list[Fault]:
    """Return kills in steps, after files and between a file and its name; signals; sweeps."""
    troubles = [{"save_every_step": True, "kill_in_step": step} for step in range(1, STEPS, 2)]
    troubles += [{"terminate_in_step": step} for step in range(2, STEPS + 1, 2)]
    troubles += [{"save_every_step": True, "interrupt_in_step": step} for step in (3, 9, 16, 23)]
    troubles += [{"kill_after_files": count} for count in (1, 2, 4, 6, 7, 9, 11, 14)]
    troubles += [{"kill_before_name": count} for count in (1, 3, 8, 13, 17, 24)]
    troubles += [{"terminate_after_files": count} for count in (2, 5, 8, 12)]
    single = [Fault("kill", _name(trouble), partial(_killed, trouble)) for trouble in troubles]
    troubles = [{"kill_after_files": count} for count in (3, 10)]
    troubles += [{"terminate_in_step": step} for step in (6, 20)]
    swept = [
        Fault("kill", f"sweep, {_name(trouble)}", partial(_killed_sweep, trouble))
        for trouble in troubles
    ]
    return [*single, *swept]


def _name(trouble: dict[str, object]) -> str:
    (name,) = (name for name in trouble if name != "save_every_step")
    return f"{name.replace('_', ' ')} {trouble[name]}"


def _killed(trouble: dict[str, object], trial: Trial) -> Finding:
    """The same command ends with the same numbers."""
    ended = trial.run(*_LINE, **trouble)
    if (finding := _wrong_end(trouble, ended.code, ended.last_line)) is not None:
        return finding
    trial.protect()
    again = trial.run(*_LINE)
    return trial.judge(again, same=lambda: trial.equals("trained"), refusal=False)


def _killed_sweep(trouble: dict[str, object], trial: Trial) -> Finding:
    """The job with the seed of the small run ends with its numbers."""
    ended = trial.run(*_SWEEP, **trouble)
    if (finding := _wrong_end(trouble, ended.code, ended.last_line)) is not None:
        return finding
    trial.protect()
    again = trial.run(*_SWEEP)
    return trial.judge(again, same=lambda: trial.equals_sweep("trained"), refusal=False)


def _wrong_end(trouble: dict[str, object], code: int, line: str) -> Finding | None:
    """Return a finding where the first command did not end as it was made to."""
    expected = next(end for word, end in _ENDS.items() if any(word in name for name in trouble))
    if code == expected:
        return None
    return Finding(Outcome.BAD_MESSAGE, f"exit status {code} instead of {expected}: {line}")
