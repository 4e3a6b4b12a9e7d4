"""Changing the structure of networks, and files that remember how."""

from prunekit.surgery.bias_compensation import Absorbed, absorb
from prunekit.surgery.biases import BiasMap, BiasMaps, NewBiases
from prunekit.surgery.edits import Edit, Keep, Narrow, edit_from_dict
from prunekit.surgery.equivalence import Agreement, Gap, compare, randomised
from prunekit.surgery.files import SavedModel, load_model, save_model
from prunekit.surgery.heads import GlobalPooling, Head, LastLayer, NewHead
from prunekit.surgery.narrow import narrow
from prunekit.surgery.optimizer import narrow_optimizer
from prunekit.surgery.skip import Shift, SkipBlock
from prunekit.surgery.weights import load_weights

__all__ = [
    "Absorbed",
    "Agreement",
    "BiasMap",
    "BiasMaps",
    "Edit",
    "Gap",
    "GlobalPooling",
    "Head",
    "Keep",
    "LastLayer",
    "Narrow",
    "NewBiases",
    "NewHead",
    "SavedModel",
    "Shift",
    "SkipBlock",
    "absorb",
    "compare",
    "edit_from_dict",
    "load_model",
    "load_weights",
    "narrow",
    "narrow_optimizer",
    "randomised",
    "save_model",
]
