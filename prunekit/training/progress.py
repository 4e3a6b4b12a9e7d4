"""The state of an epoch that is not over: the steps taken, sums for its metrics, random numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class EpochProgress:
    """The steps of an epoch so far, and the sums from which its metrics are made.

    `losses` has an entry for every step of the epoch, `hits` counts examples that were classified
    correctly.
    """

    losses: Tensor
    hits: Tensor
    examples: int = 0
    steps: int = 0

    @classmethod
    def start(cls, steps: int, device: torch.device | str) -> EpochProgress:
        """Return the progress before the first of `steps` steps."""
        losses = torch.zeros(steps, device=device)
        return cls(losses, torch.zeros((), dtype=torch.long, device=device))

    @property
    def complete(self) -> bool:
        """Return whether all steps were taken."""
        return self.steps == len(self.losses)

    def add(self, loss: Tensor, hits: Tensor, examples: int) -> None:
        """Count a step."""
        self.losses[self.steps] = loss
        self.hits += hits
        self.examples += examples
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed epoch needs, with the states of torch's generators."""
        return {
            "losses": self.losses,
            "hits": self.hits,
            "examples": self.examples,
            "steps": self.steps,
            "random": _random_states(self.losses.device),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`; ValueError where it is that of an epoch of other length.

        The random states are restored by `restore_random_states`, right before the next step.
        """
        losses, steps = torch.as_tensor(state["losses"]), int(state["steps"])
        if losses.shape != self.losses.shape or not 0 <= steps <= len(losses):
            raise ValueError(
                f"it holds {steps} of {len(losses)} steps, this epoch has {len(self.losses)}"
            )
        self.losses.copy_(losses)
        self.hits.copy_(torch.as_tensor(state["hits"]))
        self.examples, self.steps = int(state["examples"]), steps


def restore_random_states(states: Mapping[str, Tensor]) -> None:
    """Set torch's generators, which dropout uses, to the states in `EpochProgress.state_dict`.

    The keys are devices; nothing happens without any.
    """
    for device, state in states.items():
        if torch.device(device).type == "cpu":
            torch.set_rng_state(state.cpu())
        else:
            torch.get_device_module(device).set_rng_state(state.cpu(), device)


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[str(device)] = torch.get_device_module(device).get_rng_state(device)
    return states
