"""Changing the structure of networks, and files that remember how."""

from prunekit.surgery.absorb import Absorbed, absorb
from prunekit.surgery.biases import BiasMap, BiasMaps, NewBiases
from prunekit.surgery.check import Agreement, Gap, compare, randomised
from prunekit.surgery.edits import Edit, Keep, Narrow, edit_from_dict
from prunekit.surgery.files import SavedModel, load_model, save_model
from prunekit.surgery.heads import GlobalPooling, Head, LastLayer, NewHead
from prunekit.surgery.hinge import Attach, Fold, Folded, attached, fold
from prunekit.surgery.narrow import narrow
from prunekit.surgery.optimizer import narrow_optimizer
from prunekit.surgery.selections import Selections
from prunekit.surgery.skip import Shift, SkipBlock
from prunekit.surgery.weights import load_weights

__all__ = [
    "Absorbed",
    "Agreement",
    "Attach",
    "BiasMap",
    "BiasMaps",
    "Edit",
    "Fold",
    "Folded",
    "Gap",
    "GlobalPooling",
    "Head",
    "Keep",
    "LastLayer",
    "Narrow",
    "NewBiases",
    "NewHead",
    "SavedModel",
    "Selections",
    "Shift",
    "SkipBlock",
    "absorb",
    "attached",
    "compare",
    "edit_from_dict",
    "fold",
    "load_model",
    "load_weights",
    "narrow",
    "narrow_optimizer",
    "randomised",
    "save_model",
]
