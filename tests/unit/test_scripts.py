"""The tables that are data: which jobs stand behind them, and some from start to end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from reproduced import EVERY, composed, composing, finished, jobs_of, lines, rows_of, table, written

from prunekit.build import build
from prunekit.config import config_dir
from prunekit.errors import ArtifactError
from prunekit.stages.pipeline import build_stages, stage_names
from scripts.reproduce import __main__ as reproduce
from scripts.reproduce import every, tables
from scripts.reproduce.figures import FIGURES
from scripts.reproduce.measured import SPECIAL
from scripts.reproduce.sheets import write

ROOT = Path(__file__).resolve().parents[2]
SSR = ("ssr_t1", "ssr_f3", "ssr_f56", "ssr_lambda")
ALL = (*SSR, "ns_t1", "slim_resnet20", "hinge_t1", "hinge_resnet20", "slasso_resnet20")
UNRUN = ("ssr_table8", "ssr_figures_text")  # no scale runs anything
ELSEWHERE = {  # other rows than those of these tables run at these scales
    *(("slasso_cifar100", scale) for scale in ("short", "smoke")),
    *(("hinge_table2", scale) for scale in ("short", "smoke")),
    ("hinge_plots", "smoke"),
}


@pytest.fixture(scope="module")
def lists(tmp_path_factory):
    """The jobs of every table at every scale, before anything has run."""
    root = tmp_path_factory.mktemp("runs")
    return {(name, scale): jobs_of(table(name, scale, root)) for name, scale in EVERY}


KEYS = {
    "table": {
        *("base", "published", "only", "count", "rows", "lookup", "let", "lists", "runs", "scales"),
        *("trials", "choose", "sheets", "figures", "file", "reading"),
    },
    "sheet": {
        *("title", "text", "select", "head", "columns", "done", "only_measured", "name", "suffix"),
        *("of", "rank", "pairs", "label", "same", "against", "digits", "networks"),
        "primary",
    },
    "runs": {"name", "overrides", "stages", "after", "stage", "needs"},
    "scales": {"text", "seeds", "where", "overrides", "let", "rows", "trials"},
    "pairs": {"of", "without", "against", "networks"},
    "primary": {"of", "against", "network", "where"},
}


@pytest.mark.parametrize("name", tables.names())
def test_a_table_has_no_key_that_is_not_read(name):
    content = tables.contents(name)
    assert content.keys() <= KEYS["table"] | KEYS["sheet"]
    for kind in ("runs", "scales"):
        assert {key for one in content.get(kind, {}).values() for key in one} <= KEYS[kind]
    for sheet in content.get("sheets", ()):
        assert sheet.keys() <= KEYS["sheet"]
        assert {key for pair in sheet.get("pairs", ()) for key in pair} <= KEYS["pairs"]
        assert {*sheet.get("primary", ())} <= KEYS["primary"]


def test_every_table_has_jobs_at_every_scale(lists):
    assert {key for key, jobs in lists.items() if not jobs and key[0] not in UNRUN} == ELSEWHERE
    assert all({"short", "smoke"} <= {s for n, s in lists if n == name} for name in ALL)


def test_names_are_unique(lists):
    for key, jobs in lists.items():
        assert len({job.name for job in jobs}) == len(jobs), key


def test_what_a_job_comes_after_is_there_and_comes_before(lists):
    for key, jobs in lists.items():
        seen: set[str] = set()
        for job in jobs:
            assert job.waits_for() <= seen, (key, job.name)
            seen.add(job.name)


def test_a_job_starts_from_a_source_unless_it_trains_a_network_from_scratch(lists):
    for (name, _), jobs in lists.items():
        for job in jobs:
            scratch = ("pretrain", "sparsify") if name.startswith("ns_") else ("pretrain",)
            untrained = "/from-scratch" in job.name  # cut before any training
            if job.name.startswith("ns_multipass") and not job.name.endswith("pass1"):
                scratch = ("pretrain",)  # from the pass before
            assert (job.after is None) == (job.stages[0] in scratch or untrained), job.name


def test_tables_that_share_a_job_agree_about_it(lists):
    for scale in ("short", "smoke"):
        jobs = [job for name in SSR for job in lists[name, scale]]
        assert len(set(jobs)) == len({job.name for job in jobs})


def kinds(lists, scale: str):
    """One job of each kind, with its table: the same overrides but for seeds, widths and shares."""
    found = {}
    loose = ("seed=", "selection.widths=", "model.widths=", "selection.ratio=")
    for (name, of), jobs in lists.items():
        for job in jobs if of == scale and name in ALL else ():
            kind = tuple(word for word in job.overrides if not word.startswith(loose))
            found[job.stages, kind] = name, job
    return list(found.values())


@pytest.mark.slow  # CI runs every experiment for itself
@pytest.mark.parametrize("scale", ["smoke", "short"])
def test_every_kind_of_job_composes_and_builds(lists, tmp_path, scale):
    with composing():
        for name, job in kinds(lists, scale):
            for other in job.needs:
                (tmp_path / other).mkdir(parents=True, exist_ok=True)
                (tmp_path / other / "plan.json").write_text('{"groups": {}}')
            settings = composed(job, tmp_path)
            names = stage_names(settings)
            assert names == job.stages, job.name
            build_stages(settings, names)
            shape = (1, 28, 28) if name in SSR else (3, 32, 32)
            assert build(settings["dataset"], "dataset").shape == shape


def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "scripts.reproduce", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def smoke(name: str, cwd: Path, file: str | None = None) -> list[dict[str, str]]:
    """The rows that a table's smallest scale writes, run from start to end."""
    found = script("--table", name, "--scale", "smoke", cwd=cwd)
    assert found.returncode == 0, found.stderr
    return lines(cwd / f"outputs/tables/{file or name}.csv")


def test_published_slimming_cells_are_those_of_the_files(tmp_path):
    rows = table("ns_t1", "paper", tmp_path).rows
    cells = {(r.get("dataset"), r.get("network"), r.get("percent"), r["penalty"]) for r in rows}
    assert ("CIFAR-10", "DenseNet-40", 70, "l1") in cells  # of the paper alone
    assert ("CIFAR-10", "DenseNet-40", 60, "l1") in cells  # of the port alone
    assert sum("liu_error" in row for row in rows) == 23
    published = [*tables.facts("ns_liu2017_table1"), *tables.facts("ns_pytorch_readme")]
    same = {"VGGNet": "VGG-19"}
    assert {(row.get("dataset"), row.get("network"), row.get("percent")) for row in rows[:-1]} == {
        (f["dataset"], same.get(f["model"], f["model"]), int(f["pruned_channels_pct"]))
        for f in published
    }
    (vgg,) = rows_of(
        table("ns_t1", "paper", tmp_path),
        **{"dataset": "CIFAR-10", "network": "VGG-19", "percent": 70, "penalty": "l1"},
    )
    columns = ("liu_error", "liu_params", "liu_flops", "port_pruned_top1", "port_top1")
    assert [vgg[key] for key in columns] == ["6.2", "2.30M", "3.91e8", "32.54", "93.78"]
    assert vgg["port_params"] == "2.25M"


def test_slimming_rows_are_means_over_seeds_beside_the_published_ones(tmp_path, monkeypatch):
    monkeypatch.setitem(SPECIAL, "flops of slimming", lambda one: 3.91e8)
    one = table("ns_t1", "paper", tmp_path, seeds=(0, 1))
    cell = {"dataset": "CIFAR-10", "network": "VGG-19", "percent": 70}
    for seed, error in ((0, 6.0), (1, 7.0)):
        for penalty, right in (("l1", [True, True, False]), ("TL1", [True, True, True])):
            (row,) = rows_of(one, **cell, penalty=penalty)
            run = one.jobs(row, seed)[-1].name
            finished(tmp_path, run, "prune", top1=40.0, params=1000)
            values = {"top1": 100 - error, "params": 1000}
            finished(tmp_path, run, "finetune", "measure", right=right, **values)
    rows = written(one)
    keys = ("data", "network", "pruned %", "penalty")
    found = {tuple(row[key] for key in keys): row for row in rows}
    l1 = found["CIFAR-10", "VGG-19", "70", "l1"]
    assert (l1["Liu error"], l1["port error, pruned"], l1["port error"]) == ("6.2", "67.46", "6.22")
    assert (l1["Liu error"], l1["seeds"], l1["error"]) == ("6.2", "2", "6.50 ± 0.71")
    assert (l1["error, pruned"], l1["FLOPs"], l1["needs"]) == ("60.00 ± 0.00", "3.91e+08 ± 0", "")
    other = found["CIFAR-10", "VGG-19", "70", "MCP"]
    assert (other["Liu error"], other["error"]) == ("-", "not run") and "a GPU" in other["needs"]
    assert rows[-1]["penalty"].startswith("Bayesian") and rows[-1]["needs"] == "not identified"
    verdicts = (tmp_path / "out/ns_t1_verdicts.csv").read_text().splitlines()
    assert len(verdicts) == 2 and "TL1" in verdicts[1] and "-33.333" in verdicts[1]
    text = (tmp_path / "out/ns_t1.md").read_text()
    assert "not at hand" in text and text.count("not identified") == 1


def test_published_hinge_cells_are_those_of_the_files(tmp_path):
    one = table("hinge_t1", "paper", tmp_path)
    assert len(one.rows) == 16 and {row["method"] for row in one.rows} >= {"Hinge"}
    half = next(row for row in one.rows if row["model"] == "ResNet56")
    assert (half["top1_error"], half["baseline_error"]) == ("6.31", "7.05")
    assert (half["flops_remaining_pct"], half["params_remaining_pct"]) == ("50.0", "48.73")
    jobs = [one.jobs(row, 0)[-1] for row in one.rows]
    configs = [job.overrides[0].removeprefix("experiment=") for job in jobs]
    assert all((config_dir() / f"experiment/{name}.yaml").is_file() for name in configs)


def test_every_hinge_row_starts_from_the_dense_network_of_its_seed(lists):
    jobs = {job.name: job for job in lists["hinge_t1", "paper"]}
    rows = [job for job in jobs.values() if job.after]
    assert (
        len(rows) == 3 * 16 and len(jobs) - len(rows) == 3 * 12
    )  # WRN has four rows, ResNet56 two
    assert all(jobs[job.after].overrides[-1] == job.overrides[-1] for job in rows)  # the seed
    wide = [job.overrides for job in rows if "wrn16_10/seed0" in job.name]
    kept = ["selection.keep=0.7556" in given for given in wide]
    fixed = ["solver.annealing=null" in given for given in wide]
    assert sorted(zip(kept, fixed, strict=True)) == [
        *((False, False), (False, True)),
        *((True, False), (True, True)),
    ]


def test_hinge_rows_are_shares_of_the_dense_network(tmp_path):
    one = table("hinge_t1", "paper", tmp_path, seeds=(0, 1))
    (row,) = rows_of(one, model="VGG16")
    for seed, error in ((0, 6.0), (1, 7.0)):
        dense, run = (job.name for job in one.jobs(row, seed))
        finished(tmp_path, dense, "pretrain", top1=94.0, params=1000, macs=1)
        finished(tmp_path, run, "prune", top1=50.0, params=1000, macs=1)
        finished(tmp_path, run, "finetune", top1=100 - error, params=200, macs=1)
        (tmp_path / run / "sparsify").mkdir()
        (tmp_path / run / "sparsify/metrics.csv").write_text("epoch\n1\n2\n")
    rows = written(one)
    assert len(rows) == 16
    found = next(row for row in rows if row["network"] == "VGG16")
    assert (found["paper error"], found["paper params %"]) == ("6.41", "19.95")
    assert (found["seeds"], found["error"], found["needs"]) == ("2", "6.50 ± 0.71", "")
    assert (found["error, dense"], found["error, pruned"]) == ("6.00 ± 0.00", "50.00 ± 0.00")
    assert (found["params %"], found["MACs %"]) == ("20.00 ± 0.00", "100.00 ± 0.00")
    assert found["epochs of search"] == "2.00 ± 0.00"
    other = next(row for row in rows if row["network"] == "WRN")
    assert (other["seeds"], other["error"]) == ("0", "not run") and "a GPU" in other["needs"]
    text = (tmp_path / "out/hinge_t1.md").read_text()
    assert "Table 3" in text and "The published schedule." in text


def test_a_figure_has_points_of_finished_runs_alone(tmp_path, monkeypatch):
    monkeypatch.setitem(FIGURES, "tradeoff", lambda table, out, settings: None)
    one = table("ssr_f3", "short", tmp_path)
    row = next(row for row in one.rows if row["method"] == "from scratch")
    dense, run = (job.name for job in one.jobs(row, 0))
    finished(tmp_path, dense, "pretrain", top1=99.0, macs_bias=1000, params=100)
    finished(tmp_path, run, "measure", top1=98.764, macs_bias=300, params=10)
    (point,) = written(one)
    assert point == {
        **{"method": "from scratch", "widths": "1-12-40", "error": "1.24", "flops": "300"},
        **{"params": "10", "flops_ratio": "3.33", "params_ratio": "10.0"},
    }
    assert not list((tmp_path / "out").glob("*.md"))


@pytest.mark.slow
def test_hinge_from_start_to_end(tmp_path):
    rows = smoke("hinge_t1", tmp_path)
    done = {row["network"]: row for row in rows if row["seeds"] == "1"}
    assert set(done) == {"ResNet20", "ResNeXt20"}
    assert abs(float(done["ResNet20"]["MACs %"]) - 45.16) < 1


def test_a_slimming_table_of_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="nothing was measured for this table"):
        write(table("ns_t1", "paper", tmp_path), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def called(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["x", *arguments])
    return reproduce.main()


def test_a_scale_that_a_table_lacks_is_refused(monkeypatch, capsys):
    assert called(monkeypatch, "--table", "ssr_t1", "--scale", "papr") == 1
    assert "--scale papr: ssr_t1 has none; accepted: short, smoke" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("every", "--table every is called experiments now"),
        ("ssr_t2", "--table ssr_t2: there is none; did you mean ssr_t1"),
    ],
)
def test_a_table_that_there_is_not(monkeypatch, capsys, name, words):
    with pytest.raises(SystemExit, match="2"):
        called(monkeypatch, "--table", name)
    assert words in capsys.readouterr().err


def test_all_are_all_tables_that_have_the_scale(monkeypatch, tmp_path, capsys):
    names = []
    monkeypatch.setattr(reproduce, "reproduce", lambda name, options: names.append(name) or 0)
    assert called(monkeypatch, "--table", "all", "--scale", "paper", "--root", str(tmp_path)) == 0
    assert set(names) == {name for name, scale in EVERY if scale == "paper"}
    assert "ssr_t1 has no scale paper" in capsys.readouterr().out
    names.clear()
    assert called(monkeypatch, "--table", "all", "--scale", "smoke") == 0
    assert set(names) == {every.NAME, *tables.names()}


@pytest.mark.slow
def test_a_table_without_runs_says_so(tmp_path):
    found = script("--table", "ssr_t1", "--scale", "smoke", "--only-collect", cwd=tmp_path)
    assert found.returncode == 1 and "nothing was measured" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_table_from_start_to_end(tmp_path):
    line = ("--table", "ssr_f56", "--scale", "smoke")
    rows = smoke("ssr_f56", tmp_path, "ssr_f5_f6")
    assert list(dict.fromkeys(row["run"] for row in rows)) == [
        *("AULM l2,1", "ADMM l2,1", "SGD l2,1", "AULM l2,0")
    ]
    assert (tmp_path / "outputs/tables/ssr_f5.png").stat().st_size > 1000
    reports = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("report.json")}
    assert len(reports) == 5 and script(*line, cwd=tmp_path).returncode == 0
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("report.json")} == reports


@pytest.mark.slow
def test_slimming_from_start_to_end(tmp_path):
    rows = smoke("ns_t1", tmp_path)
    done = [(row["pruned %"], row["penalty"]) for row in rows if row["seeds"] == "1"]
    assert done == [("0", "none"), ("0", "l1"), ("0", "TL1"), ("40", "l1"), ("40", "TL1")]
    assert all(row["error"] != "not run" for row in rows if row["seeds"] == "1")
    assert (tmp_path / "outputs/tables/ns_t1_verdicts.csv").is_file()


def test_strengths_are_chosen_on_validation_and_used_for_every_seed(tmp_path):
    part = {"penalty": ["no penalty", "l1", "TL1"]}
    before = table("slim_resnet20", "short", tmp_path, (0, 1), where=part)
    values = {("l1", 0.006): 70.0, ("l1", 0.012): 80.0, ("l1", 0.02): 80.0, ("TL1", 0.02): 60.0}
    for row in before.trials:
        if top1 := values.get((row["penalty"], row["lam"])):  # the test set would choose otherwise
            run = before.jobs(row, 0)[-1].name
            finished(tmp_path, run, "finetune", val_top1=top1, top1=100 - top1)
    one = table("slim_resnet20", "short", tmp_path, (0, 1), where=part)
    assert one.choices == {("l1",): 0.012, ("TL1",): 0.02}
    found = {job.name: job for job in one.jobs_of(one.rows)}
    assert {name.removeprefix("slim_resnet20/") for name in found} == {
        *("given", "seed0/no-penalty", "seed1/no-penalty", "seed0/l1", "seed1/l1"),
        *("seed0/TL1", "seed1/TL1", "strong/l1"),  # TL1 is at the strongest already
    }
    assert "regularizer.lam=0.012" in found["slim_resnet20/seed1/l1"].overrides
    assert "regularizer.lam=0.0" in found["slim_resnet20/seed1/no-penalty"].overrides
    assert "regularizer.lam=0.02" in found["slim_resnet20/strong/l1"].overrides
    assert all(job.after == "slim_resnet20/given" for job in [*found.values()][1:])
