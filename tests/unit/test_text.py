"""Names and values with characters that some reader would interpret: they are shown as they are."""

from __future__ import annotations

import csv
import html
import io
import re
import sys

import pandas as pd
import pytest
from markupsafe import Markup

from prunekit import console
from prunekit.reporting.figures import as_label, figure, legend_above
from prunekit.reporting.formats import escape_latex, latex, markdown, write_table
from prunekit.reporting.page import document
from prunekit.runs.files import write_csv
from prunekit.selection import parse_curves
from prunekit.text import guard_formula, unguarded, visible

ESCAPE = "\x1b[31mred\x1b[2K\r"
STRANGE = (
    "pipeline=[pretrain,sparsify]",
    "[/b]",
    "[red]x[/red]",
    ESCAPE,
    "a\nb\tc",
    "<script>alert(1)</script>",
    "\u202etxt.exe",
    "$x$ 100 % _y_ #1 ~ ^ \\",
    "\udcff",  # a name on the disk that is no text
)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("plain [text] é 日本 ±", "plain [text] é 日本 ±"),
        (ESCAPE, r"\x1b[31mred\x1b[2K\r"),
        ("a\nb\tc\x00", r"a\nb\tc\x00"),
        ("\x9b1m", r"\x9b1m"),
        ("\u202etxt", r"\u202etxt"),
        ("\udcff", r"\udcff"),
        ("a\N{NO-BREAK SPACE}b", "a\N{NO-BREAK SPACE}b"),
    ],
)
def test_control_characters_are_escapes(text, seen):
    assert visible(text) == seen


@pytest.fixture(params=["pipe", "terminal"])
def place(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    if request.param == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm")


def without_colours(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_tables_show_cells_headings_and_titles_as_they_are(place, capsys):
    console.table(STRANGE[0], STRANGE, [STRANGE])
    out = without_colours(capsys.readouterr().out)
    assert out.count(STRANGE[0]) == 3
    assert all(out.count(visible(text)) >= 2 for text in STRANGE) and "\x1b" not in out


def test_the_table_of_a_running_sweep_shows_cells_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with console.live_table() as draw:
        draw("[bold]", ("name",), [(text,) for text in STRANGE])
    out = without_colours(capsys.readouterr().out)
    assert "[bold]" in out and all(visible(text) in out for text in STRANGE)


def test_lines_show_control_characters(capsys):
    console.say(ESCAPE)
    console.complain(ESCAPE)
    caught = capsys.readouterr()
    assert caught.out == caught.err == visible(ESCAPE) + "\n"


@pytest.mark.parametrize("place", ["terminal"], indirect=True)
def test_a_bar_shows_its_label(place, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(console, "_BAR_AFTER", 0.0)
    assert list(console.track(iter(range(3)), "[/b] train[1]", 3)) == [0, 1, 2]
    assert "[/b] train[1]" in without_colours(capsys.readouterr().err)


def test_markdown_shows_cells_as_they_are():
    """Every character that markdown or html would interpret has a backslash in front."""
    for text in STRANGE:
        line = markdown(pd.DataFrame({"run": [text]})).splitlines()[2]
        cell = line.removeprefix("| ").removesuffix(" |")
        assert re.sub(r"\\([^a-zA-Z0-9\s])", r"\1", cell) == visible(text)
        assert not re.search(r"(?<!\\)[`*\[\]<>&|~$]", cell)
    assert "| slim_l1 a=0.5 |" in markdown(pd.DataFrame({"run": ["slim_l1 a=0.5"]}))
    assert r"| \_x\_ |" in markdown(pd.DataFrame({"run": ["_x_"]}))


def test_latex_shows_cells_as_they_are():
    assert escape_latex("[1] *a ---b") == "{[}1] {*}a -{}-{}-b"
    lines = latex(pd.DataFrame({"run": ["[pretrain]", "*", ESCAPE]})).splitlines()
    start = lines.index(r"\midrule") + 1  # a line must not begin with [ or *, behind \\
    assert lines[start : start + 2] == [r"{[}pretrain] \\", r"{*} \\"]
    assert r"\textbackslash{}x1b{[}31mred" in lines[start + 2]


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("+cmd|' /C calc'!A0", "'+cmd|' /C calc'!A0"),
        ("-x", "'-x"),
        ("\tx", "'\tx"),
        ("-1.5", "-1.5"),
        ("+1e-3", "+1e-3"),
        ("-inf", "-inf"),
        ("a=b", "a=b"),
        ("'quoted", "'quoted"),
    ],
)
def test_formulas_are_guarded_and_numbers_are_not(text, cell):
    assert guard_formula(text) == cell and unguarded(cell) == text


def test_csv_files_guard_text_and_leave_numbers(tmp_path):
    table = pd.DataFrame({"run": ["=1+1", ESCAPE, "a"], "change": [-1.5, 2.0, float("nan")]})
    write_table(table, tmp_path / "t.csv")
    rows = list(csv.reader(io.StringIO((tmp_path / "t.csv").read_text())))
    assert rows[1:] == [["'=1+1", "-1.5"], [visible(ESCAPE), "2.0"], ["a", ""]]
    assert table["run"].iloc[0] == "=1+1"


def test_names_of_layers_come_back_from_csv_files(tmp_path):
    lines = [
        {"group": "=stem", "removed": removed, "units": 4, "val_top1": 90.0 - removed}
        for removed in (0, 2)
    ]
    write_csv(tmp_path / "s.csv", lines)
    text = (tmp_path / "s.csv").read_text()
    assert "'=stem" in text and "-" not in text
    assert [*parse_curves(csv.DictReader(io.StringIO(text)))] == ["=stem"]


def test_the_page_shows_names_as_they_are():
    template = document._template().environment.from_string("<p>{{ name }}</p>{{ picture }}")
    picture = Markup("<svg/>")
    for text in STRANGE:
        page = template.render(name=text, picture=picture)
        assert html.unescape(page) == f"<p>{visible(text)}</p><svg/>"
        assert "<script>" not in page and page.endswith("<svg/>")


def test_labels_of_figures_are_no_formulas_and_none_is_left_out(tmp_path):
    names = ["$x$", "_hidden", r"a\b", "$", "\x1b[1m"]
    with figure(tmp_path / "f.svg", (4, 3)) as (fig, axes):
        for number, name in enumerate(names):
            axes[0, 0].plot([0, 1], [number, 1], label=as_label(name))
        legend_above(fig, [axes[0, 0]])
        shown = [text.get_text().strip() for text in fig.legends[0].get_texts()]
    assert [text.replace(r"\$", "$") for text in shown] == [visible(name) for name in names]
    assert (tmp_path / "f.svg").stat().st_size
