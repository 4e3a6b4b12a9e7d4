"""Settings that are misspelt or out of range: one line, before any work."""

from __future__ import annotations

import pytest
from cli.test_errors import refused

TYPOS = [
    ("modle=lenet5", "modle", "did you mean model"),
    ("model=lenet55", "model=lenet55", "lenet5"),
    ("model=3", "model=3", "lenet5"),
    ("solver=aulmm", "solver=aulmm", "aulm"),
    ("criterion=foo", "criterion=foo", "apoz"),
    ("regularizer.lamda=1", "regularizer.lamda", "regularizer.lam"),
    ("schedule.finetune.optimizer.momentm=0.9", "optimizer.momentm", "optimizer.momentum"),
    ("+schedule.finetune.optimizer.momentm=0.9", "schedule.finetune.optimizer.momentm", "momentum"),
    ("pipeline=[prin]", "'prin'", "prune"),
    ("foo", "foo has no value", "KEY=VALUE"),
    ("=3", "=3 has no name in front", "KEY=VALUE"),
    ("+new=3", "new is no setting", "did you mean"),
    ("+schedule.pretain.epochs=3", "schedule.pretain is no setting", "pretrain"),
    ("+seed=0", "seed is there already", "write seed=..."),
    ("seed=${nothing}", "seed refers to ${nothing}", "no setting"),
    ("seed=${seed}", "seed=${...} refers to itself", "give it a value"),
    ("name=${name}", "name=${...} refers to itself", "give it a value"),
    ("seed=${oc.env:NOT_SET_AT_ALL}", "seed", "NOT_SET_AT_ALL", "is not set", "set it"),
    ("seed=${shell:ls}", "seed calls ${shell:...}", "give it a value"),
    ("pipeline=[]", "pipeline=[] is no list of stages", "write some of [pretrain,"),
]
VALUES = [
    ("regularizer.lam=-1", "regularizer", "lam=-1", "at least 0"),
    ("regularizer.lam=abc", "regularizer", "lam='abc'", "number"),
    ("regularizer.lam=nan", "regularizer", "lam=nan", "finite"),
    ("schedule.sparsify.epochs=abc", "schedule.sparsify", "epochs='abc'", "whole number"),
    ("schedule.sparsify.epochs=-1", "schedule.sparsify", "epochs=-1", "at least 0"),
    ("schedule.sparsify=3", "schedule.sparsify", "int", "_target_"),
    ("schedule.finetune.optimizer.lr=-1", "schedule.finetune", "lr=-1"),
    ("schedule.finetune.optimizer.lr=abc", "schedule.finetune", "lr='abc'"),
    ("schedule.finetune.optimizer._target_=torch.optim.SDG", "torch.optim.SDG", "dotted path"),
    ("schedule.finetune.optimizer.momentum=2e308", "optimizer.momentum=inf", "finite number"),
    ("model.classes=abc", "model", "classes='abc'"),
    ("model.widths=[4,6]", "model.widths=[4,6]", "must be a list of 3 values"),
    ("model.widths=[4,6,0]", "model.widths=0", "at least 1"),
    ("model.widths=4", "model.widths=4", "write [4] for one"),
    ("model._target_=1", "model._target_=1", "no dotted path", "write one"),
    ("selection=macs selection.keep=-1", "selection.keep=-1", "above 0"),
    ("selection=slimming selection.ratio=1.2", "selection.ratio=1.2", "below 1"),
    ("selection=slimming selection.rule=foo", "selection.rule='foo'", "exact, published"),
    ("selection=slimming selection.on_empty=x", "selection.on_empty='x'", "error, keep_best, skip"),
    ("order.norms=x", "order", "norms='x'", "live, frozen"),
    ("seed=abc", "seed='abc'", "whole number"),
    ("runtime.device=tpu", "runtime.device='tpu'", "cpu, cuda"),
    ("runtime.threads=-1", "runtime.threads=-1", "at least 0"),
    ("overwrite=maybe", "overwrite='maybe'", "true, false"),
    ("keep_zeros=3", "keep_zeros=3", "true, false"),
    ("dataset.val=1.5", "dataset", "val=1.5", "whole number"),
    ("solver.rho=0", "solver", "rho=0", "above 0"),
    ("regularizer=l20 solver=subgradient", "Subgradient", "L0", "choose another solver"),
]


@pytest.mark.parametrize(("override", "parts"), [(o, p) for o, *p in TYPOS + VALUES])
def test_a_wrong_setting_is_named_before_any_work(cli, tmp_path, override, parts):
    """The data set is absent too, but the setting is refused before anything is read."""
    absent = () if "dataset" in override else ("dataset=mnist",)
    refused(cli("run", *absent, *override.split()), *parts)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]
