"""Structural edits of networks, checks of their effect, and model files that store them."""

from prunekit.surgery.bias_compensation import Absorbed, absorb
from prunekit.surgery.distance import Distance
from prunekit.surgery.edits import (
    BiasMap,
    BiasMaps,
    Edit,
    KeptChannels,
    Narrow,
    NewBiases,
    edit_from_dict,
    narrow,
)
from prunekit.surgery.equivalence import Agreement, Gap, compare, randomise_constants
from prunekit.surgery.files import SavedModel, load_model, load_weights, save_model
from prunekit.surgery.heads import GlobalPooling, Head, LastLayer, NewHead
from prunekit.surgery.optimizer import narrow_optimizer
from prunekit.surgery.remove_block import ChannelBias, SkipBlock

__all__ = [
    "Absorbed",
    "Agreement",
    "BiasMap",
    "BiasMaps",
    "ChannelBias",
    "Distance",
    "Edit",
    "Gap",
    "GlobalPooling",
    "Head",
    "KeptChannels",
    "LastLayer",
    "Narrow",
    "NewBiases",
    "NewHead",
    "SavedModel",
    "SkipBlock",
    "absorb",
    "compare",
    "edit_from_dict",
    "load_model",
    "load_weights",
    "narrow",
    "narrow_optimizer",
    "randomise_constants",
    "save_model",
]
