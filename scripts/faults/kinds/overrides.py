"""Settings that are misspelt, out of range, of another type, or do not fit each other."""

from __future__ import annotations

from functools import partial

from scripts.faults.campaign import Fault
from scripts.faults.small import SMALL
from scripts.faults.trial import Finding, Trial

_WRONG = (  # a setting, and words of which the message has to hold one
    *(("seed=-1", "seed"), ("seed=1.5", "seed"), ("seed=abc", "seed"), ("seed=null", "seed")),
    *(("seed=1e400", "seed"), ("seed=", "seed"), ("seed=[1]", "seed"), ("sed=1", "sed")),
    *(("schedule.pretrain.epochs=-1", "epochs"), ("schedule.pretrain.epochs=many", "epochs")),
    *(("schedule.pretrain.batch=0", "batch"), ("schedule.pretrain.batch=2.5", "batch")),
    *(("schedule.pretrain.optimizer.lr=-1", "lr"), ("schedule.pretrain.optimizer.lr=fast", "lr")),
    *(
        ("schedule.pretrain.optimizer.lr=nan", "lr"),
        ("schedule.pretrain.optimizer.lr=inf", "lr"),
    ),
    *(
        ("schedule.pretrain.optimizer.momentum=2e308", "momentum"),
        ("schedule.pretrain.clip=0", "clip"),
    ),
    *(
        ("schedule.pretrain.precision=half", "precision"),
        ("schedule.pretrain.precision=8", "precision"),
    ),
    *(("schedule.pretrain.label_smoothing=1", "label_smoothing"), ("schedule=fast", "schedule")),
    *(("schedule.pretain.epochs=1", "pretain"), ("schedule.pretrain.epoch=1", "epoch")),
    *(
        ("model=resnet21", "resnet21"),
        ("model.widths=[4,6]", "widths"),
        ("model.widths=4", "widths"),
    ),
    *(
        ("model.widths=[4,6,0]", "widths"),
        ("model.widths=[4,6,x]", "widths"),
        ("model.widths=[]", "widths"),
    ),
    *(
        ("model.widths=[4,6,1e99]", "widths"),
        ("model.classes=0", "classes"),
        ("model.classes=7", "classes"),
    ),
    *(("model._target_=prunekit.models.None", "model"), ("model._target_=nowhere.Net", "nowhere")),
    *(
        ("model._target_=prunekit", "model"),
        ("model._target_=1", "_target_"),
        ("model.depth=3", "depth"),
        ("+model.depth=3", "depth"),
    ),
    *(("dataset=imagnet", "imagnet"), ("dataset.train=0", "train"), ("dataset.train=-5", "train")),
    *(("dataset.val=1e9", "val"), ("dataset.val=-1", "val"), ("dataset.val=0.999", "val")),
    *(
        ("dataset.classes=0", "classes"),
        ("dataset.classes=3", "classes"),
        ("dataset.image_size=0", "image_size"),
    ),
    *(
        ("dataset.image_size=3", "(1, 3, 3)"),
        ("dataset.noise=-1", "noise"),
        ("dataset.noise=nan", "noise"),
    ),
    *(("dataset.channels=3", "channel"), ("regularizer=l3", "l3"), ("regularizer.lam=-1", "lam")),
    *(("regularizer.lam=nan", "lam"), ("regularizer.lam=x", "lam"), ("solver=adam", "adam")),
    *(
        ("solver.rho=0", "rho"),
        ("solver.rho=inf", "rho"),
        ("solver.inner=0", "inner"),
        ("solver.r=1", "r=1"),
    ),
    *(("criterion=l9", "l9"), ("selection=best", "best"), ("selection.keep=2", "keep")),
    *(
        ("selection.keep=-0.1", "keep"),
        ("selection.keep=half", "keep"),
        ("selection.min_keep=-1", "min_keep"),
    ),
    *(("order=backwards", "backwards"), ("pipeline=[]", "pipeline"), ("pipeline=[train]", "train")),
    *(
        ("pipeline=pretrain", "pipeline"),
        ("objectives=[nothing]", "nothing"),
        ("source=nowhere", "source"),
    ),
    *(
        ("weights=nowhere.pt", "nowhere.pt"),
        ("weights=.", "weights"),
        ("runtime.device=tpu", "device"),
    ),
    *(
        ("runtime.device=cuda:99", "device"),
        ("runtime.threads=-1", "threads"),
        ("runtime.threads=x", "threads"),
    ),
    *(("latency.runs=1", "runs"), ("latency.seconds=-1", "seconds"), ("absorb=maybe", "absorb")),
    *(
        ("statistics=none", "statistics"),
        ("overwrite=perhaps", "overwrite"),
        ("diagnose=2", "diagnose"),
    ),
    *(
        ("+new=1", "new"),
        ("~seed", "seed"),
        ("~nothing", "nothing"),
        ("seed", "seed"),
        ("+seed=0", "seed"),
        ("+schedule.pretain.epochs=1", "pretain"),
        ("=1", "=1"),
    ),
    *(
        ("seed=${nothing}", "nothing"),
        ("seed=${oc.env:NOT_SET_AT_ALL}", "NOT_SET"),
        ("seed=${seed}", "seed"),
    ),
    *(
        ("seed=[1", "seed"),
        ("seed={a", "seed"),
        ("seed='1", "seed"),
        ("a b=1", "a b"),
        ("experiment=x", "x"),
    ),
)
_EQUAL = (  # another way to write what is there already
    *("seed=0", "++seed=0", "runtime.threads=1", "runtime=cpu", "model.widths=[4, 6, 12]"),
    *("overwrite=false", "dataset.noise=1", "dataset.noise=1.0", "schedule.pretrain.clip=null"),
)


def faults() -> list[Fault]:
    """Return settings to refuse, and some that change nothing."""
    return [
        *(
            Fault("overrides", setting, partial(_refused, setting, word))
            for setting, word in _WRONG
        ),
        *(Fault("overrides", f"{line} again", partial(_again, line)) for line in _EQUAL),
    ]


def _refused(setting: str, word: str, trial: Trial) -> Finding:
    """The command ends with one line, before there is any work."""
    line = ("run", *SMALL, "pipeline=[pretrain,sparsify,prune,measure]", "name=a")
    ended = trial.run(*line, setting)
    return trial.judge(ended, [word], same=lambda: False)


def _again(setting: str, trial: Trial) -> Finding:
    """The finished stage is found."""
    line = ("pretrain", *SMALL, "name=a")
    trial.run(*line)
    ended = trial.run(*line, setting)
    return trial.judge(ended, [setting], same=lambda: "finished before" in ended.out, refusal=False)
