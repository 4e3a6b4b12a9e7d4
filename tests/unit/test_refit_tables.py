"""The tables of refitted networks: what is run, and how agreement with dense ones is measured."""

from __future__ import annotations

import json

import pytest
import torch
from reproduced import composed, composing, jobs_of, rows_of, table

from prunekit.data import Synthetic
from prunekit.models import LeNet5
from prunekit.stages.pipeline import build_stages
from prunekit.surgery import save_model
from prunekit.training import predictions
from scripts.reproduce.jobs import Job
from scripts.reproduce.measured import Measured, agreement


@pytest.mark.parametrize("name", ["refit", "refit_tuning"])
def test_jobs_of_all_kinds_compose_and_build(name, tmp_path):
    found = {job.overrides[1:]: job for job in jobs_of(table(name, "short", tmp_path, [0]))}
    kinds = {}
    for job in found.values():
        kinds.setdefault((job.stages, job.name.split("/")[1]), job)
    with composing():
        for job in kinds.values():
            build_stages(composed(job, tmp_path), job.stages)


def test_every_network_is_cut_twice_and_treated_in_two_ways(tmp_path):
    one = table("refit", "short", tmp_path)
    cuts = {(row["network"], row["kept"], row["method"]) for row in one.rows}
    networks = {row["network"] for row in one.rows}
    assert len(networks) == 7 and len(cuts) == len(one.rows) == 4 * len(networks)
    (plain,) = rows_of(one, network="VGG", kept="70", method="recomputed")
    assert "reconstruct=none" in one.jobs(plain, 0)[-1].overrides


def test_refitting_is_paid_for_in_epochs(tmp_path):
    one = table("refit_tuning", "short", tmp_path)
    for row in one.rows:
        tuned = [job for job in one.jobs(row, 0) if "finetune" in job.stages]
        epochs = [o for job in tuned for o in job.overrides if "finetune.epochs" in o]
        extra = int(row["start"] == "plain")
        wanted = [f"schedule.finetune.epochs={int(row['epochs']) + extra}"]
        assert epochs == (wanted if int(row["epochs"]) else [])


def test_agreement_is_the_share_of_test_images_with_the_same_answer(tmp_path):
    images = Synthetic(image_size=28, train=64, val=0, test=120, noise=2.0)
    arch = {"_target_": "prunekit.models.LeNet5"}
    networks = []
    for seed, stage in enumerate(("given/pretrain", "cut/prune")):
        torch.manual_seed(seed)
        networks.append(LeNet5().eval())
        (tmp_path / stage).mkdir(parents=True)
        save_model(tmp_path / stage / "model.pt", networks[-1], arch, ())
    settings = {
        "_target_": "prunekit.data.Synthetic",
        **{"image_size": 28, "train": 64, "val": 0, "test": 120, "noise": 2.0},
        "only_exact": True,  # of all images, whatever the runs used
    }
    (tmp_path / "cut/prune/settings.json").write_text(json.dumps({"dataset": settings}))
    jobs = (Job("given", (), ("pretrain",)), Job("cut", (), ("prune", "measure"), "given"))
    answers = [predictions(net, images.load().test, "cpu")[0].argmax(1) for net in networks]
    same = int((answers[0] == answers[1]).sum())
    assert 0 < same < 120
    assert agreement(Measured(tmp_path, jobs)) == pytest.approx(100 * same / 120)
