"""The page of runs: what stands in it, how large it is, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch

from prunekit.criteria import save_scores
from prunekit.reporting.collect import collect
from prunekit.reporting.command import main
from prunekit.reporting.page import write_page
from prunekit.reporting.page.document import DETAILED
from prunekit.reporting.page.markup import Markup, element
from prunekit.reporting.page.run_files import ranked
from prunekit.reporting.tables import summary
from prunekit.torch_io import write_torch

DENSE = {"top1": 99.2, "params": 431080, "macs": 2293000}
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
ALONE = frozenset({"meta", "img", "br"})


def report(place, stage, metrics, command=None, notes=(), **settings):
    folder = place / stage
    folder.mkdir(parents=True)
    (folder / "settings.json").write_text("{}")
    known = {"stage": stage, "settings": settings, "source": None, "metrics": metrics}
    more = {"notes": list(notes), "environment": {"cpu": "a & b"}, "command": command}
    (folder / "report.json").write_text(json.dumps(known | more))


def run(place, index=0, name="digits", rich=False):
    """A run with histories; with plan, scores, layers and weights where it is rich."""
    data = {"name": name, "image_size": 28}
    history = "epoch,train_loss,val_top1,rows\n1,2.0,50,20\n2,1.0,60,10\n"
    lam = 0.01 * (1 + index)
    report(place, "pretrain", DENSE, dataset=data, seed=0, model={"name": "lenet5"})
    report(place, "sparsify", DENSE, dataset=data, regularizer={"name": "l21", "lam": lam})
    (place / "sparsify" / "metrics.csv").write_text(history)
    narrow = {"top1": 98 - index / 10, "params": 9000 - index, "macs": 60000 - index}
    report(place, "prune", narrow, criterion={"name": "stored"}, notes=["1 < 2"])
    timed = {**narrow, **{f"dense_{k}": v for k, v in DENSE.items()}, "cpu_ms": 4.0 - index / 99}
    latency = {"batch": 100, "threads": 1}
    line = f"prunekit run regularizer.lam={lam:g} 'name=\"a&b\"'"
    report(place, "measure", timed, line, dataset=data, latency=latency)
    if rich:
        _enrich(place)


def _enrich(place):
    groups = {"conv1": {"kept": 1, "of": 3, "indices": [1], "producers": ["conv1"]}}
    (place / "prune" / "plan.json").write_text(json.dumps({"groups": groups, "notes": []}))
    save_scores(place / "sparsify" / "scores.pt", {"conv1": torch.tensor([0.0, 2.0, 0.1])})
    weights = {"bn.weight": torch.ones(3), "conv1.weight": torch.rand(3, 1, 5, 5)}
    write_torch(place / "pretrain" / "model.pt", {"weights": weights})
    write_torch(place / "prune" / "model.pt", {"weights": {"conv1.weight": torch.rand(1, 1, 5, 5)}})
    (place / "measure" / "layers.csv").write_text(
        "network,layer,kind,in,out,macs,params,cpu_ms\ndense,conv1,Conv2d,1,3,900,30,2.5\n"
        "dense,relu,ReLU,,,,,0.5\nfine-tuned,conv1,Conv2d,1,1,300,10,1.0\n"
    )
    (place / "measure" / "comparison.csv").write_text(
        "network,top1,macs\ndense,99.2,2293000\nfine-tuned,98,60000\n"
    )


class Checked(HTMLParser):
    """Reads a page; every element that is opened is closed, and nothing is fetched."""

    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        for key, value in attrs:
            if key in ("src", "href", "xlink:href"):
                assert value.startswith(("data:", "#")), value
        if tag not in ALONE:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def page(path, file):
    stages = collect([path])
    write_page(stages, summary(stages), file)
    return file.read_text(encoding="utf-8")


def test_text_is_escaped_and_markup_is_not():
    made = element("p", "<b> & co", Markup("<i>x</i>"), class_='say "it"', hidden=None)
    assert made == '<p class="say &quot;it&quot;">&lt;b&gt; &amp; co<i>x</i></p>'
    assert element("br") == "<br>"


def test_page_of_one_run_shows_all_there_is(tmp_path):
    run(tmp_path / "runs" / "one", rich=True)
    text = page(tmp_path / "runs" / "one", tmp_path / "page.html")
    found = Checked(text)
    words = "".join(found.words)
    assert 'name="a&b"' in words and "1 < 2" in words and "cpu a & b" in words
    for caption in (
        *("Channels before and after", "Norms of units", "Sparsity, loss", "Where multiply-adds"),
        "Filters of the first layer",
    ):
        assert caption in words, caption
    assert found.seen.count("svg") == 4 and found.seen.count("img") == 1
    assert "Trade-off" not in words and "t-SNE" not in words and "Left out" not in words
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|url\((?!#)|@import", text)


def test_ids_in_pictures_are_not_shared(tmp_path):
    for index in range(3):
        run(tmp_path / f"r{index}", index, rich=True)
    text = page(tmp_path, tmp_path / "page.html")
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) > 0
    assert {*re.findall(r'(?:href="|url\()#([^")]+)', text)} <= {*ids}


def test_data_sets_are_never_ranked_together(tmp_path, capsys):
    run(tmp_path / "a", 0)
    run(tmp_path / "b", 1)
    run(tmp_path / "c", 2, name="mnist")
    (tmp_path / "d" / "prune").mkdir(parents=True)
    (tmp_path / "d" / "prune" / "settings.json").write_text("{}")
    (tmp_path / "e" / "prune").mkdir(parents=True)
    (tmp_path / "e" / "prune" / "report.json").write_text("{oops")
    main([str(tmp_path), "--out", str(tmp_path / "t.tex"), "--out", str(tmp_path / "t.md")])
    shown = capsys.readouterr()
    assert "digits" in shown.out and "mnist" in shown.out and "no finished stage" in shown.out
    assert "d/prune, unfinished" in shown.err and "e/prune, damaged" in shown.err
    text = (tmp_path / "report.html").read_text()
    words = "".join(Checked(text).words)
    assert "Data set digits" in words and "Data set mnist" in words
    assert "Left out" in words and "e/prune" in words and "oops" not in words
    assert (tmp_path / "t.tex").read_text().count(r"\toprule") == 3
    assert (tmp_path / "t.md").read_text().count("| ---") >= 3


def test_test_sets_of_one_name_and_two_sizes_are_two(tmp_path):
    run(tmp_path / "a")
    run(tmp_path / "b", 1)
    file = tmp_path / "b" / "measure" / "report.json"
    file.write_text(file.read_text().replace('"image_size": 28', '"image_size": 32'))
    text = page(tmp_path, tmp_path / "page.html")
    assert "Data set digits image_size=28" in text and "Data set digits image_size=32" in text


def test_latency_measured_in_two_ways_makes_two_figures(tmp_path):
    for index in range(4):
        run(tmp_path / f"r{index}", index)
    file = tmp_path / "r3" / "measure" / "report.json"
    file.write_text(file.read_text().replace('"threads": 1', '"threads": 2'))
    text = page(tmp_path, tmp_path / "page.html")
    assert "batch 100, threads 1, a &amp; b</figcaption>" in text
    assert "batch 100, threads 2, a &amp; b</figcaption>" in text and "not comparable" in text


@pytest.mark.slow
def test_page_of_a_hundred_runs_is_small_and_says_what_it_leaves_out(tmp_path):
    for index in range(100):
        run(tmp_path / "runs" / f"lam={index}", index, rich=index < 20)
    text = page(tmp_path / "runs", tmp_path / "page.html")
    assert len(text.encode()) < 5e6
    assert text.count("<details") == DETAILED and f"{DETAILED} of 100 runs" in text
    assert text.count('class="command"') == 100


def test_damaged_files_beside_a_report_cost_their_picture_only(tmp_path):
    run(tmp_path / "a", rich=True)
    for file in ("sparsify/metrics.csv", "sparsify/scores.pt", "prune/plan.json", "prune/model.pt"):
        (tmp_path / "a" / file).write_text("\0{")
    (tmp_path / "a" / "measure" / "layers.csv").write_text("a,b\n1,2\n")
    (tmp_path / "a" / "measure" / "comparison.csv").write_text("")
    found = Checked(page(tmp_path, tmp_path / "page.html"))
    assert "98.00" in "".join(found.words) and "svg" not in found.seen


def test_ranked_runs_and_the_front(tmp_path):
    for index, name in enumerate("abc"):
        run(tmp_path / name, index)
    stages = collect([tmp_path])
    table = summary(stages)
    table.loc[2, ["macs"]] = 70000  # less accurate and dearer than the others
    found = ranked(table, stages)
    assert [one.name for one in found] == ["a", "b", "c"]
    assert [one.on_front for one in found] == [True, True, False]
    assert list(found[0].places) == ["pretrain", "sparsify", "prune", "measure"]
    assert found[0].settings["regularizer.lam"] == 0.01 and found[0].filters is None


def test_kept_masks_come_from_the_plan(tmp_path):
    run(tmp_path / "a", rich=True)
    stages = collect([tmp_path])
    one = ranked(summary(stages), stages)[0]
    assert {name: list(mask) for name, mask in one.kept.items()} == {"conv1": [False, True, False]}
    np.testing.assert_allclose(one.scores["conv1"], [0.0, 2.0, 0.1])
    assert isinstance(one.layers, pd.DataFrame) and one.filters[1].shape == (1, 1, 5, 5)


def test_no_page_where_none_is_wanted_and_never_into_a_stage(tmp_path, capsys):
    run(tmp_path / "a")
    main([str(tmp_path / "a"), "--no-html"])
    assert not list(tmp_path.rglob("*.html"))
    main([str(tmp_path / "a" / "prune")])
    main([str(tmp_path), "--html", str(tmp_path / "named.html")])
    found = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.html")}
    assert found == {"a/report.html", "named.html"}


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to show the page")
def test_a_browser_shows_the_page_and_sorts_its_table(tmp_path):
    for index in range(3):
        run(tmp_path / f"r{index}", index, rich=index == 0)
    file = tmp_path / "page.html"
    text = page(tmp_path, file)
    click = "<script>const head = [...document.querySelectorAll('th')]"
    click += ".find((one) => one.textContent === 'top-1 %'); head.click(); head.click();</script>"
    file.write_text(text.replace("</body>", click + "</body>"))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/chrome")
    line = (BROWSER, *flags, "--window-size=1200,2000", f"--screenshot={tmp_path}/shot.png")
    subprocess.run([*line, file.as_uri()], capture_output=True, timeout=120, check=True)
    from PIL import Image

    shades = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
    assert shades.shape == (2000, 1200)
    inked = (shades < 200).mean(axis=1) > 0
    assert inked[:600].any() and inked[600:1200].any()  # the table, and the pictures under it
    dumped = subprocess.run(
        [BROWSER, *flags, "--dump-dom", file.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    order = re.findall(r'<td class="mark">[^<]*</td><td[^>]*>(r\d)</td>', dumped)
    assert order == ["r2", "r1", "r0"]  # from the least accurate on
