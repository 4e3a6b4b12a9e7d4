"""Training: a schedule, the loop, checkpoints, evaluation."""

from prunekit.training.checkpoint import Checkpoint
from prunekit.training.distillation import Distillation
from prunekit.training.evaluate import evaluate, predictions
from prunekit.training.loop import CrossEntropy, fit
from prunekit.training.recalibrate import keeps_statistics, recompute_statistics
from prunekit.training.schedule import Constant, Cosine, Schedule, Steps
from prunekit.training.seed import mix, seed_everything

__all__ = [
    "Checkpoint",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Distillation",
    "Schedule",
    "Steps",
    "evaluate",
    "fit",
    "keeps_statistics",
    "mix",
    "predictions",
    "recompute_statistics",
    "seed_everything",
]
