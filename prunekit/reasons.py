"""The reasons that torch and Python give for an error, in plain words."""

from __future__ import annotations

import re

_KINDS = {"str": "text", "NoneType": "null", "list": "a list", "dict": "a mapping", "bool": "true"}
# what torch or Python says -> the same for somebody who reads neither
_PLAIN = tuple(
    (re.compile(pattern), words)
    for pattern, words in (
        (
            r"input size per channel: \((\d+ x \d+).*?\)\. Kernel size: \((\d+ x \d+).*?\)",
            r"a kernel of \2 is larger than the maps of \1 that it gets",
        ),
        (
            r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)",
            r"a linear layer reads \2 values and gets \1",
        ),
        (
            r"expected input.*? to have (\d+) channels, but got (\d+) channels",
            r"a convolution reads \1 channels and gets \2",
        ),
        (r"Output size is too small", "the maps become smaller than one pixel"),
        (r"Expected more than 1 value per channel", "a norm layer gets a single value"),
        (
            r"not enough values to unpack \(expected (\d+), got (\d+)\)",
            r"\1 values are needed, not \2",
        ),
        (r"too many values to unpack \(expected (\d+).*\)", r"only \1 values are needed"),
        (r"size mismatch|shape '.*' is invalid|must match the size", "sizes do not fit each other"),
        (r"must be tuple of ints", "a size is no whole number"),
        (
            r"[Tt]rying to create tensor with negative dimension (-\d+)",
            r"a size of \1 is below zero",
        ),
        (
            r"not enough memory|out of memory|allocate memory|[Ss]torage size calculation overflow",
            "it needs more memory than there is",
        ),
        (
            r"index (?:.* )?(?:is )?out of (?:bounds|range)",
            "a position lies outside of what it counts",
        ),
        (r"unexpected keyword argument '(\w+)'", r"\1 is no argument of it"),
        (r"missing .* required .*argument.*?: (.+)", r"it needs \1"),
    )
)


def reason_of(error: BaseException) -> str:
    """Return in plain words why code of torch, Python or a class of the user's own failed.

    The first line of an error that says so itself comes back as it is.
    """
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    for pattern, words in _PLAIN:
        if found := pattern.search(text):
            return found.expand(words)
    if kinds := re.search(r"not supported between instances of '(\w+)' and '(\w+)'", text):
        first, second = (_KINDS.get(kind, "a number") for kind in kinds.groups())
        return f"{first} stands where {second} is needed"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, KeyError):
        return f"{text} is missing"
    if isinstance(error, TypeError | AttributeError) and text:
        return f"a value has another type than is needed ({text})"
    return text or "a value is not one that it takes"
