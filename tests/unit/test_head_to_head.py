"""The head-to-head: what is compared at which cost, and how it is ranked."""

from __future__ import annotations

import pytest
import torch
from reproduced import composed, composing, finished, jobs_of, lines, rows_of, table, written

from prunekit.build import build
from prunekit.errors import ArtifactError
from prunekit.stages.pipeline import build_stages, stage_names
from prunekit.stages.sparsify import build_regularizer
from scripts.reproduce.sheets import write

FLOOR = {"L1 norm", "random channels", "from scratch"}
SCALES = [
    *(("head_to_head", scale) for scale in ("short", "gpu", "smoke")),
    *(("head_to_head_lenet", scale) for scale in ("short", "smoke")),
]


def tried(name, scale, root, seeds=None):
    """The table once its trials have finished, the weakest strengths as the best."""
    before = table(name, scale, root, seeds)
    for place, row in enumerate(before.trials):
        run = before.jobs(row, 0)[-1].name
        finished(root, run, "finetune", top1=float(place), val_top1=90.0 - place)
    return table(name, scale, root, seeds)


def every(name, scale, root, seeds=None):
    """All jobs of a table whose trials have finished."""
    return jobs_of(tried(name, scale, root, seeds))


def test_there_are_ten_methods_and_the_floor(tmp_path):
    one = table("head_to_head", "short", tmp_path)
    assert len({row["method"] for row in one.rows}) >= 10 and one.scale["seeds"] == [0, 1, 2]
    for name, scale in SCALES:
        found = table(name, scale, tmp_path).rows
        for network in {row["network"] for row in found}:
            assert {row["method"] for row in found if row["network"] == network} > FLOOR
    gpu = table("head_to_head", "gpu", tmp_path).rows
    assert {(row["network"], row["budget"]) for row in gpu} == {
        (network, f"{share}% of MACs")
        for network in ("resnet56", "vgg16")
        for share in (30, 50, 70)
    }


def test_a_run_starts_from_one_before_it_and_has_a_name_of_its_own(tmp_path):
    for name, scale in SCALES:
        seen = {}
        for job in every(name, scale, tmp_path / name / scale):
            assert job.waits_for() <= seen.keys(), job.name
            assert seen.setdefault(job.name, job) == job
            scratch = "/from-scratch/" in job.name or job.stages == ("pretrain",)
            assert (job.after is None) == scratch


def test_all_train_for_equal_epochs_at_one_rate(tmp_path):
    """Sparsification and tuning together, whatever the method; the rate of thin pairs aside."""
    with composing():
        for name in ("head_to_head", "head_to_head_lenet"):
            found = {job.name: job for job in every(name, "short", tmp_path / name, seeds=(0,))}
            for run, job in found.items():
                if "finetune" not in job.stages or "/from-scratch/" in run:
                    continue
                parent = found[job.after]
                sparse = {*job.stages, *parent.stages} & {"sparsify"}
                schedule = composed(job)["schedule"]
                before = schedule["sparsify"]["epochs"] if sparse else 0
                assert before + schedule["finetune"]["epochs"] == 10, run
                rate = schedule["finetune"]["optimizer"]["lr"]
                thin = "/Hinge" in run
                assert rate == (0.003 if thin else 0.1 if "lenet" in run else 0.01)


@pytest.mark.parametrize(
    ("name", "scale"),
    [pytest.param(*one, marks=() if one[1] == "smoke" else pytest.mark.slow) for one in SCALES],
)
def test_every_kind_of_job_composes_and_builds(name, scale, tmp_path):
    with composing():
        for job in every(name, scale, tmp_path, seeds=(0,)):
            found = composed(job)
            assert stage_names(found) == job.stages
            build_stages(found, job.stages)
            build(found["selection"], "selection")
            build(found["criterion"], "criterion")
            if "sparsify" in job.stages:
                build_regularizer(found)
            wanted = "lenet" in name
            assert build(found["dataset"], "dataset").shape == (
                (1, 28, 28) if wanted else (3, 32, 32)
            )


def ran(root, run, top1, right, seconds=1.0, stages=("prune", "finetune", "measure")):
    values = {"top1": top1, "params": 1000, "macs": 5, "cpu_ms": 2.0, "speedup": 3}
    finished(root, run, *stages, right=right, seconds=seconds, **values)


def test_methods_are_ranked_with_verdicts_and_seconds(tmp_path):
    one = table("head_to_head", "short", tmp_path, seeds=(0, 1))
    source = torch.Generator().manual_seed(0)
    shares = {"L1 norm": 0.9, "random channels": 0.5, "Hinge": 0.9, "slimming, l1": 0.7}
    for seed in (0, 1):
        for method, share in shares.items():
            (row,) = rows_of(one, method=method)
            right = torch.rand(400, generator=source) < share
            run = one.jobs(row, seed)[-1].name
            ran(tmp_path, run, 100 * float(right.float().mean()), right)
        sparse = f"head_to_head/resnet20/seed{seed}/slimming_l1-0.0072/sparse"
        ran(tmp_path, sparse, 1.0, None, seconds=10.0, stages=("sparsify",))
    found = {row["method"]: row for row in written(one)}
    assert len(found) == len(one.rows)
    assert {found[m]["rank"] for m in ("L1 norm", "Hinge")} == {"1", "2"}
    assert (found["slimming, l1"]["rank"], found["random channels"]["rank"]) == ("3", "4")
    assert found["slimming, l1"]["seconds"] == "12 ± 0"  # sparsified once for all budgets, 10 s
    assert found["Hinge"]["seconds"] == "2 ± 0"
    second = next(row for row in found.values() if row["rank"] == "2")
    assert second["verdict"] == "undecided" and found["random channels"]["verdict"] == "worse"
    assert (found["FPGM"]["rank"], found["FPGM"]["tuned %"]) == ("-", "not run")
    floor = lines(tmp_path / "out/head_to_head_verdicts.csv")
    tuned = [r for r in floor if r["network is"] == "fine-tuned"]
    against = {r["method"]: r["verdict"] for r in tuned if r["against"] == "random channels"}
    assert against == {"L1 norm": "better", "Hinge": "better", "slimming, l1": "better"}
    assert "**" not in (tmp_path / "out/head_to_head.md").read_text()


def test_the_strength_is_the_best_on_validation_images(tmp_path):
    before = table("head_to_head", "short", tmp_path)
    (unknown,) = rows_of(before, method="SSR-L2,1")  # before any was tried
    assert before.choices == {} and not before.is_run(unknown)
    values = {0.05: (80.0, 99.0), 0.1: (82.0, 1.0), 0.2: (81.0, 50.0)}
    for row in before.trials:
        if row["method"] == "SSR-L2,1":
            val, test = values[row["lam"]]
            finished(tmp_path, before.jobs(row, 0)[-1].name, "finetune", top1=test, val_top1=val)
    one = table("head_to_head", "short", tmp_path)
    assert one.choices == {("resnet20", "SSR-L2,1"): 0.1}
    names = {job.name for job in one.jobs_of(one.rows)}
    assert "head_to_head/resnet20/seed2/SSR-L21-0.1/50pct-of-MACs" in names
    assert "head_to_head/resnet20/seed2/SSR-L21-0.05/50pct-of-MACs" not in names


def test_a_comparison_of_no_run_is_refused(tmp_path):
    for name, scale in SCALES:
        with pytest.raises(ArtifactError, match="nothing was measured for this table"):
            write(table(name, scale, tmp_path), tmp_path / "out")
    assert not list(tmp_path.iterdir())
