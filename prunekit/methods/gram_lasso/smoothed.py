"""What penalties that tie columns of a matrix together share: a penalty of each entry beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

from prunekit.errors import ConfigError
from prunekit.penalties.base import Penalty, RadialPenalty
from prunekit.penalties.magnitude import L1, L1MinusL2


@dataclass(frozen=True, eq=False)
class StructuredPenalty(Penalty):
    """A penalty with a part of single entries; `entries` makes it of lam, the l1 norm by default.

    ConfigError where that is no penalty of each entry by itself.
    """

    _: KW_ONLY
    entries: Callable[[float], RadialPenalty] = L1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.single, RadialPenalty) or isinstance(self.single, L1MinusL2):
            raise ConfigError(
                f"entries={self.single!r} is no penalty of single entries; take L1 or MCP"
            )

    @cached_property
    def single(self) -> RadialPenalty:
        """The penalty of single entries, before any weights."""
        return self.entries(self.lam)

    @property
    def convex(self) -> bool:
        """Whether the entries' part is the l1 norm, so that there is a duality gap."""
        return type(self.single) is L1
