"""Tests of data sets: files, splits, augmentation and batches."""

import gzip
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from prunekit.data import (
    CIFAR10,
    CIFAR100,
    CUB200,
    MNIST,
    SVHN,
    Data,
    Digits,
    FashionMNIST,
    HorizontalFlip,
    ImageFolder,
    Normalize,
    RandomCrop,
    ShapeOnly,
    Synthetic,
    TensorBatches,
    TinyImageNet,
    data_from_batches,
    images_id,
)
from prunekit.data.base import split_by_class
from prunekit.data.files import read_pickle
from prunekit.errors import ConfigError, DataError

SHARED = Path(__file__).parents[3] / "shared" / "data"
NEUTRAL = Normalize((0.0,), (1.0,))


def numbered(count, **options):
    """Return images of one pixel whose value is their index."""
    images = torch.arange(count, dtype=torch.float32).reshape(count, 1, 1, 1)
    return TensorBatches(images, torch.arange(count), NEUTRAL, **options)


def test_the_same_test_images_are_the_same_wherever_they_lie():
    """Compare synthetic sets, which have equal labels for all seeds."""
    sets = [Synthetic(test=n, data_seed=s) for n, s in ((39, 0), (40, 0), (40, 1), (40, 0))]
    short, first, other, again = (images_id(one.load().test) for one in sets)
    assert first == again and len({short, first, other}) == 3
    one = TensorBatches(torch.ones(1, 1, 1, 1), torch.zeros(1, dtype=torch.long), NEUTRAL)
    assert len(images_id(one)) == 8


def test_other_labels_are_other_test_images():
    images = torch.ones(4, 1, 1, 1)
    labels = (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0]))
    first, second = (images_id(TensorBatches(images, these, NEUTRAL)) for these in labels)
    assert first != second


def test_in_order_keeps_the_smaller_last_batch():
    batches = list(numbered(5).epoch(2, None))
    assert [labels.tolist() for _, labels in batches] == [[0, 1], [2, 3], [4]]
    assert [images.flatten().tolist() for images, _ in batches] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize(("count", "sizes"), [(5, [2, 2]), (6, [2, 2, 2]), (1, [1])])
def test_shuffled_leaves_out_a_last_batch_of_one(count, sizes):
    batches = numbered(count)
    assert [len(labels) for _, labels in batches.epoch(2, 0)] == sizes
    assert batches.steps(2) == len(sizes)


def test_same_seed_same_batches_other_seed_other_batches():
    images = torch.randint(0, 256, (64, 3, 8, 8), dtype=torch.uint8)
    normalize = Normalize((0.5,) * 3, (0.5,) * 3)
    batches = TensorBatches(images, torch.arange(64), normalize, (RandomCrop(2), HorizontalFlip()))
    first, again, other = (list(batches.epoch(32, seed)) for seed in (7, 7, 8))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0])


def test_labels_stay_with_their_images():
    for images, labels in (*numbered(10).epoch(4, 3), *numbered(10).sample(10, 4)):
        assert torch.equal(images.flatten().long(), labels)


def test_a_sample_is_a_fixed_mixture_of_unchanged_examples():
    batches = numbered(40, augment=(RandomCrop(1), HorizontalFlip()))
    first, again, longer = (list(batches.sample(count, 4)) for count in (10, 10, 90))
    assert [len(labels) for _, labels in first] == [4, 4, 2]
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    chosen, all_of_them = (torch.cat([y for _, y in part]) for part in (first, longer))
    assert torch.equal(all_of_them[:10], chosen) and all_of_them.unique().tolist() == [*range(40)]
    assert chosen.max() >= 20 and chosen.min() < 20  # from both halves
    assert torch.cat([images for images, _ in first]).flatten().tolist() == chosen.tolist()


def test_picked_examples_come_in_the_order_asked_for_and_unchanged():
    batches = numbered(9, augment=(RandomCrop(1), HorizontalFlip()))
    parts = list(batches.pick(torch.tensor([7, 0, 7, 3]), 3))
    assert [labels.tolist() for _, labels in parts] == [[7, 0, 7], [3]]
    assert torch.cat([x for x, _ in parts]).flatten().tolist() == [7, 0, 7, 3]
    assert list(batches.pick(torch.tensor([], dtype=torch.long), 3)) == []


def test_normalisation_by_hand():
    images = torch.tensor([0, 128, 255], dtype=torch.uint8).reshape(3, 1, 1, 1)
    mnist = TensorBatches(images, torch.zeros(3), Normalize((128 / 255,), (128 / 255,)))
    found = next(mnist.epoch(3, None))[0].flatten()
    torch.testing.assert_close(found, torch.tensor([-1.0, 0.0, 127 / 128]))


def test_flip_mirrors_the_drawn_images_only():
    images = torch.arange(4).reshape(2, 1, 1, 2)
    flipped = HorizontalFlip().apply(images, torch.tensor([True, False]))
    assert flipped.flatten().tolist() == [1, 0, 2, 3]


def test_crop_by_hand():
    images = torch.tensor([[1, 2], [3, 4]]).reshape(1, 1, 2, 2)
    cut = RandomCrop(1).apply(images, torch.tensor([[0, 2]]))
    assert cut.flatten().tolist() == [0, 0, 2, 0]


def test_evaluation_data_is_never_augmented():
    data = Synthetic(crop=3, flip=True).load()
    assert data.train.augment and not data.val.augment and not data.test.augment


def test_digits_split_is_stratified_disjoint_and_fixed():
    data, other = Digits().load(), Digits(split_seed=1).load()
    assert (data.train.size, data.val.size, data.test.size) == (1257, 180, 360)
    assert (data.test.labels.bincount() - 36).abs().max() <= 1
    assert torch.equal(data.test.images, other.test.images)
    assert not torch.equal(data.val.images, other.val.images)
    assert data.example.shape == (1, 1, 28, 28)


@pytest.mark.parametrize("kept", [True, False])
def test_digits_are_those_of_scikit_learn_wherever_it_keeps_them(kept, monkeypatch):
    bunch = load_digits()
    pixels = torch.from_numpy(bunch.data).mul(255 / 16).round().long()
    expected = torch.cat([pixels, torch.from_numpy(bunch.target)[:, None]], dim=1)
    if not kept:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    raw = Digits(image_size=8).read()
    parts = [
        (part.images.flatten(1).long(), part.labels[:, None]) for part in (raw.train, raw.test)
    ]
    found = torch.cat([torch.cat(part, dim=1) for part in parts])
    assert sorted(found.tolist()) == sorted(expected.tolist())


def test_the_runs_seed_does_not_move_the_split():
    assert torch.equal(Digits().load(seed=0).val.labels, Digits().load(seed=9).val.labels)


def test_validation_may_be_empty_but_training_not():
    assert Synthetic(val=0).load().val.size == 0
    with pytest.raises(DataError, match=r"dataset.val=640 leaves none of 640 training examples"):
        Synthetic(val=640).load()


def test_synthetic_patterns_can_be_told_apart():
    data = Synthetic(classes=3, train=60, test=30, val=6, noise=0.5).load()
    means = torch.stack([data.train.images[data.train.labels == c].mean(0) for c in range(3)])
    nearest = torch.cdist(data.test.images.flatten(1), means.flatten(1)).argmin(dim=1)
    assert torch.equal(nearest, data.test.labels)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Digits(val=-1), "val=-1 must be at least 0"),
        (lambda: Digits(val=2.5), "val=2.5 is not a whole number"),
        (lambda: Digits(crop=1.5), "crop=1.5 is not a whole number"),
        (lambda: Digits(mean=0.5), "mean=0.5 is not a list; write"),
        (lambda: Digits(std=(0.0,)), r"std=\(0.0,\) need one number per channel, std above 0"),
        (lambda: Digits(split_seed=-1), "split_seed=-1 must be at least 0"),
        (lambda: Digits(image_size=0), "image_size=0 must be at least 1"),
        (lambda: Synthetic(noise=-1), "noise=-1 must be at least 0"),
        (lambda: Synthetic(classes=0), "classes=0 must be at least 1"),
        (lambda: RandomCrop(0), "pad=0 must be at least 1"),
        (lambda: HorizontalFlip(2), "chance=2 must be at most 1"),
        (lambda: ImageFolder(root=".", workers=-1), "workers=-1 must be at least 0"),
    ],
)
def test_bad_settings_are_refused_at_once(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_mean_must_have_a_number_per_channel():
    with pytest.raises(DataError, match=r"has 3 numbers, images have 1 channels"):
        Digits(mean=(0.5,) * 3, std=(0.5,) * 3).load()


@pytest.mark.parametrize("source", [MNIST, FashionMNIST, CIFAR10, CIFAR100, SVHN])
def test_missing_folder_names_the_way_out(source, tmp_path):
    with pytest.raises(DataError) as caught:
        source(root=str(tmp_path)).load()
    text = str(caught.value)
    assert str(source(root=str(tmp_path)).home.resolve()) in text
    assert "dataset.root=" in text and "dataset.download=true" in text


def test_failed_download_says_where_files_go(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(DataError, match=r"could not be downloaded: no route to host; put its"):
        CIFAR10(root=str(tmp_path), download=True).load()


def write_idx(path, array):
    dims = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    content = b"\0\0\x08" + bytes([array.ndim]) + dims + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist_files(root, packed):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images = np.arange(count * 4).reshape(count, 2, 2)
        write_idx(raw / f"{part}-images-idx3-ubyte{packed}", images)
        write_idx(raw / f"{part}-labels-idx1-ubyte{packed}", np.arange(count) % 10)
    return raw


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_mnist_reads_plain_and_gzipped_files(tmp_path, packed):
    mnist_files(tmp_path, packed)
    data = MNIST(root=str(tmp_path), val=10).load()
    assert (data.train.size, data.val.size, data.test.size) == (10, 10, 10)
    assert data.test.images[1].flatten().tolist() == [4, 5, 6, 7]
    assert data.val.labels.sort().values.tolist() == list(range(10))


@pytest.mark.parametrize("content", [b"", b"\0\0\x08\x01\0\0\0\x09short", b"not idx at all"])
def test_damaged_mnist_file_is_named(tmp_path, content):
    path = mnist_files(tmp_path, "") / "t10k-labels-idx1-ubyte"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte is damaged"):
        MNIST(root=str(tmp_path), val=0).load()


def cifar_files(root, exact=True):
    home = root / "cifar-10-batches-py"
    home.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        content = {"data": np.zeros((10, 3072), np.uint8), "labels": list(range(10))}
        content |= {"exact": [1, 0] * 5} if exact else {}
        (home / name).write_bytes(pickle.dumps(content, protocol=2))
    return home


def test_cifar_subset_is_read_and_noted(tmp_path):
    cifar_files(tmp_path)
    data = CIFAR10(root=str(tmp_path), val=0.2, only_exact=True).load()
    assert (data.train.size, data.val.size) == (20, 5)
    assert sorted(set(data.train.labels.tolist())) == [0, 2, 4, 6, 8]
    assert data.test.labels.tolist() == [0, 2, 4, 6, 8]
    assert data.notes[0].startswith("a subset of CIFAR-10: 25 training images of 50000, 5 test")


def test_only_exact_needs_marks(tmp_path):
    cifar_files(tmp_path, exact=False)
    with pytest.raises(DataError, match=r"does not say which images are exact"):
        CIFAR10(root=str(tmp_path), only_exact=True, val=0).load()


def test_cifar_with_strange_labels_is_refused(tmp_path):
    home = cifar_files(tmp_path)
    content = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 10]}
    (home / "test_batch").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=r"test_batch is damaged.*labels are not all in 0 to 9"):
        CIFAR10(root=str(tmp_path), val=0).load()
    (home / "test_batch").write_bytes(pickle.dumps({"data": [1, 2]}))
    with pytest.raises(DataError, match=r"test_batch is damaged"):
        CIFAR10(root=str(tmp_path), val=0).load()


def test_cifar100_reads_fine_labels(tmp_path):
    home = tmp_path / "cifar-100-python"
    home.mkdir()
    for name in ("train", "test"):
        content = {b"data": np.zeros((4, 3072), np.uint8), b"fine_labels": [0, 1, 98, 99]}
        (home / name).write_bytes(pickle.dumps(content))
    data = CIFAR100(root=str(tmp_path), val=0).load()
    assert data.test.labels.tolist() == [0, 1, 98, 99]
    assert data.classes == 100


class Exploding:
    """A pickle that would run a function when it is loaded."""

    def __reduce__(self):
        return (Path.touch, (Path("touched-by-a-pickle"),))


def test_pickles_cannot_run_code(tmp_path):
    path = tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": Exploding()}))
    with pytest.raises(DataError, match=r"has no place in a file of arrays"):
        read_pickle(path)
    assert not Path("touched-by-a-pickle").exists()


def test_svhn_reads_matlab_files_and_adds_extra(tmp_path):
    from scipy.io import savemat

    for part in ("train", "extra", "test"):
        images = np.zeros((32, 32, 3, 4), np.uint8)
        images[5, 6, 1, 2] = 9
        labels = np.array([[1], [2], [10], [9]])
        savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": labels})
    data = SVHN(root=str(tmp_path), extra=True, val=0).load()
    assert (data.train.size, data.test.size) == (8, 4)
    assert data.test.labels.tolist() == [1, 2, 0, 9]
    assert data.test.images[2, 1, 5, 6] == 9
    (tmp_path / "test_32x32.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"test_32x32.mat is damaged"):
        SVHN(root=str(tmp_path), val=0).load()


def picture_folders(root, parts=("train", "val"), classes=("cat", "dog"), count=4):
    from PIL import Image

    for part in parts:
        for index, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                image = Image.new("RGB", (20, 16), (100 * index, 10 * number, 0))
                image.save(root / part / name / f"{number}.png")


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 4, 5], r"label 5 of val example 2 is not in 0 to 4; number the classes from 0"),
        ([0, -1, 2], r"label -1 of val example 1 is not in 0 to 4"),
        ([0, -100, 2], r"label -100 of val example 1"),  # torch would leave it out of the loss
        (
            [0.0, 1.0, 2.0],
            r"the labels of val are torch\.float32 of the shape \(3,\); give one whole",
        ),
    ],
)
def test_labels_that_are_no_classes_are_named(labels, told):
    good, images = numbered(5), torch.zeros(3, 1, 1, 1)
    bad = TensorBatches(images, torch.tensor(labels), NEUTRAL)
    with pytest.raises(DataError, match=told):
        Data(good, bad, good, 5, (1, 1, 1))
    assert Data(good, bad, good, 0, (1, 1, 1)).classes == 0  # of these nothing is known


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_images_that_are_not_finite_are_named(value):
    images = torch.zeros(4, 1, 2, 2)
    images[2, 0, 1, 0] = value
    with pytest.raises(DataError, match=r"image 2 of 4 holds nan or infinite values"):
        TensorBatches(images, torch.arange(4), NEUTRAL)


def test_image_folder_reads_splits_and_repeats(tmp_path):
    picture_folders(tmp_path)
    folder = ImageFolder(root=str(tmp_path), image_size=8, val=0.25, workers=0)
    data = folder.load()
    assert (data.train.size, data.val.size, data.test.size) == (6, 2, 8)
    assert data.shape == (3, 8, 8) and data.classes == 2
    assert sorted(label for _, label in data.val.samples) == [0, 1]
    before = torch.get_rng_state()
    first, again = (list(data.train.epoch(4, 5)) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    assert [len(labels) for _, labels in first] == [4, 2]
    assert next(data.test.epoch(8, None))[1].tolist() == [0] * 4 + [1] * 4


def test_image_folder_samples_both_classes_without_augmenting(tmp_path):
    picture_folders(tmp_path, count=16)
    folder = ImageFolder(root=str(tmp_path), image_size=8, val=0, workers=0)
    train = folder.load().train
    pairs = [pair for x, y in train.sample(8, 3) for pair in zip(x, y.tolist(), strict=True)]
    assert len(pairs) == 8 and {label for _, label in pairs} == {0, 1}
    plain = [image for images, _ in train.epoch(32, None) for image in images]
    assert all(any(torch.equal(image, other) for other in plain) for image, _ in pairs)


def test_image_folder_knows_labels_without_decoding_and_picks(tmp_path):
    picture_folders(tmp_path)
    train = ImageFolder(root=str(tmp_path), image_size=8, val=0, workers=0).load().train
    plain = torch.cat([images for images, _ in train.epoch(3, None)])
    parts = list(train.pick(torch.tensor([6, 1, 4]), 2))
    assert [labels.tolist() for _, labels in parts] == [[1, 0], [1]]
    assert torch.equal(torch.cat([images for images, _ in parts]), plain[[6, 1, 4]])
    for file in (tmp_path / "train").glob("*/*.png"):
        file.unlink()
    assert train.labels.tolist() == [0] * 4 + [1] * 4


def test_image_folder_batches_do_not_depend_on_workers(tmp_path):
    picture_folders(tmp_path)
    alone, helped = (
        ImageFolder(root=str(tmp_path), image_size=8, workers=workers, val=0).load()
        for workers in (0, 1)
    )
    for a, b in zip(alone.train.epoch(4, 1), helped.train.epoch(4, 1), strict=True):
        assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


def test_image_folder_errors_name_the_folder(tmp_path):
    with pytest.raises(DataError, match=r"no folder .*train; set dataset.root=..."):
        ImageFolder(root=str(tmp_path)).load()
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=r"holds no images in one folder per class"):
        ImageFolder(root=str(tmp_path)).load()


def test_image_folder_classes_must_agree(tmp_path):
    picture_folders(tmp_path, parts=("train",))
    picture_folders(tmp_path, parts=("test",), classes=("cat", "cow"))
    with pytest.raises(DataError, match=r"class 'dog' is in \S+/train, but not in test"):
        ImageFolder(root=str(tmp_path)).load()


@pytest.mark.parametrize("workers", [0, 1])
def test_image_that_cannot_be_decoded_is_named(tmp_path, workers):
    picture_folders(tmp_path)
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no picture")
    data = ImageFolder(root=str(tmp_path), image_size=8, val=0, workers=workers).load()
    with pytest.raises(DataError, match=r"^\S+0.png cannot be decoded: .*; remove or replace it$"):
        list(data.train.epoch(8, None))


class TestTinyImageNet:
    """Three classes of four training images, and six validation images in one folder."""

    NAMES = ("n03", "n01", "n02")

    @pytest.fixture
    def root(self, tmp_path):
        from PIL import Image

        (tmp_path / "wnids.txt").write_text("\n".join(self.NAMES) + "\n")
        val = tmp_path / "val"
        for folder in (val / "images", *(tmp_path / f"train/{n}/images" for n in self.NAMES)):
            folder.mkdir(parents=True)
        lines = []
        for index in range(6):
            name = self.NAMES[index % 3]
            lines.append(f"val_{index}.JPEG\t{name}\t0\t32\t44\t62")
            self.picture(name).save(val / "images" / f"val_{index}.JPEG")
        (val / "val_annotations.txt").write_text("\n".join(lines))
        for name in self.NAMES:
            (tmp_path / f"train/{name}/{name}_boxes.txt").write_text("")
            for number in range(4):
                self.picture(name).save(tmp_path / f"train/{name}/images/{name}_{number}.JPEG")
        (tmp_path / "test/images").mkdir(parents=True)  # without labels, not read
        Image.new("RGB", (64, 64)).save(tmp_path / "test/images/test_0.JPEG")
        return tmp_path

    def picture(self, name):
        """Write a uniform image, whose brightness is the alphabetical rank of its class."""
        from PIL import Image

        return Image.new("RGB", (64, 64), (60 * int(name[2:]),) * 3)

    def loaded(self, root, **settings):
        return TinyImageNet(root=str(root), workers=0, **settings).load()

    def test_labels_go_with_their_images_in_alphabetical_order(self, root):
        data = self.loaded(root, val=0, mean=(0.0,) * 3, std=(1.0,) * 3)
        assert (data.classes, data.shape) == (3, (3, 64, 64))
        assert (data.train.size, data.val.size, data.test.size) == (12, 0, 6)
        images, labels = next(data.test.epoch(8, None))
        assert labels.tolist() == [2, 0, 1, 2, 0, 1]  # in the order of the annotations
        for images, labels in (*data.test.epoch(8, None), *data.train.epoch(12, None)):
            bright = (images[:, 0, 30, 30] * 255 / 60 - 1).round().long()
            assert torch.equal(bright, labels)
            assert images.shape[1:] == (3, 64, 64)

    def test_part_of_the_training_images_is_held_out(self, root):
        data = self.loaded(root, val=3)
        assert (data.train.size, data.val.size) == (9, 3)
        assert sorted(label for _, label in data.val.samples) == [0, 1, 2]

    def test_images_are_shifted_and_scaled(self, root):
        data = self.loaded(root, val=0, image_size=32, crop=16, mean=(0.0,) * 3, std=(1.0,) * 3)
        plain = next(data.train.epoch(12, None))[0]
        moved = next(data.train.epoch(12, 0))[0]
        assert plain.shape == moved.shape == (12, 3, 32, 32)
        assert (plain > 0.2).all() and not (moved > 0.2).all()  # padded with black
        still = self.loaded(root, val=0, image_size=32, crop=0, mean=(0.0,) * 3, std=(1.0,) * 3)
        assert (next(still.train.epoch(12, 0))[0] > 0.2).all()

    @pytest.mark.parametrize(
        ("gone", "said"),
        [
            ("wnids.txt", r"wnids.txt cannot be read: No such file .*; set dataset.root=.*tiny-im"),
            ("val/val_annotations.txt", r"annotations.txt cannot be read: .* dataset=image_folder"),
            ("val/images", r"no images in \S+val/images; set dataset.root="),
            ("train/n02", r"no images in \S+train/n02/images; set dataset.root="),
            ("val/images/val_3.JPEG", r"'val_3.JPEG' of class 'n03' is not in val/images"),
        ],
    )
    def test_what_is_missing_is_named(self, root, gone, said):
        shutil.rmtree(root / gone) if (root / gone).is_dir() else (root / gone).unlink()
        with pytest.raises(DataError, match=said) as error:
            self.loaded(root)
        assert "\n" not in str(error.value)

    def test_a_class_that_is_not_listed_is_named(self, root):
        (root / "wnids.txt").write_text("n01\nn02\n")
        with pytest.raises(DataError, match=r"'val_0.JPEG' of class 'n03' is not in wnids.txt"):
            self.loaded(root)

    def test_a_crop_below_nothing_is_refused(self):
        with pytest.raises(ConfigError, match="crop=-1 must be at least 0"):
            TinyImageNet(root=".", crop=-1)


class TestCUB200:
    """Two classes of three images; the split sends the last one of each to the test set."""

    NAMES = ("001.Albatross", "002.Auklet")

    @pytest.fixture
    def root(self, tmp_path):
        from PIL import Image

        files = [f"{name}/{name[4:]}_{number}.jpg" for name in self.NAMES for number in range(3)]
        for place, file in enumerate(files):
            path = tmp_path / "images" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (60, 40), (100 * (place // 3 + 1),) * 3).save(path)
        named = "".join(f"{number} {file}\n" for number, file in enumerate(files, start=1))
        split = "".join(f"{n} {int(n % 3 != 0)}\n" for n in range(1, 7))
        (tmp_path / "images.txt").write_text(named)
        (tmp_path / "train_test_split.txt").write_text(split)
        return tmp_path

    def loaded(self, root, **settings):
        return CUB200(root=str(root), workers=0, image_size=28, **settings).load()

    def test_images_go_where_the_split_says_with_their_labels(self, root):
        data = self.loaded(root, val=0, mean=(0.0,) * 3, std=(1.0,) * 3)
        assert (data.classes, data.shape) == (2, (3, 28, 28))
        assert (data.train.size, data.val.size, data.test.size) == (4, 0, 2)
        assert data.train.labels.tolist() == [0, 0, 1, 1] and data.test.labels.tolist() == [0, 1]
        for seed in (None, 0):
            for images, labels in data.train.epoch(4, seed):
                assert images.shape[1:] == (3, 28, 28)
                assert torch.equal((images[:, 0, 14, 14] * 2.55 - 1).round().long(), labels)
        assert [Path(file).name for file, _ in data.test.samples] == [
            "Albatross_2.jpg",
            "Auklet_2.jpg",
        ]

    def test_part_of_the_training_images_is_held_out(self, root):
        data = self.loaded(root, val=2)
        assert (data.train.size, data.val.size, data.test.size) == (2, 2, 2)

    def test_the_whole_image_is_seen_whatever_its_aspect(self, root):
        from PIL import Image

        wide = Image.new("RGB", (64, 32))
        wide.paste((255,) * 3, (0, 0, 32, 32))
        seen = CUB200(root=str(root), image_size=28, mean=(0.0,) * 3, std=(1.0,) * 3).plain()(wide)
        assert seen.shape == (3, 28, 28)
        assert seen[0, :, :12].min() > 0.9 and seen[0, :, 16:].max() < 0.1  # half is half

    @pytest.mark.parametrize(
        ("file", "content", "said"),
        [
            ("images.txt", None, r"images.txt cannot be read: No such file .* CUB_200_2011"),
            ("train_test_split.txt", None, r"split.txt cannot be read: .*; set dataset.root="),
            ("train_test_split.txt", "1 1\n", r"names 6 images, train_test_split.txt 1, and not"),
            ("train_test_split.txt", "1\n", r"split.txt: '1' is not a number and a word"),
            ("images/002.Auklet/Auklet_1.jpg", None, r"images.txt names \S+_1.jpg, which is gone"),
        ],
    )
    def test_what_is_missing_is_named(self, root, file, content, said):
        (root / file).unlink() if content is None else (root / file).write_text(content)
        with pytest.raises(DataError, match=said) as error:
            self.loaded(root)
        assert "\n" not in str(error.value)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no MNIST and CIFAR-10 beside the tree")
def test_real_files():
    mnist, cifar = (source(root=str(SHARED)).load() for source in (MNIST, CIFAR10))
    assert (mnist.train.size, mnist.val.size, mnist.test.size) == (55000, 5000, 10000)
    assert mnist.notes == ()
    assert cifar.train.size + cifar.val.size == 10000
    assert cifar.test.size == 2000 and cifar.shape == (3, 32, 32)


def test_leftover_places_go_to_the_classes_cut_most():
    labels = torch.tensor([0] * 5 + [1] * 4 + [2] * 1)
    _, chosen = split_by_class(labels, 5, seed=0)
    assert labels[chosen].bincount(minlength=3).tolist() == [3, 2, 0]


class TestWithoutImages:
    """Tests of the data set that has a shape only."""

    def test_what_there_is(self):
        data = ShapeOnly(shape=[3, 5, 4]).load()
        assert data.shape == (3, 5, 4) and data.classes == 0 and data.example.shape == (1, 3, 5, 4)
        assert data.train.size == data.val.size == data.test.size == 0
        noise = data.inputs(2)
        assert noise.shape == (2, 3, 5, 4) and noise.std() > 0.5
        assert torch.equal(noise, data.inputs(2)) and "not measured" in data.notes[0]

    def test_whoever_wants_images_is_told(self):
        train = ShapeOnly().load().train
        for ask in (
            lambda: train.steps(2),
            lambda: train.epoch(2, None),
            lambda: train.sample(2, 2),
            lambda: train.labels,
            lambda: train.pick(torch.arange(2), 2),
        ):
            with pytest.raises(DataError, match="dataset=none has none; choose a data set"):
                ask()


def test_given_batches_are_used_as_they_are():
    pairs = [(torch.full((3, 1), float(i)), torch.full((3,), i)) for i in range(4)]
    data = data_from_batches(iter(pairs), 7)
    assert data.train.size == 9 and data.train.steps(2) == 3 and data.shape == (1,)
    assert [len(y) for _, y in data.train.sample(5, 2)] == [2, 1, 2]
    assert torch.cat([x for x, _ in data.train.sample(5, 2)]).flatten().tolist() == [0, 0, 0, 1, 1]
    assert data.inputs(2).shape == (2, 1)
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    picked = list(data.train.pick(torch.tensor([8, 0, 2, 3]), 3))
    assert [y.tolist() for _, y in picked] == [[2, 0, 0], [1]]
    assert torch.cat([x for x, _ in picked]).flatten().tolist() == [2, 0, 0, 1]
