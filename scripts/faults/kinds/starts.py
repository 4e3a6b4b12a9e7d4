"""Commands that start at the same time in the same place."""

from __future__ import annotations

import random
from functools import partial

from scripts.faults.campaign import Fault
from scripts.faults.children import Command, Ended
from scripts.faults.small import BEGUN, SMALL, TRAINED
from scripts.faults.trial import Finding, Outcome, Trial

_RUN = (*TRAINED, "name=trained")
_SWEEP = (TRAINED[0], "-m", *TRAINED[1:], "name=swept", "seed=0,1")
_PRUNE = ("prune", *SMALL, "source=outputs/trained/sparsify", "name=other")
_OTHERS = {
    "itself": _RUN,
    "report": ("report",),
    "clean": ("clean",),
    "another seed": (*_RUN, "seed=1"),
    "overwrite": (*_RUN, "seed=1", "overwrite=true"),
    "prune from it": _PRUNE,
    "finetune in it": ("finetune", *SMALL, "name=trained"),
    "inspect": ("inspect", *SMALL),
}


def faults() -> list[Fault]:
    """Return pairs and crowds of commands, a little apart by a seed."""
    draw = random.Random(0)
    pairs = [
        Fault("starts", f"run and {name}, {delay} s later", partial(_pair, name, delay))
        for name in _OTHERS
        for delay in (0.0, round(draw.uniform(0.2, 0.9), 2), round(draw.uniform(0.9, 1.8), 2))
    ]
    crowds = [Fault("starts", f"{n} runs at once", partial(_crowd, _RUN, n)) for n in (3, 4)]
    resumed = [Fault("starts", f"{n} resume the same run", partial(_resumed, n)) for n in (2, 3)]
    sweeps = [Fault("starts", f"{n} sweeps at once", partial(_sweeps, n)) for n in (2, 3)]
    return [*pairs, *crowds, *resumed, *sweeps]


def _pair(name: str, delay: float, trial: Trial) -> Finding:
    """Both end or say why not, and the run then has the right numbers."""
    other = _OTHERS[name]
    ended = trial.run_all([Command(_RUN), Command(other, delay=delay)])
    for one in ended:
        finding = trial.judge(one)
        if finding.outcome.is_bad:
            return finding
    if "seed=1" in other:
        return _replaced(trial, ended)
    return _settled(trial, ended, _RUN, "trained")


def _replaced(trial: Trial, ended: list[Ended]) -> Finding:
    """The run is that of one of the two commands, and none of both was damaged."""
    again = trial.run(*_RUN)
    if again.code == 0:
        return _verdict(trial, ended, trial.judge(again, same=lambda: trial.equals("trained")))
    other = trial.run(*_RUN, "seed=1")
    return _verdict(trial, ended, trial.judge(other, refusal=False))


def _crowd(line: tuple[str, ...], count: int, trial: Trial) -> Finding:
    return _settled(trial, trial.run_all([Command(line)] * count), line, "trained")


def _resumed(count: int, trial: Trial) -> Finding:
    trial.copy("begun")
    ended = trial.run_all([Command(BEGUN)] * count)
    return _settled(trial, ended, BEGUN, "begun")


def _sweeps(count: int, trial: Trial) -> Finding:
    """Jobs wait for each other, so that all sweeps end."""
    ended = trial.run_all([Command(_SWEEP)] * count)
    bad = [finding for one in ended if (finding := trial.judge(one, refusal=False)).outcome.is_bad]
    if bad:
        return bad[0]
    return trial.judge(ended[0], same=lambda: trial.equals_sweep("trained"))


def _settled(trial: Trial, ended: list[Ended], line: tuple[str, ...], name: str) -> Finding:
    """Judge all of them, and the same command once more, alone."""
    for one in ended:
        finding = trial.judge(one)
        if finding.outcome.is_bad:
            return finding
    trial.protect()
    again = trial.run(*line)
    finding = trial.judge(again, same=lambda: trial.equals(name), refusal=False)
    return _verdict(trial, ended, finding)


def _verdict(trial: Trial, ended: list[Ended], finding: Finding) -> Finding:
    """Return the refusal of one of them where the result is right."""
    refused = [one for one in ended if one.code != 0]
    if finding.outcome is not Outcome.EXACT or not refused:
        return finding
    return trial.judge(refused[0])
