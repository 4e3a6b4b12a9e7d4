"""One run directory per job of a sweep, named after what differs."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
from pathlib import Path

import pytest

from prunekit.config import config_dir
from prunekit.reporting.formats import escape_markdown

SWEEP = (
    *("run", "-m", "name=sweep", "dataset.train=96", "dataset.val=32", "dataset.test=40"),
    *("model.widths=[4,6,12]", "solver=proximal", "selection=per_layer"),
)


def reports(root: Path) -> dict[str, dict]:
    """The last report of every job, by the name of its directory."""
    files = sorted(root.glob("sweep/*/measure/report.json"))
    return {file.parents[1].name: json.loads(file.read_text()) for file in files}


@pytest.fixture
def swept(cli, tmp_path):
    found = cli(*SWEEP, "regularizer.lam=0.01,0.5")
    assert found.code == 0, found.err
    return tmp_path / "outputs"


def test_one_directory_per_value_and_a_table_of_all(cli, swept):
    names = list(reports(swept))
    assert len(names) == 2 and [n.count("regularizer.lam=0.01") for n in names] == [1, 0]
    assert all("selection=per_layer" in name for name in names)
    assert not any(key in name for name in names for key in ("name=", "runtime", "root="))
    for name, lam in zip(names, (0.01, 0.5), strict=True):
        settings = json.loads((swept / "sweep" / name / "sparsify" / "settings.json").read_text())
        assert settings["regularizer"]["penalty"]["lam"] == lam
    # nothing but runs and their page, and what Hydra writes down about the last sweep
    assert {file.name for file in (swept / "sweep").iterdir()} == {*names, "report.html"}
    assert {file.name for file in swept.iterdir()} == {"sweep", "multirun.yaml", ".shared"}
    assert list(swept.rglob("*.yaml")) == [swept / "multirun.yaml"]

    before = {file: file.stat().st_mtime_ns for file in swept.glob("sweep/*/*/*")}
    again = cli(*SWEEP, "regularizer.lam=0.01,0.5", "runtime.threads=2")
    assert again.code == 0
    logs = "".join(file.read_text() for file in swept.glob("sweep/*/log.txt"))
    assert logs.count("finished before") == 10
    assert {file: file.stat().st_mtime_ns for file in swept.glob("sweep/*/*/*")} == before

    found = cli("report", "outputs/sweep", "--out", "all.csv", "--out", "all.md", smoke=False)
    assert found.code == 0, found.err
    with open("all.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert set(rows) == set(names)
    points = {
        name: (r["metrics"]["macs"], -r["metrics"]["top1"]) for name, r in reports(swept).items()
    }
    front = {
        name
        for name, (macs, loss) in points.items()
        if not any(m <= macs and n <= loss and (m, n) != (macs, loss) for m, n in points.values())
    }
    (line,) = (line for line in found.out.splitlines() if line.startswith("front ("))
    assert front == {name for name in names if name in line} != set()
    for name, report in reports(swept).items():
        assert float(rows[name]["top1"]) == report["metrics"]["top1"]
        assert name in found.out and escape_markdown(name) in Path("all.md").read_text()


def test_what_jobs_share_is_computed_once(swept):
    first, second = sorted(place for place in (swept / "sweep").iterdir() if place.is_dir())
    assert "shared with another run" in (second / "log.txt").read_text()
    made = [file.parent.name for file in (swept / ".shared").rglob("report.json")]
    assert sorted(made) == sorted(["pretrain", *["sparsify", "prune", "finetune"] * 2])
    models = [place / "pretrain" / "model.pt" for place in (first, second)]
    assert models[0].samefile(models[1]), "one file under two names"
    for place in (first, second):
        report = json.loads((place / "sparsify/report.json").read_text())
        assert (place / "sparsify" / report["origin"]).resolve() == place / "pretrain/model.pt"


def test_a_sweep_lives_without_what_it_shared(cli, swept):
    shutil.rmtree(swept / ".shared")
    before = {file: file.read_bytes() for file in swept.glob("sweep/*/*/model.pt")}
    assert len(before) == 8 and cli(*SWEEP, "regularizer.lam=0.01,0.5").code == 0
    assert {file: file.read_bytes() for file in swept.glob("sweep/*/*/model.pt")} == before
    assert not (swept / ".shared").exists(), "nothing was left to do"


def test_a_job_may_be_finished_alone(cli, tmp_path):
    """`hydra.run.dir` is what a single command writes to, `root` and `name` are its parts."""
    assert cli("pretrain", "name=x/y", "root=elsewhere").code == 0
    assert (tmp_path / "elsewhere/x/y/pretrain/report.json").is_file()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("key", ["runtime.threads", "dataset.root", "overwrite", "runtime.device"])
def test_what_is_no_part_of_a_run_is_no_part_of_its_path(key):
    assert key in (config_dir() / "config.yaml").read_text().split("exclude_keys:")[1]


def test_a_sweep_over_seeds_and_choices(cli, tmp_path):
    line = ("pretrain", "-m", "name=s", "seed=1,2", "model=lenet5,lenet5_caffe")
    assert cli(*line, "dataset.train=64", "dataset.val=0").code == 0
    found = sorted(file.parents[1].name for file in tmp_path.glob("outputs/s/*/*/report.json"))
    assert len(found) == 4 and len({name.split("seed=")[1] for name in found}) == 2
    assert sum("lenet5_caffe" in name for name in found) == 2


def test_a_line_of_many_settings_makes_names_that_file_systems_take(cli, tmp_path):
    stages = ("pretrain", "sparsify", "finetune", "between")
    many = [f"schedule.{stage}.clip=100.0" for stage in stages]
    more = ("model.widths=[4,6,12]", "selection.keep=0.5", "selection=per_layer", "diagnose=false")
    line = ("pretrain", "-m", "name=s", "seed=1,2", *many, *more, "regularizer.lam=0.012345")
    found = cli(*line, "dataset.train=64", "dataset.val=0")
    assert found.code == 0, found.err
    names = [file.parents[1].name for file in tmp_path.glob("outputs/s/*/*/report.json")]
    assert len(set(names)) == 2 and all(len(name) == 200 for name in names)


def test_the_command_of_a_job_finds_its_directory_again(cli, tmp_path):
    jobs = ("run", "-m", "name=s", "seed=1,2", "pipeline=[pretrain,measure]", "overwrite=true")
    assert cli(*jobs, "dataset.train=64", "dataset.val=0").code == 0
    files = sorted(tmp_path.rglob("measure/report.json"))
    before = {file: file.read_bytes() for file in tmp_path.rglob("report.json")}
    for file in files:
        program, command, *overrides = shlex.split(json.loads(file.read_text())["command"])
        assert (program, command) == ("prunekit", "run") and "overwrite=true" not in overrides
        found = cli(command, *overrides, smoke=False)
        assert found.code == 0 and found.out.count("finished before") == 2, found.err
    assert {file: file.read_bytes() for file in tmp_path.rglob("report.json")} == before


def test_directories_of_jobs_need_no_quotes(cli, swept):
    """Their names have = in them, and commas and brackets, which mean something to Hydra."""
    job = next((swept / "sweep").glob("*regularizer.lam=0.5*"))
    assert {*"=,[]"} <= {*job.name}
    few = ("dataset.val=32", "criterion=l1_norm", "selection=per_layer")
    found = cli("prune", f"source={job.relative_to(swept.parent)}/pretrain", "name=other", *few)
    assert found.code == 0, found.err
    named = cli("prune", f"source={job}/pretrain", "name=lam=0.5,other", *few)
    assert named.code == 0 and "outputs/lam=0.5,other/prune" in named.out, named.err


def test_the_command_names_the_folder_of_own_configs(cli, tmp_path):
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "own.yaml").write_text(
        "name: own\n_target_: prunekit.models.LeNet5\nwidths: [2, 3, 4]\n"
    )
    line = ("--config-dir=mine", "model=own", "name=o", "dataset.train=64", "dataset.val=0")
    assert cli("pretrain", *line).code == 0
    command = json.loads((tmp_path / "outputs/o/pretrain/report.json").read_text())["command"]
    assert command.startswith("prunekit pretrain --config-dir=mine ") and "model=own" in command
