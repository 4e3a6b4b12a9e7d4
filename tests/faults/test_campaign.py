"""The fault campaign: what it counts as readable, lost and wrong, and that it is complete."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from prunekit.runs.files import write_csv
from scripts.faults.campaign import (
    Fault,
    Line,
    carry_out,
    interleaved,
    read,
    sample,
    shuffled,
)
from scripts.faults.children import ROOT, Ended
from scripts.faults.kinds import KINDS, all_faults
from scripts.faults.kinds.names import meant_name
from scripts.faults.messages import find_fault
from scripts.faults.results import runs_with_seed
from scripts.faults.small import SmallRuns
from scripts.faults.table import BEGIN, END, as_markdown, write_into
from scripts.faults.trial import CANARY, OUTSIDE, Finding, Outcome, Trial

FINE = Ended(1, 1.0, "", "prunekit: seed=-1 must be at least 0\n")


class TestList:
    def test_there_are_enough_of_every_kind_and_no_two_alike(self):
        counts = Counter(fault.kind for fault in all_faults())
        assert all(counts[kind.name] >= kind.least for kind in KINDS)
        assert len(all_faults()) >= 600
        assert len({fault.key for fault in all_faults()}) == len(all_faults())

    def test_a_name_like_a_formula_is_found_again(self, tmp_path):
        line = Line("overrides", "+new=1", Outcome.REFUSED, "=1 has no name; write KEY=VALUE")
        write_csv(tmp_path / "found.csv", [line.to_dict()])
        assert read(tmp_path / "found.csv") == [line]

    def test_a_share_has_all_kinds_and_they_come_in_turns(self):
        some = interleaved(sample(all_faults(), 0.1))
        assert {fault.kind for fault in some} == {kind.name for kind in KINDS}
        assert 60 <= len(some) < 100
        assert len({fault.kind for fault in some[: len(KINDS) + 10]}) >= 3

    def test_a_seed_puts_others_first(self):
        first, again, other = (shuffled(all_faults(), seed) for seed in (0, 0, 1))
        assert first == again != other
        assert {*first} == {*other} == {*all_faults()}


class TestMessages:
    def test_one_line_of_prunekit_with_a_way_out(self):
        assert find_fault(FINE, ["seed"]) == ""
        assert find_fault(Ended(0, 1.0, "", "a warning\n")) == ""

    @pytest.mark.parametrize(
        ("ended", "fault"),
        [
            (replace(FINE, code=99), "exit status 99"),
            (replace(FINE, code=-9), "exit status -9"),
            (replace(FINE, err="Traceback (most recent call last):\nx"), "a traceback"),
            (replace(FINE, err="prunekit: <object at 0x7f00aabbcc>; x"), "an address"),
            (replace(FINE, err="prunekit: size mismatch for a; x"), "a word of torch"),
            (replace(FINE, err="prunekit: cannot identify image; x"), "a word of PIL"),
            (replace(FINE, err="prunekit: set HYDRA_FULL_ERROR=1; x"), "a word of Hydra"),
            (replace(FINE, err="prunekit: KeyError('a'); x"), "the name of an error"),
            (replace(FINE, err="something else; x"), "no line of prunekit"),
            (replace(FINE, err="prunekit: a; x\nprunekit: b; x"), "several lines"),
            (replace(FINE, err="prunekit: it is broken"), "no way out"),
            (replace(FINE, err=f"prunekit: {'x' * 800}; y"), "813 characters"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_what_is_bad(self, ended, fault):
        assert find_fault(ended) == fault

    def test_a_line_that_names_nothing(self):
        assert find_fault(FINE, ["model.pt"]) == "does not name 'model.pt'"


class TestVerdict:
    DONE = Ended(0, 1.0, "", "outputs/a/model.pt is damaged\n")

    @pytest.fixture
    def trial(self, tmp_path):
        place = tmp_path / "place"
        for name in ("outputs/a/prune/model.pt", "outputs/a/last.pt", f"{OUTSIDE}/mine.txt"):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(name)
        trial = Trial(place, None, SmallRuns(tmp_path / "small"))
        trial.protect()
        return trial

    def outcome(self, trial, ended, *more, **options):
        return trial.judge(ended, *more, **options).outcome

    def test_by_the_result(self, trial):
        assert self.outcome(trial, FINE) is Outcome.REFUSED
        assert self.outcome(trial, FINE, refusal=False) is Outcome.BAD_MESSAGE
        assert self.outcome(trial, self.DONE, same=lambda: True) is Outcome.EXACT
        other = {"same": lambda: False}
        assert self.outcome(trial, self.DONE, ["model.pt"], **other) is Outcome.TOLD
        assert self.outcome(trial, self.DONE, ["plan.json"], **other) is Outcome.SILENTLY_WRONG

    def test_code_of_a_file(self, trial):
        (trial.place / CANARY).touch()
        assert self.outcome(trial, FINE) is Outcome.CODE_RUN

    def test_results_may_move_but_not_go(self, trial):
        model = trial.place / "outputs/a/prune/model.pt"
        model.rename(model.with_name("model.pt.damaged"))
        assert self.outcome(trial, FINE) is Outcome.REFUSED
        model.with_name("model.pt.damaged").unlink()
        assert self.outcome(trial, FINE) is Outcome.LOST

    def test_checkpoints_go_with_the_end_of_a_run(self, trial):
        (trial.place / "outputs/a/last.pt").unlink()
        assert self.outcome(trial, FINE) is Outcome.LOST
        assert self.outcome(trial, self.DONE) is Outcome.EXACT

    def test_files_outside_stay_as_they_are(self, trial):
        (trial.place / OUTSIDE / "mine.txt").write_text("another")
        assert self.outcome(trial, self.DONE) is Outcome.LOST


class TestCourse:
    """With acts that start no process."""

    @pytest.fixture(autouse=True)
    def no_runs(self, monkeypatch):
        class Nobody:
            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        monkeypatch.setattr("scripts.faults.campaign.Children", Nobody)
        monkeypatch.setattr(SmallRuns, "make", lambda self, children: None)

    def test_what_was_done_is_not_done_again(self, tmp_path):
        done = []

        def act(name: str):
            def noted(trial: Trial) -> Finding:
                assert list(trial.place.iterdir()) == []
                (trial.place / "left").touch()
                done.append(name)
                if done.count(name) == 1 and name == "b":
                    raise KeyboardInterrupt
                return Finding(Outcome.REFUSED, f"line of {name}, with a comma")

            return noted

        faults = [Fault("kill", name, act(name)) for name in ("a", "b", "c")]
        out = tmp_path / "faults.csv"
        with pytest.raises(KeyboardInterrupt):
            carry_out(faults, out, tmp_path)
        assert [line.name for line in read(out)] == ["a"]
        lines = carry_out(faults, out, tmp_path)
        assert done == ["a", "b", "b", "c"]
        assert lines == read(out) and [line.name for line in lines] == ["a", "b", "c"]
        assert carry_out(faults, out, tmp_path, minutes=0.0) == lines

    def test_what_ended_badly_is_done_again(self, tmp_path):
        findings = [Finding(Outcome.LOST), Finding(Outcome.EXACT)]
        faults = [Fault("kill", "x", lambda trial: findings.pop(0))]
        out = tmp_path / "faults.csv"
        outcomes = [carry_out(faults, out, tmp_path)[0].outcome for _ in range(3)]
        assert outcomes == [Outcome.LOST, Outcome.EXACT, Outcome.EXACT]

    def test_other_kinds_keep_their_lines(self, tmp_path):
        faults = [
            Fault(kind, "x", lambda trial: Finding(Outcome.EXACT)) for kind in ("kill", "names")
        ]
        out = tmp_path / "faults.csv"
        for chosen in (faults[1:], faults[:1]):
            assert len(carry_out(chosen, out, tmp_path, known=faults)) == 1
        assert [line.kind for line in read(out)] == ["kill", "names"]

    def test_no_time_is_no_faults(self, tmp_path):
        assert carry_out(all_faults()[:3], tmp_path / "faults.csv", tmp_path, minutes=0.0) == []


def test_jobs_of_a_sweep_are_found_by_their_seed(tmp_path):
    """The name of a folder may be cut off in front of the seed."""
    for name, seed in (("cut-off-1", 0), ("cut-off-2", 1), ("seed=0", 1)):
        folder = tmp_path / name / "finetune"
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps({"settings": {"seed": seed}}))
    assert [run.name for run in runs_with_seed(tmp_path, 0)] == ["cut-off-1"]
    assert {run.name for run in runs_with_seed(tmp_path, 1)} == {"cut-off-2", "seed=0"}


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("'q'", "q"), ('"a b"', "a b"), ("[red]", "[red]"), ("'", "'"), ("", ""), ("'a", "'a")],
)
def test_a_name_without_the_quotes_of_the_grammar(typed, meant):
    assert meant_name(typed) == meant


def test_the_table_counts(tmp_path):
    lines = [
        Line("kill", "a", Outcome.EXACT, ""),
        Line("kill", "b", Outcome.EXACT, ""),
        Line("places", "c", Outcome.SKIPPED, "needs root"),
        Line("hostile", "d", Outcome.CODE_RUN, ""),
    ]
    table = as_markdown(lines)
    rows = {row.split(" | ")[0].strip("| "): row for row in table.splitlines() if "|" in row}
    assert re.findall(r"\d+", rows["killed, terminated, interrupted"]) == list("22000000")
    assert re.findall(r"\d+", rows["all"]) == list("42000001")
    assert "Skipped here: c (needs root)." in table
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_into(page, table)
    assert page.read_text() == f"before\n{BEGIN}\n{table}\n{END}\nafter\n"


def test_the_page_shows_the_findings():
    """Both are written by the same command."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    shown = page.partition(BEGIN)[2].partition(END)[0].strip()
    lines = read(Path(ROOT, "docs/results/faults.csv"))
    assert shown == (as_markdown(lines).strip() if lines else "(`make campaign` writes it here)")
    assert not [line for line in lines if line.outcome.is_bad]
