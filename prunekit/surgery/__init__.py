"""Changing the structure of networks, and files that remember how."""

from prunekit.surgery.bias_compensation import Absorbed, absorb
from prunekit.surgery.edits import (
    BiasMap,
    BiasMaps,
    Edit,
    Keep,
    Narrow,
    NewBiases,
    edit_from_dict,
    narrow,
)
from prunekit.surgery.equivalence import Agreement, Gap, compare, randomised
from prunekit.surgery.files import SavedModel, load_model, load_weights, save_model
from prunekit.surgery.heads import GlobalPooling, Head, LastLayer, NewHead
from prunekit.surgery.optimizer import narrow_optimizer
from prunekit.surgery.remove_block import Shift, SkipBlock

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
