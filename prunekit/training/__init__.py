"""Training: a schedule, the loop, checkpoints, evaluation."""

from prunekit.training.evaluate import evaluate, predictions
from prunekit.training.loop import CrossEntropy, fit
from prunekit.training.schedule import Constant, Cosine, Schedule, Steps
from prunekit.training.seed import mix, seed_everything

__all__ = [
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Schedule",
    "Steps",
    "evaluate",
    "fit",
    "mix",
    "predictions",
    "seed_everything",
]
