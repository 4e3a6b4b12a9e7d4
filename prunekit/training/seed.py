"""Seeds: one integer in, any number of unrelated streams out."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int) -> int:
    """Hash integers to a seed of 63 bits, the same on every machine and in every version."""
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed PyTorch's global generators, which initialisation and dropout draw from."""
    torch.manual_seed(seed)
