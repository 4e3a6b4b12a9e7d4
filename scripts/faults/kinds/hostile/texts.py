"""Json, yaml and csv of strangers: deep, huge, of other types, or with markup in them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from scripts.faults.campaign import Fault
from scripts.faults.kinds.hostile.use import MEMORY
from scripts.faults.small import BEGUN, SMALL, WHOLE
from scripts.faults.trial import CANARY, Finding, Outcome, Trial

_TAG = "<script>alert(1)</script>"
_JSON: dict[str, bytes] = {
    "deep lists": b"[" * 200_000,
    "deep dicts": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a huge number": b'{"seconds": ' + b"9" * 100_000 + b"}",
    "not a number": b'{"seconds": NaN, "metrics": {"top1": Infinity}}',
    "no utf-8": b'{"a": "\xff\xfe"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "another type of every value": b'{"stage": 5, "settings": [], "metrics": 3, "files": "x"}',
    "20 MB": b'{"a": "' + b"x" * 20_000_000 + b'"}',
}
_KEYS = ("stage", "settings", "metrics", "files", "notes", "environment", "seconds", "command")
_REPORT = {
    **{f"{key} is {value!r}": {key: value} for key in _KEYS for value in (None, [[]])},
    "a path as the name of a file": {"files": {"../../../outside/mine.txt": "0" * 16}},
    "markup in a note": {"notes": [_TAG]},
    "markup in a metric": {"metrics": {"top1": _TAG, _TAG: 1}},
    "markup in the command": {"command": _TAG},
    "a formula as the command": {"command": "=cmd|'/c calc'!A1"},
    "a huge metric": {"metrics": {"top1": 1e308, "macs": 10**400}},
}
_YAML = {
    "python objects": f"seed: !!python/object/apply:os.system ['touch {CANARY}']",
    "python names": "seed: !!python/name:os.system",
    "an alias bomb": "\n".join(
        [f"a0: &a0 [{', '.join(['x'] * 9)}]"]
        + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10)]
    ),
    "an alias of itself": "seed: &a [*a]",
    "deep lists": "seed: " + "[" * 5000 + "]" * 5000,
    "tabs": "seed:\n\t- 1",
    "two documents": "seed: 1\n---\nseed: 2",
    "binary": "\x00\x01\x02",
    "a list": "- 1\n- 2",
    "an interpolation of itself": "seed: ${seed}",
    "an environment variable": "seed: ${oc.env:HOME}",
    "a resolver that is unknown": "seed: ${shell:ls}",
    "defaults that do not exist": "defaults: [nowhere]",
    "defaults that are itself": "defaults: [evil]",
}


def faults() -> list[Fault]:
    """Return texts for reports, settings, progress, plans, curves and experiments."""
    stages = {
        "settings.json of a finished stage": partial(_finished, "prune/settings.json"),
        "plan.json": partial(_finished, "prune/plan.json"),
        "settings.json of an unfinished stage": partial(_unfinished, "settings.json"),
        "seconds": partial(_unfinished, "seconds"),
        ".warnings": partial(_unfinished, ".warnings"),
        "a report that is reported": _reported,
        "a plan to follow": _followed,
    }
    return [
        *(
            Fault("hostile", f"{text} as {name}", partial(act, content))
            for name, act in stages.items()
            for text, content in _JSON.items()
        ),
        *(
            Fault("hostile", f"a report in which {name}", partial(_edited_report, change))
            for name, change in _REPORT.items()
        ),
        *(
            Fault("hostile", f"an experiment of {name}", partial(_experiment, text))
            for name, text in _YAML.items()
        ),
    ]


def _finished(name: str, content: bytes, trial: Trial) -> Finding:
    trial.copy("whole")
    (trial.place / "outputs/whole" / name).write_bytes(content)
    trial.protect()
    ended = trial.run(*WHOLE, memory=MEMORY)
    return trial.judge(ended, [name], lambda: trial.equals("whole"))


def _unfinished(name: str, content: bytes, trial: Trial) -> Finding:
    trial.copy("begun")
    (trial.place / "outputs/begun/sparsify" / name).write_bytes(content)
    trial.protect()
    ended = trial.run(*BEGUN, memory=MEMORY)
    return trial.judge(ended, [name, "sparsify"], lambda: trial.equals("trained", "begun"))


def _reported(content: bytes, trial: Trial) -> Finding:
    """Other runs are shown, and it is said which is left out."""
    trial.copy("whole", "trained")
    (trial.place / "outputs/trained/finetune/report.json").write_bytes(content)
    trial.protect()
    ended = trial.run("report", memory=MEMORY)
    return trial.judge(ended, ["trained/finetune"], same=lambda: False)


def _followed(content: bytes, trial: Trial) -> Finding:
    trial.copy("whole")
    (trial.place / "plan.json").write_bytes(content)
    line = ("prune", *SMALL, "source=outputs/whole/sparsify", "selection=like_run", "name=a")
    ended = trial.run(*line, "selection.path=plan.json", memory=MEMORY)
    return trial.judge(ended, ["plan.json"], same=lambda: False)


def _edited_report(change: dict[str, object], trial: Trial) -> Finding:
    """No markup of it reaches the page, and no formula the table."""
    trial.copy("whole", "trained")
    file = trial.place / "outputs/trained/finetune/report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    trial.protect()
    ended = trial.run("report", "--out", "table.csv", memory=MEMORY)
    finding = trial.judge(ended, ["trained/finetune"], same=lambda: False)
    if ended.code == 0 and not finding.outcome.is_bad:
        return _spread(trial.place) or finding
    return finding


def _spread(place: Path) -> Finding | None:
    """Return a finding where markup or a formula can be run by the program that shows the file."""
    if _TAG in (place / "outputs/report.html").read_text():
        return Finding(Outcome.CODE_RUN, "the page holds markup of a report")
    cells = (place / "table.csv").read_text().replace('"', "").replace("\n", ",").split(",")
    if any(cell.startswith("=") for cell in cells):
        return Finding(Outcome.CODE_RUN, "the table holds a formula of a report")
    return None


def _experiment(text: str, trial: Trial) -> Finding:
    folder = trial.place / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    line = ("pretrain", *SMALL, "name=a", "experiment=evil", "--config-dir", "conf")
    ended = trial.run(*line, memory=MEMORY)
    return trial.judge(ended, ["evil", "seed", "nowhere"], same=lambda: False)
