"""Training: a schedule, the loop, checkpoints, evaluation."""

from prunekit.training.checkpoint import Checkpoint
from prunekit.training.evaluation import (
    evaluate,
    keeps_statistics,
    predictions,
    recompute_statistics,
)
from prunekit.training.loop import fit, mix, seed_everything
from prunekit.training.losses import CrossEntropy, Distillation
from prunekit.training.orders import Joint, Layerwise, Order, Regularizer, StopRule, Training
from prunekit.training.schedule import Constant, Cosine, Schedule, Steps

__all__ = [
    "Checkpoint",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Distillation",
    "Joint",
    "Layerwise",
    "Order",
    "Regularizer",
    "Schedule",
    "Steps",
    "StopRule",
    "Training",
    "evaluate",
    "fit",
    "keeps_statistics",
    "mix",
    "predictions",
    "recompute_statistics",
    "seed_everything",
]
