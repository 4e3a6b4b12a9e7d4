"""Decode image files as they are meant: upright, opaque, and with all of their bits."""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from prunekit.data.files import irregular
from prunekit.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

# what a header tells -> what is done about it, behind a number of images
_TOLD = {
    "turned": "turned as their EXIF orientation says",
    "transparent": "transparent and put on white",
    "deep": "of more than 8 bits and scaled",
    "pages": "of several pages, of which the first is read",
    "too large": "of more pixels than Pillow decodes",
    "no image": "cannot be opened",
}
# earlier versions did not turn these, ignored transparency, and cut off numbers above 255
_READ_ANEW = frozenset({"turned", "transparent", "deep"})
_ORIENTATION = 0x0112  # tag of EXIF and TIFF; 1 is upright
_BITS = 258  # tag of TIFF: bits per sample
_WHITE = 65535  # of 16 bits
_PAGED = frozenset({"TIFF", "GIF", "WEBP", "PNG"})  # a second frame of others is a preview
_ADDRESS = re.compile(r" ?<[^<>]* at 0x[0-9a-f]+>")


def read_image(path: str) -> Image | Tensor:
    """Decode a file to an upright colour image without transparency.

    The orientation of EXIF is applied, and transparent images are put on white. Images of 8 bits
    come back as images of Pillow, deeper ones as floats (3, height, width) from 0 to 1: 16 bits
    divided by 65535, floats as they are. Raises DataError that names the file where it cannot be
    decoded, and for pixels whose white is not known: 32-bit integers, and floats outside 0 to 1.
    """
    from PIL import Image, ImageOps

    if not _is_regular(path):
        raise irregular(path)
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # about tags, and sizes that are decoded all the same
            image.load()
            with suppress(Exception):  # tags that cannot be read leave the image as it is stored
                ImageOps.exif_transpose(image, in_place=True)
            return _scaled(image, path) if _is_deep(image) else _opaque(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path} is not decoded, since it has more pixels than Pillow allows "
            f"({Image.MAX_IMAGE_PIXELS} and as many again); scale it down, or remove it"
        ) from error
    except Exception as error:  # Pillow raises many types for damaged files
        raise DataError(
            f"{path} cannot be decoded: {_reason(error)}; remove or replace it"
        ) from error


def count_peculiarities(paths: Iterable[str]) -> dict[str, int]:
    """Count the images that are not plain ones of 8 bits, by kind, from their headers alone."""
    counts = Counter(kind for path in paths for kind in _peculiarities(path))
    return {kind: counts[kind] for kind in _TOLD if counts[kind]}


def describe_peculiarities(counts: dict[str, int]) -> list[str]:
    """Return what is done about the images that `count_peculiarities` found, in words."""
    return [f"{count:,} {_TOLD[kind]}" for kind, count in counts.items()]


def read_anew(counts: dict[str, int]) -> bool:
    """Return whether some of the images were read differently by earlier versions."""
    return not _READ_ANEW.isdisjoint(counts)


def _peculiarities(path: str) -> list[str]:
    from PIL import Image

    if not _is_regular(path):
        return ["no image"]
    try:
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore")  # about damaged tags, too
            found = ["turned"] if _orientation(image) in range(2, 9) else []
            found += ["transparent"] if image.has_transparency_data else []
            found += ["deep"] if _is_deep(image) else []
            several = image.format in _PAGED and getattr(image, "n_frames", 1) > 1
            return [*found, "pages"] if several else found
    except Image.DecompressionBombError:
        return ["too large"]
    except Exception:  # Pillow raises many types for damaged files
        return ["no image"]


def _is_regular(path: str | Path) -> bool:
    """Return False for pipes and devices, from which reading may never end; True if it is gone."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True  # opening it says why


def _orientation(image: Any) -> int:
    # for a png without EXIF in front of its pixels, getexif would decode all pixels
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    return int(image.getexif().get(_ORIENTATION, 1))


def _is_deep(image: Image) -> bool:
    return image.mode.startswith(("I", "F"))


def _opaque(image: Image) -> Image:
    """Return a colour image of 8 bits, on white where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    colours = image.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    return Image.alpha_composite(white, colours).convert("RGB")


def _scaled(image: Any, path: str) -> Tensor:
    """Return a deep grey image as floats from 0 to 1."""
    from torchvision import tv_tensors

    values = torch.from_numpy(np.asarray(image).astype(np.float32))
    white = _white(image)
    if white is None:
        raise DataError(
            f"{path} holds 32-bit integers, and which of them is white is not known; save it with "
            "8 or 16 bits"
        )
    low, high = float(values.min()), float(values.max())  # nan where there is one
    if not 0 <= low <= high <= white:
        raise DataError(
            f"{path} holds numbers from {low:g} to {high:g}, but floats are read from 0 (black) "
            "to 1 (white) only; save it with 8 or 16 bits"
        )
    return tv_tensors.Image((values / white).repeat(3, 1, 1))


def _white(image: Any) -> int | None:
    """Return the value of white in a deep image; None where the format does not say it."""
    if image.mode == "F":
        return 1
    if image.mode == "I":  # 16 bits in these formats
        return _WHITE if image.format in ("PNG", "PPM") else None
    bits = getattr(image, "tag_v2", {}).get(_BITS, (16,))
    return int(2 ** int(bits[0] if isinstance(bits, tuple) else bits)) - 1


def _reason(error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "it has no format that Pillow knows"
    return " ".join(_ADDRESS.sub("", str(error)).split()) or type(error).__name__
