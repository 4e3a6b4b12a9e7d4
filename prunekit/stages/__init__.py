"""The stages of the pipeline, in order."""

from prunekit.stages.base import Made, Runtime, Settings, Stage, execute

PRETRAIN = Stage("pretrain", ("seed", "model", "dataset", "schedule.pretrain", "weights"), False)
SPARSIFY = Stage(
    "sparsify",
    (
        *("seed", "dataset", "regularizer", "solver", "order", "schedule.sparsify"),
        *("channel_selection", "placement"),
    ),
    True,
    without_source=("model", "weights"),
)
SENSITIVITY = Stage(
    "sensitivity",
    (
        *("seed", "dataset", "criterion", "sensitivity", "absorb", "over_norms", "statistics"),
        *("channel_selection", "placement"),
    ),
    True,
    without_source=("model", "weights"),
)
PRUNE = Stage(
    "prune",
    (
        *("seed", "dataset", "criterion", "selection", "absorb", "over_norms", "schedule.between"),
        *("channel_selection", "placement", "diagnose", "statistics"),
    ),
    True,
    without_source=("model", "weights"),
)
FEATURES = Stage("features", ("seed", "dataset", "features"), True)
FINETUNE = Stage(
    "finetune", ("seed", "dataset", "schedule.finetune", "keep_zeros", "distill", "head"), True
)
EXPORT = Stage("export", ("seed", "dataset", "latency", "export", "quantize"), True)
MEASURE = Stage(
    *("measure", ("seed", "dataset", "latency", "source"), True),
    compares=("pretrain", "sparsify", "prune", "finetune"),
)
_ORDER = (PRETRAIN, SPARSIFY, SENSITIVITY, PRUNE, FEATURES, FINETUNE, EXPORT, MEASURE)
STAGES = {stage.name: stage for stage in _ORDER}

__all__ = ["STAGES", "Made", "Runtime", "Settings", "Stage", "execute"]
