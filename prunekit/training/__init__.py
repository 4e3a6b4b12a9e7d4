"""Training: a schedule, the loop, checkpoints, evaluation."""

from prunekit.training.bn_recalibration import keeps_statistics, recompute_statistics
from prunekit.training.checkpoint import Checkpoint
from prunekit.training.distillation import Distillation
from prunekit.training.evaluate import evaluate, predictions
from prunekit.training.loop import CrossEntropy, fit
from prunekit.training.orders import Joint, Layerwise, Order, Regularizer, StopRule, Training
from prunekit.training.schedule import Constant, Cosine, Schedule, Steps
from prunekit.training.seed import mix, seed_everything

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
