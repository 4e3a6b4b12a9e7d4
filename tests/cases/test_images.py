"""Folders of images that people have: what is not read as it is meant is refused or told."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from prunekit.data import ImageFolder
from prunekit.errors import PrunekitError


def folder(root, images, ending="png"):
    """Two classes, with the same images to train and to test."""
    for part in ("train", "test"):
        for name in ("left", "right"):
            place = root / part / name
            place.mkdir(parents=True)
            for number, image in enumerate(images):
                image.save(place / f"{number}.{ending}")
    return root


def load(root, size):
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "val": 0, "workers": 0}
    return ImageFolder(root=str(root), image_size=size, **plain).load()


def test_an_image_too_large_to_decode_is_named(tmp_path, monkeypatch):
    root = folder(tmp_path, [Image.new("L", (8, 8))])
    Image.new("L", (60, 40)).save(root / "test" / "right" / "scan.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # more than twice that is refused
    with pytest.raises(PrunekitError, match=r"scan\.png"):
        list(load(root, 8).test.epoch(8, None))


DEEP = {
    "16 bits": (lambda grey: (grey * 65535).astype("uint16"), "png"),
    "32 bits": (lambda grey: (grey * 65535).astype("int32"), "tiff"),
    "floats": (lambda grey: grey.astype("float32"), "tiff"),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_grey_images_keep_their_contrast_or_are_refused(tmp_path, kind):
    deepen, ending = DEEP[kind]
    grey = np.full((16, 16), 0.2)
    grey[:, 8:] = 0.6
    root = folder(tmp_path, [Image.fromarray(deepen(grey))], ending)
    try:
        ((images, _),) = load(root, 14).test.epoch(2, None)
    except PrunekitError as refusal:
        assert "0.png" in str(refusal) or "0.tiff" in str(refusal)
        return
    dark, bright = float(images[0, 0, :, 2].mean()), float(images[0, 0, :, -3].mean())
    assert 0 < dark < bright < 1
    assert bright / dark == pytest.approx(3, rel=0.05)


def test_pictures_that_are_left_out_are_told(tmp_path):
    root = folder(tmp_path, [Image.new("RGB", (8, 8), (60 * n, 0, 0)) for n in range(4)], "jpg")
    for number in (1, 2):
        file = root / "train" / "left" / f"{number}.jpg"
        file.rename(file.with_suffix(".jfif"))
    data = load(root, 8)
    assert data.train.size == 8 or any("jfif" in note for note in data.notes)


def test_a_folder_with_the_name_of_an_image_is_told(tmp_path):
    root = folder(tmp_path, [Image.new("RGB", (8, 8), (60 * n, 0, 0)) for n in range(4)])
    image = root / "train" / "left" / "1.png"
    image.unlink()
    image.mkdir()
    data = load(root, 8)
    assert data.train.size == 7
    assert any("names end like images: train/left/1.png" in note for note in data.notes)


def test_a_pipe_among_images_is_refused_before_anything_waits_for_it(tmp_path):
    root = folder(tmp_path, [Image.new("RGB", (8, 8), (60 * n, 0, 0)) for n in range(4)])
    (root / "test" / "left" / "1.png").unlink()
    os.mkfifo(root / "test" / "left" / "1.png")
    images = ImageFolder(root=str(root), image_size=8, val=0, workers=0)
    for act in (images.identity, images.load):
        with pytest.raises(PrunekitError, match=r"test/left/1\.png is no regular file but a pipe"):
            act()


class Failing(ImageFolder):
    """A set with a transform of one's own that cannot work."""

    def plain(self):
        return lambda image: 1 / 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_transform_of_ones_own_that_fails_is_one_line(tmp_path, workers):
    root = folder(tmp_path, [Image.new("RGB", (8, 8), (60 * n, 0, 0)) for n in range(2)])
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1), "val": 0, "workers": workers}
    data = Failing(root=str(root), image_size=8, **plain).load()
    with pytest.raises(PrunekitError) as caught:
        list(data.test.epoch(8, None))
    assert str(caught.value) == (
        f"{root}/test/left/0.png: the transform of the data set fails: division by zero; "
        "mend the class that dataset._target_ names"
    )
