"""Penalties: functions of a matrix whose rows may vanish, with value, subgradient and prox."""

from prunekit.penalties.base import PENALTIES, Penalty, RadialPenalty
from prunekit.penalties.magnitude import (
    L0,
    L1,
    MCP,
    SCAD,
    L1MinusL2,
    LogSum,
    Lp,
    TransformedL1,
)

__all__ = [
    "L0",
    "L1",
    "MCP",
    "PENALTIES",
    "SCAD",
    "L1MinusL2",
    "LogSum",
    "Lp",
    "Penalty",
    "RadialPenalty",
    "TransformedL1",
]
