"""Batches of image files, which worker processes decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from prunekit.data.base import sample_indices, shuffled_steps
from prunekit.data.decoding import read_image
from prunekit.data.listing import Samples
from prunekit.errors import DataError
from prunekit.reasons import reason_of

Transform = Callable[[Any], Any]  # of torchvision; in the end, an image becomes a tensor


class Decoding(Protocol):
    """How images are decoded and changed."""

    @property
    def workers(self) -> int:
        """The number of processes that decode."""

    def augmenting(self) -> Transform:
        """Return the random transform of training images."""

    def plain(self) -> Transform:
        """Return the fixed transform of all other images."""


@contextmanager
def explain_lost_workers() -> Iterator[None]:
    """Raise DataError where memory ran out, or a decoding process was killed.

    torch raises that error from a signal handler, wherever the main process is at that moment, so
    a whole pass over batches has to be inside this context.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise DataError(
            "a process that decodes images was killed, most likely because memory ran out; lower "
            "dataset.workers, dataset.image_size, or the batch of the schedule"
        ) from error
    except MemoryError as error:
        raise DataError(
            "memory ran out while images were decoded; lower dataset.workers, dataset.image_size, "
            "or the batch of the schedule"
        ) from error


class FolderBatches:
    """Batches of image files, decoded by worker processes."""

    def __init__(self, samples: Samples, settings: Decoding, device: torch.device | str) -> None:
        self.samples, self.settings, self.device = samples, settings, torch.device(device)

    @property
    def size(self) -> int:
        """The number of images."""
        return len(self.samples)

    def steps(self, batch: int) -> int:
        """Return the number of batches in a shuffled epoch."""
        return shuffled_steps(self.size, batch)

    def epoch(self, batch: int, seed: int | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.epoch`."""
        order = torch.arange(self.size)
        if seed is not None:
            order = torch.randperm(self.size, generator=torch.Generator().manual_seed(seed))
            order = order[: self.steps(batch) * batch]
        return self._decoded(order, batch, seed)

    def sample(self, count: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.sample`."""
        return self.pick(sample_indices(self.size, count), batch)

    @property
    def labels(self) -> Tensor:
        """The class of every image, by its folder."""
        return torch.tensor([label for _, label in self.samples], dtype=torch.long)

    def pick(self, indices: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield float images and labels; see `Batches.pick`."""
        return self._decoded(indices, batch, None)

    def _decoded(
        self, order: Tensor, batch: int, seed: int | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            with explain_lost_workers():
                for parts in self._loader(order, batch, seed):
                    images, labels = (part.to(self.device, non_blocking=True) for part in parts)
                    yield images, labels
        except DataError as error:  # its message contains the traceback of the worker process
            raise DataError(str(error).strip().rsplit("DataError: ", 1)[-1]) from error

    def _loader(self, order: Tensor, batch: int, seed: int | None) -> DataLoader:
        transform = self.settings.plain() if seed is None else self.settings.augmenting()
        return DataLoader(
            _Decoded([self.samples[i] for i in order.tolist()], transform, seed),
            batch,
            num_workers=self.settings.workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # so that decoding does not change the global one
        )


class _Decoded(TorchDataset):
    """Decode files to tensors; random changes depend on the seed and the index of an image."""

    def __init__(self, samples: Samples, transform: Transform, seed: int | None) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        image = read_image(path)
        if self.seed is None:
            return self._changed(image, path), label
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1_000_003 * (index + 1))
            return self._changed(image, path), label

    def _changed(self, image: Any, path: str) -> Tensor:
        """Return the transformed image; DataError where a transform of the user's own fails."""
        try:
            changed: Tensor = self.transform(image)
            return changed
        except (DataError, MemoryError):
            raise
        except Exception as error:
            raise DataError(
                f"{path}: the transform of the data set fails: {reason_of(error)}; mend the class "
                "that dataset._target_ names"
            ) from error
