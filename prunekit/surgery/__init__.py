"""Changing the structure of networks, and files that remember how."""

from prunekit.surgery.edits import Edit, Keep, Narrow, edit_from_dict
from prunekit.surgery.files import SavedModel, load_model, load_weights, save_model
from prunekit.surgery.narrow import narrow

__all__ = [
    "Edit",
    "Keep",
    "Narrow",
    "SavedModel",
    "edit_from_dict",
    "load_model",
    "load_weights",
    "narrow",
    "save_model",
]
