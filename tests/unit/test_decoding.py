"""Image files as people have them: what is read is what they show, or it is told."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from faults.sets import identity_of
from PIL import Image, ImageDraw

from prunekit.data import ImageFolder
from prunekit.data import folder as folder_module
from prunekit.data.decoding import count_peculiarities, read_image
from prunekit.data.folder_batches import explain_lost_workers
from prunekit.errors import DataError
from prunekit.stages.identity import StageInputs

ORIENTATION = 0x0112
TURNS = {  # what has to be done to the stored image, by the value of the EXIF tag
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    6: Image.Transpose.ROTATE_270,
    8: Image.Transpose.ROTATE_90,
}


def picture(size=(24, 16)):
    """An image without any symmetry."""
    image = Image.new("RGB", size, (10, 200, 30))
    ImageDraw.Draw(image).rectangle((0, 0, size[0] // 2, size[1] // 3), fill=(220, 20, 90))
    return image


def saved(image, file, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return str(file)


def folders(root, **images):
    """Two classes that hold these images, to train and to test."""
    for part in ("train", "test"):
        for name in ("left", "right"):
            for stem, (image, ending, options) in images.items():
                saved(image, root / part / name / f"{stem}.{ending}", **options)
    return ImageFolder(root=str(root), image_size=8, val=0, workers=0)


def oriented(turn):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif.tobytes()


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("ending", ["png", "webp", "tiff"])
def test_images_are_turned_as_their_tag_says(tmp_path, turn, ending):
    options = {"lossless": True} if ending == "webp" else {}
    file = saved(picture(), tmp_path / f"a.{ending}", exif=oriented(turn), **options)
    expected = picture().transpose(TURNS[turn])
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(expected))
    assert count_peculiarities([file]) == {"turned": 1}


def test_tags_that_cannot_be_read_change_nothing(tmp_path):
    file = saved(picture(), tmp_path / "a.png", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_whatever_its_hidden_colour(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (0, 0, 0, 0))
    image.paste((60, 60, 60, 255), (0, 0, 2, 2))
    image.putpixel((2, 0), (0, 0, 0, 128))
    file = saved(image.convert(mode), tmp_path / "a.png")
    seen = np.asarray(read_image(file)).astype(int)
    assert seen.shape == (2, 4, 3)
    assert (seen[:, :2] == 60).all() and (seen[:, 3] == 255).all()
    half = seen[0, 2]
    assert mode == "P" or np.abs(half - 127).max() <= 1
    assert count_peculiarities([file]) == {"transparent": 1}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_ordinary_images_are_read_as_before(tmp_path, mode):
    """By torchvision's own loader; nothing about them is told."""
    from torchvision.datasets.folder import pil_loader

    ending = "tiff" if mode == "CMYK" else "png"
    file = saved(picture().convert(mode), tmp_path / f"a.{ending}")
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(pil_loader(file)))
    assert count_peculiarities([file]) == {}


RAMP = np.tile(np.linspace(0.1, 0.9, 32), (8, 1))


@pytest.mark.parametrize(
    ("numbers", "ending", "steps"),
    [
        ((RAMP * 65535).astype("uint16"), "png", 65535),
        ((RAMP * 65535).astype("uint16"), "tiff", 65535),
        (RAMP.astype("float32"), "tiff", 1e7),
    ],
)
def test_deep_images_keep_all_of_their_levels(tmp_path, numbers, ending, steps):
    file = saved(Image.fromarray(numbers), tmp_path / f"a.{ending}")
    seen = read_image(file)
    assert seen.shape == (3, 8, 32) and seen.dtype == torch.float32
    expected = torch.from_numpy(RAMP).float().expand(3, 8, 32)
    plain = seen.as_subclass(torch.Tensor)
    torch.testing.assert_close(plain, expected, rtol=0, atol=1 / steps)
    assert count_peculiarities([file]) == {"deep": 1}


def test_deep_images_are_changed_like_others(tmp_path):
    """An image of 16 bits and its twin of 8 bits become nearly equal examples."""
    deep = Image.fromarray((RAMP * 65535).astype("uint16"))
    flat = Image.fromarray((RAMP * 255).round().astype("uint8"))
    data = folders(tmp_path, deep=(deep, "png", {}), flat=(flat, "png", {})).load()
    ((images, _),) = data.test.epoch(4, None)
    torch.testing.assert_close(images[0], images[1], rtol=0, atol=0.02)
    assert [len(y) for _, y in data.train.epoch(4, 0)] == [4]


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ((RAMP * 65535).astype("int32"), "32-bit integers, and which of them is white"),
        ((RAMP * 255).astype("float32"), "numbers from 25.5 to 229.5"),
        (np.where(RAMP > 0.5, np.nan, RAMP).astype("float32"), "numbers from nan to nan"),
        ((RAMP - 0.5).astype("float32"), "numbers from -0.4 to 0.4"),
    ],
)
def test_numbers_whose_white_is_not_known_are_refused(tmp_path, numbers, told):
    file = saved(Image.fromarray(numbers), tmp_path / "a.tiff")
    with pytest.raises(DataError, match=rf"a\.tiff holds {told}.*; save it with 8 or 16 bits$"):
        read_image(file)


def test_errors_name_the_file_and_no_addresses(tmp_path):
    file = tmp_path / "a.png"
    whole = (tmp_path / "whole.png", picture())
    saved(whole[1], whole[0])
    for content in (b"no picture", b"", whole[0].read_bytes()[:60]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.png cannot be decoded: .*; remove or") as caught:
            read_image(str(file))
        assert " at 0x" not in str(caught.value) and "\n" not in str(caught.value)
    file.write_bytes(b"no picture")
    assert count_peculiarities([str(file)]) == {"no image": 1}


def test_of_several_pages_the_first_is_read_and_that_is_told(tmp_path):
    second = Image.new("RGB", (24, 16))
    file = saved(picture(), tmp_path / "a.tiff", save_all=True, append_images=[second])
    assert np.array_equal(np.asarray(read_image(file)), np.asarray(picture()))
    assert count_peculiarities([file]) == {"pages": 1}


def test_what_headers_and_names_tell_is_one_line_at_the_start(tmp_path, caplog):
    clear = Image.new("RGBA", (8, 8), (9, 9, 9, 0))
    dataset = folders(
        tmp_path,
        plain=(picture(), "png", {}),
        lying=(picture(), "png", {"exif": oriented(6)}),
        clear=(clear, "png", {}),
    )
    left = tmp_path / "train" / "left"
    saved(picture(), left / "more.gif")
    (left / "notes.txt").write_text("mine")
    (left / ".hidden.jpg").write_bytes(b"a cache")
    saved(picture(), tmp_path / "train" / "lost.png")
    (tmp_path / "val").mkdir()
    with caplog.at_level(logging.INFO, "prunekit"):
        data, again = dataset.load(), dataset.load()
    assert data.train.size == 6 and data.notes == again.notes
    assert data.notes == (
        "12 images: 4 turned as their EXIF orientation says, 4 transparent and put on white; "
        "left out: 1 .gif in train, 1 .txt in train, images in train itself, outside its "
        "folders: 1, val/, since test/ is there (dataset.val holds training images out)",
    )
    assert [record.getMessage() for record in caplog.records] == [f"dataset: {data.notes[0]}"]


def test_of_ordinary_folders_nothing_is_told(tmp_path):
    assert folders(tmp_path, plain=(picture(), "jpg", {})).load().notes == ()


def test_of_many_images_a_sample_of_the_headers_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(folder_module, "_HEADERS", 3)
    monkeypatch.setattr(
        folder_module, "count_peculiarities", lambda paths: read.extend(paths) or {"deep": 1}
    )
    images = {f"i{number}": (picture(), "png", {}) for number in range(2)}
    (note,) = folders(tmp_path, **images).load().notes
    assert 2 <= len(read) <= 3
    assert note == "8 images (headers of 3 were read): 1 of more than 8 bits and scaled"


def test_hidden_folders_are_no_classes(tmp_path, monkeypatch):
    dataset = folders(tmp_path / "images", plain=(picture(), "png", {}))
    for part in ("train", "test"):
        saved(picture(), tmp_path / "images" / part / ".ipynb_checkpoints" / "0.png")
        saved(picture(), tmp_path / "images" / part / "left" / ".thumbs" / "0.png")
    data = dataset.load()
    assert (data.classes, data.train.size, data.notes) == (2, 2, ())
    assert len(dataset.files()) == 4
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")  # a relative root begins with a dot
    relative = ImageFolder(root="../images", image_size=8, val=0, workers=0)
    assert relative.load().train.size == 2 and len(relative.files()) == 4


@pytest.mark.parametrize(
    ("left", "told"),
    [
        ((), r"/train/left holds no images; add"),
        (("a.jfif", "b.gif"), r"end in \.gif, \.jfif; add"),
    ],
)
def test_a_class_without_images_is_named_with_what_it_holds(tmp_path, left, told):
    dataset = folders(tmp_path, plain=(picture(), "png", {}))
    (tmp_path / "train" / "left" / "plain.png").unlink()
    for name in left:
        (tmp_path / "train" / "left" / name).write_bytes(b"")
    with pytest.raises(DataError, match=told):
        dataset.load()


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        ("train/right", "'right' is in .*/test, but not in train; add .* or remove it from test"),
        ("test/right", "'right' is in .*/train, but not in test; add .* or remove it from train"),
    ],
)
def test_a_class_that_is_missing_is_named_with_the_part_that_lacks_it(tmp_path, gone, told):
    dataset = folders(tmp_path, plain=(picture(), "png", {}))
    os.rename(tmp_path / gone, tmp_path / "elsewhere")
    with pytest.raises(DataError, match=told):
        dataset.load()


def test_sets_that_are_read_differently_now_are_other_images(tmp_path):
    """Runs on ordinary images stay the same runs."""
    plain = folders(tmp_path / "plain", a=(picture(), "png", {})).identity()
    assert {*plain} == {"files", "bytes", "content"}
    for name, image, options in (
        ("turned", picture(), {"exif": oriented(6)}),
        ("clear", picture().convert("RGBA"), {}),
        ("deep", Image.fromarray((RAMP * 65535).astype("uint16")), {}),
    ):
        marked = folders(tmp_path / name, a=(image, "png", options)).identity()
        assert marked["decoding"] == "upright, opaque, all bits"


def test_images_are_mirrored_unless_that_is_off(tmp_path):
    """Without mirroring, the dark half stays on the left; runs from before the setting go on."""
    half = Image.new("L", (32, 32), 255)
    half.paste(0, (0, 0, 16, 32))
    dataset = folders(tmp_path, **{f"i{n}": (half, "png", {}) for n in range(8)})
    for flip in (True, False):
        data = replace(dataset, flip=flip).load()
        images = torch.cat([x for x, _ in data.train.epoch(4, 0)])
        brighter = images[..., 4:].mean((1, 2, 3)) >= images[..., :4].mean((1, 2, 3))
        assert bool(brighter.all()) == (not flip)


def test_a_setting_that_was_added_leaves_old_runs_as_they_are(tmp_path):
    folders(tmp_path, plain=(picture(), "png", {}))
    plain = {"_target_": "prunekit.data.ImageFolder", "root": str(tmp_path)}
    start = StageInputs(None, None, tmp_path)
    known = [identity_of({"dataset": {**plain, **flip}}, start) for flip in ({}, {"flip": True})]
    assert known[0] == known[1]
    assert identity_of({"dataset": {**plain, "flip": False}}, start) != known[0]


def test_a_decoding_process_that_is_killed_is_one_line(tmp_path, monkeypatch):
    """The system kills what needs too much memory."""
    dataset = replace(folders(tmp_path, plain=(picture(), "png", {})), workers=1)
    data = dataset.load()
    monkeypatch.setattr("prunekit.data.folder_batches.read_image", lambda path: os._exit(9))
    with pytest.raises(DataError, match=r"was killed, .*memory.*; lower dataset\.workers"):
        list(data.test.epoch(2, None))
    with pytest.raises(RuntimeError, match="a mistake"), explain_lost_workers():
        raise RuntimeError("a mistake")
