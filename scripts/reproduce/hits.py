"""Which test images the networks of a table recognise: read from runs, and kept beside the table.

Verdicts can be computed again from what is kept, a bit for each image, when the runs are gone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from prunekit.atomic_write import replacing
from scripts.reproduce.measured import Measured

COUNT = "images of "  # before the name of a run: how many test images there are


@dataclass(frozen=True)
class KeptHits:
    """The hits of a table's runs: those of the runs below `root`, else those in the file."""

    root: Path
    file: Path

    @classmethod
    def beside(cls, out: Path, table: str, root: Path) -> KeptHits:
        """Return the hits that are kept beside a table that is written to `out`."""
        return cls(root, out / "hits" / f"{table}.npz")

    def of(self, one: Measured, network: str | None = None) -> np.ndarray | None:
        """Return which test images a network of a run recognises, None where that is not known.

        It is the last network of the run unless `network` names another.
        """
        run = one.jobs[-1].name
        networks = self._measured(run) or self._kept(run)
        if not networks:
            return None
        return [*networks.values()][-1] if network is None else networks.get(network)

    def keep(self, runs: Iterable[Measured]) -> None:
        """Write the hits of these runs, and those that the file has of others."""
        packed = dict(self._packed)
        for run in {one.jobs[-1].name: None for one in runs}:
            networks = self._measured(run)
            if networks:
                images = {len(right) for right in networks.values()}
                packed = {key: bits for key, bits in packed.items() if not _belongs(key, run)}
                packed[f"{COUNT}{run}"] = np.array(max(images))
                packed |= {f"{run}:{n}": np.packbits(right) for n, right in networks.items()}
        if packed.keys() != self._packed.keys() or any(
            not np.array_equal(bits, self._packed[key]) for key, bits in packed.items()
        ):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.file) as draft, draft.open("wb") as stream:
                np.savez_compressed(stream, **packed)

    def _measured(self, run: str) -> dict[str, np.ndarray]:
        file = self.root / run / "measure" / "correct.pt"
        if not file.is_file():
            return {}
        networks = torch.load(file, weights_only=True)
        return {name: right.numpy() for name, right in networks.items()}

    def _kept(self, run: str) -> dict[str, np.ndarray]:
        prefix, packed = f"{run}:", self._packed
        return {
            key.removeprefix(prefix): np.unpackbits(
                bits, count=int(packed[f"{COUNT}{run}"])
            ).astype(bool)
            for key, bits in packed.items()
            if key.startswith(prefix)
        }

    @cached_property
    def _packed(self) -> dict[str, np.ndarray]:
        if not self.file.is_file():
            return {}
        with np.load(self.file, allow_pickle=False) as content:
            return dict(content)


def _belongs(key: str, run: str) -> bool:
    return key == f"{COUNT}{run}" or key.startswith(f"{run}:")
