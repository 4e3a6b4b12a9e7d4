"""What is minimised together with a penalty."""

from prunekit.problems.training import Joint, Layerwise, Problem, Regularizer, Training, Until

__all__ = ["Joint", "Layerwise", "Problem", "Regularizer", "Training", "Until"]
