"""Laws of splits and augmentation, for any size and seed."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from prunekit.data import HorizontalFlip, Normalize, RandomCrop, TensorBatches
from prunekit.data.base import split_by_class

seeds = st.integers(0, 2**63 - 1)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.data(), seeds)
def test_split_is_a_partition_in_proportion(labels, data, seed):
    labels = torch.tensor(labels)
    count = data.draw(st.integers(0, len(labels) - 1))
    rest, chosen = split_by_class(labels, count, seed)
    assert sorted([*rest.tolist(), *chosen.tolist()]) == list(range(len(labels)))
    assert len(chosen) == count
    for label in labels.unique():
        exact = int((labels == label).sum()) * count / len(labels)
        assert abs(int((labels[chosen] == label).sum()) - exact) < 1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 7), st.integers(1, 7), seeds)
def test_every_crop_is_a_window_of_the_padded_image(count, pad, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 2, height, width), dtype=torch.uint8)
    crop = RandomCrop(pad)
    drawn = crop.draw(count, generator)
    found = crop.apply(images, drawn)
    padded = F.pad(images, (pad,) * 4)
    for image, cut, (top, left) in zip(padded, found, drawn.tolist(), strict=True):
        assert torch.equal(cut, image[:, top : top + height, left : left + width])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), seeds)
def test_an_epoch_shows_every_example_once(count, batch, seed):
    images = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)
    batches = TensorBatches(images, torch.arange(count), Normalize((0.0,), (1.0,)))
    shown = [int(label) for _, labels in batches.epoch(batch, seed) for label in labels]
    assert len(set(shown)) == len(shown) >= count - 1
    assert [int(y) for _, labels in batches.epoch(batch, None) for y in labels] == list(
        range(count)
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 20), seeds)
def test_batches_depend_on_the_seed_alone(count, seed):
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8)
    augment = (RandomCrop(1), HorizontalFlip())
    batches = TensorBatches(images, torch.arange(count), Normalize((0.5,), (0.5,)), augment)
    first = list(batches.epoch(3, seed))
    torch.rand(5)
    for (a, _), (b, _) in zip(first, batches.epoch(3, seed), strict=True):
        assert torch.equal(a, b)
