"""What a terminal of 80 columns shows, and what a pipe gets."""

from __future__ import annotations

import re
import sys

import pytest

from prunekit import console

NAMES = ("network", *(f"a long heading {index}" for index in range(6)))
ROWS = [(label, *(f"{label}-{index}" for index in range(6))) for label in ("dense", "narrow")]


@pytest.fixture
def terminal(monkeypatch):
    """Standard output and error pass for a terminal of so many columns."""

    def pretend(columns: int, kind: str = "xterm") -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", kind)
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    return pretend


def cells() -> set[str]:
    return {cell for row in (NAMES, *ROWS) for cell in row}


def whole(text: str) -> bool:
    return all(cell in text for cell in cells()) and "…" not in text


def plain(text: str) -> str:
    """Without colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_pipe_gets_one_line_per_row(capsys):
    console.table("title", NAMES, ROWS)
    out = capsys.readouterr().out
    assert whole(out)
    assert all(
        cell in line
        for row in ROWS
        for line in out.splitlines()
        if f" {row[0]} " in line
        for cell in row
    )


def test_a_table_too_wide_for_a_terminal_is_turned(terminal, capsys):
    terminal(80)
    console.table("title", NAMES, ROWS)
    out = plain(capsys.readouterr().out)
    assert whole(out) and max(map(len, out.splitlines())) <= 80
    assert next(line for line in out.splitlines() if "heading 3" in line).count("-3") == 2


@pytest.mark.parametrize("kind", ["xterm", "dumb"])
def test_a_table_that_fits_nowhere_is_still_whole(terminal, capsys, kind):
    terminal(20, kind)
    console.table("title", NAMES, ROWS)
    assert whole(capsys.readouterr().out)


def test_a_table_without_rows(capsys):
    console.table("title", NAMES, [])
    assert "network" in capsys.readouterr().out


@pytest.mark.parametrize("slow", [False, True])
def test_a_bar_passes_everything_on_and_appears_only_when_it_takes_long(
    terminal, capsys, monkeypatch, slow
):
    terminal(80)
    monkeypatch.setattr(console, "_BAR_AFTER", 0.0 if slow else 60.0)
    assert list(console.track(iter(range(5)), "train", 5)) == list(range(5))
    assert ("train" in capsys.readouterr().err) == slow


def test_lines_where_there_is_no_terminal(capsys, monkeypatch):
    monkeypatch.setattr(console, "_LINE_EVERY", -1.0)
    assert list(console.track(range(3), "train", 3)) == [0, 1, 2]
    assert capsys.readouterr().err.splitlines() == ["train: 1/3", "train: 2/3"]
