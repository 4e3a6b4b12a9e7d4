"""Reports of more runs than a terminal shows: the leading ones, and how to see the others."""

from __future__ import annotations

import re

import pandas as pd
import pytest

from prunekit.reporting import command
from prunekit.reporting.page.document import _DETAILED_OF_MANY, _MANY, Section
from prunekit.reporting.page.run_files import Run
from prunekit.runs.files import write_json
from prunekit.runs.report import Report


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Seventy runs, each more accurate than the one before, in pairs of one setting."""
    monkeypatch.chdir(tmp_path)
    for number in range(70):
        metrics = {"top1": 10.0 + number, "params": 5, "macs": 100 + number}
        settings = {"seed": number % 2, "regularizer": {"name": "l1", "lam": number // 2}}
        report = Report("prune", settings, None, metrics).with_digest()
        folder = tmp_path / "outputs" / f"run{number:02}" / "prune"
        folder.mkdir(parents=True)
        write_json(folder / "report.json", report.to_dict())


def shown(out: str) -> list[str]:
    """Return the runs in the first table, in its order."""
    table = out.split("front (")[0]
    return re.findall(r"^ *(run\d+) ", table, re.MULTILINE)


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("arguments", "count"),
    [((), 50), (("--top", "3"), 3), (("--top", "0"), 70), (("--top=99",), 70)],
)
def test_the_most_accurate_are_printed_and_the_way_to_all(arguments, count, capsys):
    command.main(["--no-html", *arguments])
    out = capsys.readouterr().out
    names = shown(out)
    assert len(names) == count
    if count < 70:
        assert names == [f"run{69 - index:02}" for index in range(count)], "the best first"
        assert f"the {count} most accurate of 70 runs; --top 0 prints all of them" in out
    else:
        assert names == [f"run{index:02}" for index in range(70)], "in the order of their names"
        assert "--top 0" not in out


@pytest.mark.usefixtures("runs")
def test_files_hold_all_of_them(capsys):
    command.main(["--no-html", "--top", "2", "--out", "table.csv"])
    assert len(pd.read_csv("table.csv")) == 70
    assert capsys.readouterr().out.count("--top 0 prints all") == 2, "runs and means"


@pytest.mark.parametrize("count", ["-1", "x", "1.5"])
def test_what_is_no_number_of_runs(count, capsys):
    with pytest.raises(SystemExit):
        command.main([f"--top={count}"])
    assert "is no number of runs; give 0 for all of them" in capsys.readouterr().err


@pytest.mark.parametrize("count", [_MANY - 1, _MANY])
def test_a_page_of_many_draws_few(count, tmp_path):
    runs = [Run(f"run{i}", {"run": f"run{i}", "top1": float(i)}, {}) for i in range(count)]
    part = pd.DataFrame([dict(run.record) for run in runs])
    part["macs"], part["setting"], part["method"] = 1.0, part["run"], ""
    section = Section.of("Runs", part, runs)
    assert len(section.details) == (_DETAILED_OF_MANY if count >= _MANY else 12)
