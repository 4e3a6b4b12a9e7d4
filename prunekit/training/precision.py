"""Number formats: which ones there are, what they come to, and how quick a device is at them."""

from __future__ import annotations

import torch

LAYOUT = torch.channels_last  # of images and of the weights of convolutions, in training
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # precisions of autocast
_PROBES = {"bfloat16": "_is_mkldnn_bf16_supported", "float16": "_is_mkldnn_fp16_supported"}


def about_precision(precision: str, kind: str) -> str | None:
    """A line where a CPU has no convolutions of this precision and works around that.

    ResNet-20 takes eleven times as long in bfloat16 as in float32 on a CPU with AVX2 alone. `kind`
    is a device's type. Where torch cannot tell, nothing is said.
    """
    if kind != "cpu" or precision not in _PROBES:
        return None
    probe = getattr(torch.ops.mkldnn, _PROBES[precision], None)
    if probe is None or probe():
        return None
    return (
        f"precision={precision}: this CPU has no convolutions of that kind, so that training "
        "takes several times as long as with precision=float32"
    )


def numbers(precision: str, kind: str) -> str:
    """What training in that precision comes to on a device of that kind: "float32, channels_last".

    On a GPU, torch lets convolutions in float32 round their inputs to tf32 unless that is switched
    off: ten bits of mantissa, not 23.
    """
    rounds = kind == "cuda" and precision == "float32" and torch.backends.cudnn.allow_tf32
    return f"{'tf32' if rounds else precision}, {str(LAYOUT).removeprefix('torch.')}"
