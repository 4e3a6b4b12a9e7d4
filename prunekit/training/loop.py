"""The training loop, the only one: what a solver adds to plain training are two hooks."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from prunekit.console import track
from prunekit.data import Batches, Data
from prunekit.errors import TrainingError
from prunekit.solvers.base import Solver
from prunekit.training.checkpoint import Checkpoint
from prunekit.training.evaluation import evaluate, placed
from prunekit.training.losses import CrossEntropy
from prunekit.training.schedule import HALVES, LAYOUT, Schedule, about_precision

log = logging.getLogger(__name__)

Row = dict[str, float]  # one line of metrics.csv
Loss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
Watch = Callable[[], tuple[Row, bool]]
Batch = tuple[Tensor, Tensor]


def fit(
    model: nn.Module,
    data: Data,
    schedule: Schedule,
    *,
    solver: Solver | None = None,
    params: Iterable[Any] | None = None,
    frozen: Sequence[nn.Module] = (),
    loss: Loss | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
    label: str = "train",
    watch: Watch | None = None,
    on_epoch: Callable[[list[Row]], None] | None = None,
) -> list[Row]:
    """Train the model in place and return a row of numbers per epoch.

    `params` are parameters or groups for the optimizer (default: all of the model); a group with
    an `lr_scale` has the schedule's rate times that. Modules in `frozen` stay in evaluation mode,
    `loss(model, x, y)` returns the loss and the logits. A `solver` comes bound, on `device`;
    calling its `finish` is left to the caller. `watch` is asked after every epoch for further
    numbers, and whether to stop; `on_epoch` gets all rows so far. With a `checkpoint`, written
    after every epoch, a repeated call continues where the last one of the same identity stopped and
    ends with the same weights; a finished one returns at once.
    Phases that share a `seed` see the same batches. Raises TrainingError when the loss is no
    longer finite, ArtifactError when the checkpoint is of no use.
    """
    model.to(device, memory_format=LAYOUT)
    optimizer = schedule.optimizer(list(model.parameters() if params is None else params))
    loss = loss or CrossEntropy(schedule.label_smoothing)
    run = _Run(model, schedule, optimizer, solver, tuple(frozen), loss, device, label)
    history, done = run.resume(checkpoint)
    if history and on_epoch:
        on_epoch(history)
    while not done and len(history) < schedule.epochs:
        epoch = len(history)
        seed_everything(mix(seed, 1, epoch))
        row = run.train(data.train, epoch, mix(seed, 0, epoch)) | run.validate(data.val, epoch)
        seen, stop = watch() if watch else ({}, False)
        history.append(row | (solver.metrics() if solver else {}) | seen)
        done = stop or (solver is not None and solver.done)
        run.save(checkpoint, history, done)
        if on_epoch:
            on_epoch(history)
    return history


def _together(stream: Iterable[Batch], count: int) -> Iterator[list[Batch]]:
    """Lists of `count` batches each, the last one of what is left."""
    rest = iter(stream)
    while taken := list(islice(rest, count)):
        yield taken


@dataclass
class _Run:
    model: nn.Module
    schedule: Schedule
    optimizer: Optimizer
    solver: Solver | None
    frozen: tuple[nn.Module, ...]
    loss: Loss
    device: torch.device | str
    label: str

    def __post_init__(self) -> None:
        groups = self.optimizer.param_groups
        self.rates = [group["lr"] * group.get("lr_scale", 1.0) for group in groups]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.half = HALVES.get(self.schedule.precision)
        self.kind = torch.device(self.device).type
        if line := about_precision(self.schedule.precision, self.kind):
            log.warning(line)
        # gradients of float16 would vanish below 6e-8; disabled, it passes everything on
        self.scaler = torch.amp.GradScaler(self.kind, enabled=self.half is torch.float16)

    def train(self, batches: Batches, epoch: int, seed: int) -> Row:
        """One epoch."""
        self.model.train()
        for module in self.frozen:
            module.eval()
        count = batches.steps(self.schedule.batch)
        steps = -(-count // self.schedule.accumulate)
        losses, seen = torch.zeros(steps, device=self.device), 0
        hits = torch.zeros((), dtype=torch.long, device=self.device)
        shown = f"{self.label} {epoch + 1}/{self.schedule.epochs}"
        stream = track(batches.epoch(self.schedule.batch, seed), shown, count)
        for step, taken in enumerate(_together(stream, self.schedule.accumulate)):
            self.set_rates(epoch + step / steps)
            losses[step], right = self.step(taken)
            hits += right
            seen += sum(len(y) for _, y in taken)
            # on a GPU a look at the loss would wait for it, so there it is the epoch's end
            if self.kind == "cpu" and not math.isfinite(losses[step]):
                self._diverged(epoch, f"step {step + 1}", float(losses[step]))
        for step, loss in enumerate(losses.tolist()):
            if not math.isfinite(loss):
                self._diverged(epoch, f"step {step + 1}", loss)
        lr = self.optimizer.param_groups[0]["lr"]
        return {
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": float(losses.mean()),
            "train_top1": 100 * int(hits) / seen,
        }

    def step(self, batches: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; the loss before it, and how many examples were right.

        The penalty joins once, after the gradient is whole, in its true scale, and clipped.
        """
        self.model.zero_grad()  # also what the optimizer does not train
        examples = sum(len(y) for _, y in batches)
        parts = [self._backward(x, y, len(y) / examples) for x, y in batches]
        self.scaler.unscale_(self.optimizer)
        if self.schedule.clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.schedule.clip)
        if self.solver:
            self.solver.before_step(self.optimizer)
        if self._take() and self.solver:
            self.solver.after_step(self.optimizer)
        losses, hits = zip(*parts, strict=True)
        return torch.stack(losses).sum(), torch.stack(hits).sum()

    def _backward(self, x: Tensor, y: Tensor, share: float) -> tuple[Tensor, Tensor]:
        """Add a batch's gradient, weighted; the weighted loss, and how many were right."""
        x, y = placed(x, self.device), y.to(self.device, non_blocking=True)
        with torch.autocast(self.kind, self.half, enabled=self.half is not None):
            loss, logits = self.loss(self.model, x, y)
        loss = loss * share
        self.scaler.scale(loss).backward()
        return loss.detach(), (logits.detach().argmax(dim=1) == y).sum()

    def _take(self) -> bool:
        """The optimizer's step; False if the scaled gradient overflowed, which leaves it out."""
        before = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return self.scaler.get_scale() >= before

    def set_rates(self, epoch: float) -> None:
        """Give every parameter group its rate after `epoch` epochs."""
        factor = self.schedule.decay.factor(epoch, self.schedule.epochs)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def validate(self, batches: Batches, epoch: int) -> Row:
        """Loss and accuracy on the validation set; where there is none, weights must be finite."""
        if not batches.size:
            if not all(bool(param.isfinite().all()) for param in self.trained):
                self._diverged(epoch, "after its last step", math.nan)
            return {}
        found = evaluate(self.model, batches, self.device, max(256, self.schedule.batch))
        if not math.isfinite(found["loss"]):
            self._diverged(epoch, "validation", found["loss"])
        return {"val_loss": found["loss"], "val_top1": found["top1"]}

    def resume(self, checkpoint: Checkpoint | None) -> tuple[list[Row], bool]:
        """The rows of the epochs that need no repetition, and whether the solver had stopped."""
        state = checkpoint.load(self.device) if checkpoint else None
        if checkpoint is None or state is None:
            return [], False
        held = len(state["history"])
        if held > self.schedule.epochs:
            reason = f"it holds {held} epochs, this schedule has {self.schedule.epochs}"
            raise checkpoint.mismatched(reason)
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.solver:
                self.solver.load_state_dict(state["solver"])
            self.scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise checkpoint.mismatched(error) from error
        return state["history"], state["done"]

    def save(self, checkpoint: Checkpoint | None, history: list[Row], done: bool) -> None:
        """Write the state after an epoch."""
        if checkpoint is None:
            return
        state = {"history": history, "done": done, "model": self.model.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        state["solver"] = self.solver.state_dict() if self.solver else {}
        state["scaler"] = self.scaler.state_dict()
        checkpoint.save(state)

    def _diverged(self, epoch: int, place: str, loss: float) -> None:
        lr = self.optimizer.param_groups[0]["lr"]
        raise TrainingError(
            f"{self.label}: the loss is {loss} in epoch {epoch + 1}, {place}, at learning rate "
            f"{lr:g}; lower the rate or set clip"
        )


def mix(*parts: int) -> int:
    """Hash integers to a seed of 63 bits, the same on every machine and in every version."""
    text = ",".join(str(int(part)) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed PyTorch's global generators, which initialisation and dropout draw from."""
    torch.manual_seed(seed)
