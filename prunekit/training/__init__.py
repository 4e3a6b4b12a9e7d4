"""Training: schedules, the loop, losses, checkpoints, evaluation, and training under a penalty."""

from prunekit.training.checkpoint import Checkpoint
from prunekit.training.evaluation import (
    evaluate,
    has_running_statistics,
    predictions,
    recompute_statistics,
)
from prunekit.training.loop import fit, mix_seeds, seed_everything
from prunekit.training.losses import CrossEntropy, Distillation
from prunekit.training.orders import Joint, Layerwise, Order, StopRule, Training
from prunekit.training.regularizer import FittedRegularizer, Regularizer
from prunekit.training.schedule import Constant, Cosine, Schedule, Steps

__all__ = [
    "Checkpoint",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Distillation",
    "FittedRegularizer",
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
    "has_running_statistics",
    "mix_seeds",
    "predictions",
    "recompute_statistics",
    "seed_everything",
]
