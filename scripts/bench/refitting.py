"""Measure what refitting costs: CPU seconds by images and by layers, and memory of large networks.

    python -m scripts.bench.refitting [--images 128 256 512] [--blocks 4 8 16]
    python -m scripts.bench.refitting --network resnet50 --images 256 --size 224

Weights and images are random: they do for speed and memory.
"""

from __future__ import annotations

import argparse
import resource
import time

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

import prunekit
from prunekit.console import say, table
from prunekit.surgery.reconstruction import LeastSquares

WIDTH, SIDE, BATCH = 16, 16, 32


def main() -> int:
    """Print one network of torchvision, or small networks by images and by blocks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[128, 256, 512])
    parser.add_argument("--blocks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--network", help="of torchvision, instead of small ones")
    parser.add_argument("--size", type=int, default=224, help="of its images, in pixels")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.network:
        model = getattr(torchvision.models, options.network)().eval()
        for images in options.images:
            cpu, layers = seconds(model, torch.randn(images, 3, options.size, options.size))
            say(
                f"{options.network}: {layers} layers on {images} images in {cpu:.0f} CPU s, "
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB at most"
            )
        return 0
    seconds(residual(2), torch.randn(BATCH, 3, SIDE, SIDE))  # the first in a process takes longer
    most = max(options.images)
    sizes = [(options.blocks[0], images) for images in options.images]
    sizes += [(blocks, most) for blocks in options.blocks[1:]]
    rows = []
    for blocks, images in sizes:
        cpu, layers = seconds(residual(blocks), torch.randn(images, 3, SIDE, SIDE))
        rows.append([str(n) for n in (layers, images, round(cpu, 2))])
    table("residual blocks, all rows used", ["layers refitted", "images", "CPU s"], rows)
    return 0


def residual(blocks: int) -> nn.Module:
    """Return a network of equal residual blocks."""
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, padding=1),
        *[BasicBlock(WIDTH, WIDTH) for _ in range(blocks)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, 10),
    ).eval()


def seconds(model: nn.Module, images: Tensor) -> tuple[float, int]:
    """Return the CPU seconds of a cut to half of the MACs and a refit, and how many layers."""
    labels = torch.zeros(BATCH, dtype=torch.long)
    data = [(part, labels[: len(part)]) for part in images.split(BATCH)]
    settings = LeastSquares(images=len(images), rows=1e9 if images.shape[-1] == SIDE else 100)
    start = time.process_time()
    found = prunekit.prune(
        model, images[:1], macs=0.5, data=data, reconstruct=settings, check=False, absorb=False
    )
    assert found.refitted is not None
    return time.process_time() - start, len(found.refitted.layers)


if __name__ == "__main__":
    raise SystemExit(main())
