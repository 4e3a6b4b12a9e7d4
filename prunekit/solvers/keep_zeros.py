"""Fine-tuning under a mask: what is zero stays zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import Optimizer

from prunekit.rows import grad_of
from prunekit.solvers.base import Solver, check_state


@dataclass
class KeepZeros(Solver):
    """Keeps the rows that are zero when it is bound at zero; the penalty is only reported.

    On `Entries` it is the mask of unstructured sparsity.
    """

    def start(self) -> None:
        """Remember which rows are zero."""
        self._freeze([(block.read() == 0).all(dim=1) for block in self.blocks])

    def before_step(self, optimizer: Optimizer) -> None:
        """No gradient for what is held, so that momentum has nothing to carry."""
        for param, held in self.held:
            grad_of(param).masked_fill_(held, 0.0)

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        """Undo what older momentum did."""
        for param, held in self.held:
            param.masked_fill_(held, 0.0)

    def finish(self) -> None:
        """Nothing to do: the parameters hold the answer."""

    def state_dict(self) -> dict[str, Any]:
        """The held rows of every block."""
        return {"zero": self.zero}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """KeepZeros the rows that were held before, whatever the parameters were when bound."""
        check_state(self.blocks, state["zero"], [mask.shape for mask in self.zero])
        devices = [mask.device for mask in self.zero]
        self._freeze([mask.to(at) for mask, at in zip(state["zero"], devices, strict=True)])

    def _freeze(self, zero: list[torch.Tensor]) -> None:
        self.zero = zero
        self.held = [
            (param, entries.contiguous())
            for block, mask in zip(self.blocks, zero, strict=True)
            for param, entries in block.scatter(mask[:, None].expand(block.read().shape))
        ]
