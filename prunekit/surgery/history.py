"""The edits that a network went through since it was built, which it carries along itself.

They lie in an attribute of the network as plain values, so that copies and pickles keep them: a
network that is pruned, trained and pruned again still knows its first cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from prunekit.surgery.edits import Edit

ATTRIBUTE = "_prunekit_edits"

PlainEdit = dict[str, Any]


def history(model: nn.Module) -> list[PlainEdit]:
    """Return the edits that a network remembers, as `Edit.to_dict` writes them, in order."""
    return [*vars(model).get(ATTRIBUTE, ())]


def remember(model: nn.Module, edit: Edit) -> None:
    """Add an edit that was applied to a network to those that it remembers."""
    vars(model)[ATTRIBUTE] = (*history(model), edit.to_dict())


def all_edits(model: nn.Module, latest: Sequence[Edit]) -> list[PlainEdit]:
    """Return everything that a network remembers if it ends in the `latest` edits, else these."""
    plain, known = [edit.to_dict() for edit in latest], history(model)
    return known if known[len(known) - len(plain) :] == plain else plain


def not_applied(model: nn.Module, edits: Sequence[Edit]) -> list[Edit]:
    """Return the edits that a network still lacks, where it remembers the first of them."""
    known = history(model)
    first = [edit.to_dict() for edit in edits[: len(known)]]
    return [*edits[len(known) :]] if first == known else [*edits]
