"""Figures as parts of a page: drawn as for a file, then put into the text."""

from __future__ import annotations

import base64
import io
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from prunekit.reporting.page.markup import Markup, element

Draw = Callable[[Path], object]

_COLOURS = 96  # of a small png: enough for points in a dozen colours with soft edges


def drawn(draw: Draw, says: str, whose: str = "") -> Markup:
    """An svg whose text stays text; `draw(path)` makes it, `says` describes it, `whose` the run."""
    import matplotlib

    about = f"{says}, {whose}" if whose else says
    # the salt: ids that no other figure of the page has
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": about}):
        text = _made(draw, "svg").decode()
    return _captioned(_bare(text, about), says)


def painted(draw: Draw, says: str, whose: str = "", width: int = 640) -> Markup:
    """A png in few colours, for figures of thousands of points."""
    from PIL import Image

    image = Image.open(io.BytesIO(_made(draw, "png"))).convert("RGB")
    if image.width > width:
        size = (width, round(image.height * width / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    small = io.BytesIO()
    image.quantize(_COLOURS).save(small, "png", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
    alt = f"{says}, {whose}" if whose else says
    return _captioned(element("img", src=source, alt=alt, width=str(image.width)), says)


def _made(draw: Draw, ending: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"figure.{ending}"
        draw(place)
        return place.read_bytes()


def _captioned(picture: Markup, says: str) -> Markup:
    return element("figure", picture, element("figcaption", says))


def _bare(text: str, says: str) -> Markup:
    """The svg alone: without the head of a file, metadata, and ids that nothing refers to."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"\s*\n\s*", "\n", text)
    label = element("title", says)
    return Markup(re.sub(r"(<svg[^>]*)>", rf'\1 role="img">{label}', text, count=1))
