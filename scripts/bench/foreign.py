"""Networks of other libraries, small and with random weights, and how each is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SIDE = 64


@dataclass(frozen=True)
class Foreign:
    """A network of another library, and the images and the arguments that it is called with."""

    build: Callable[[], nn.Module]
    library: str
    side: int = SIDE
    call: Callable[[Tensor], Any] = lambda images: images
    resizes: bool = True  # whether it takes images of other sizes
    outputs: str = ""  # a module whose outputs are compared, where what is behind it picks boxes


def yolo(name: str) -> Foreign:
    """Return a network of ultralytics, from its description."""

    def build() -> nn.Module:
        from ultralytics import YOLO

        model = YOLO(f"{name}.yaml").model
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        return model

    return Foreign(build, "ultralytics")


def hugging(kind: str, head: str = "ForImageClassification", **settings: Any) -> Foreign:
    """Return a network of transformers, from its own configuration or a smaller one."""
    side, resizes = settings.pop("side", SIDE), settings.pop("resizes", True)

    def build() -> nn.Module:
        import transformers

        values = {key: one(transformers) if callable(one) else one for key, one in settings.items()}
        config = getattr(transformers, f"{kind}Config")(**values)
        return getattr(transformers, f"{kind}{head}")(config)

    return Foreign(build, "transformers", side, lambda x: {"pixel_values": x}, resizes)


def vision(name: str, side: int = SIDE, images: bool = False, **settings: Any) -> Foreign:
    """Return a detector or segmenter of torchvision; detectors take a list of `images`."""

    def build() -> nn.Module:
        from torchvision import models

        home = models.detection if images else models.segmentation
        return getattr(home, name)(weights=None, weights_backbone=None, **settings)

    return Foreign(build, "torchvision", side, (lambda x: ([*x],)) if images else lambda x: x)


def backbone(kind: str, **settings: Any) -> Callable[[Any], Any]:
    """Return a configuration that stands inside another."""
    return lambda transformers: getattr(transformers, f"{kind}Config")(**settings)


_RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 48, 64],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
_STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]}
_TOKENS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": SIDE,
    "patch_size": 16,
}
_SWIN = {"image_size": SIDE, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
_OUT = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
_QUERIES = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_queries": 5,
}
_SMALL_QUERIES = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 64,
    "dim_feedforward": 64,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_queries": 5,
}

NETWORKS: dict[str, Foreign] = {
    **{name: yolo(name) for name in ("yolov5n", "yolov8n", "yolo11n")},
    **{name: yolo(name) for name in ("yolov8n-seg", "yolov8n-pose", "yolov8n-cls")},
    "hf resnet": hugging("ResNet", **_RESNET),
    "hf resnet bottleneck": hugging("ResNet", **{**_RESNET, "layer_type": "bottleneck"}),
    "hf convnext": hugging("ConvNext", **_STAGES),
    "hf convnextv2": hugging("ConvNextV2", **_STAGES),
    "hf regnet": hugging("RegNet", embedding_size=16, groups_width=8, **_STAGES),
    "hf mobilenet v1": hugging("MobileNetV1", depth_multiplier=0.25),
    "hf mobilenet v2": hugging("MobileNetV2", depth_multiplier=0.35),
    "hf efficientnet": hugging(
        "EfficientNet", width_coefficient=0.25, depth_coefficient=0.5, hidden_dim=320
    ),
    "hf levit": hugging(
        "Levit",
        image_size=SIDE,
        hidden_sizes=[16, 32, 48],
        num_attention_heads=[2, 4, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        resizes=False,
    ),
    "hf poolformer": hugging("PoolFormer", **_STAGES),
    "hf vit": hugging("ViT", **_TOKENS, resizes=False),
    "hf deit": hugging("DeiT", **_TOKENS, resizes=False),
    "hf beit": hugging("Beit", **_TOKENS, resizes=False),
    "hf swin": hugging("Swin", **_SWIN),
    "hf swinv2": hugging("Swinv2", **_SWIN, window_size=4),
    "hf segformer": hugging(
        "Segformer",
        "ForSemanticSegmentation",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=32,
    ),
    "hf detr": hugging(
        "Detr",
        "ForObjectDetection",
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone("ResNet", **_RESNET, **_OUT),
        **_QUERIES,
    ),
    "hf mask2former": hugging(
        "Mask2Former",
        "ForUniversalSegmentation",
        backbone_config=backbone(
            "Swin", **{**_SWIN, "depths": [1] * 4, "num_heads": [2] * 4}, **_OUT
        ),
        **_SMALL_QUERIES,
    ),
    "hf upernet": hugging(
        "UperNet",
        "ForSemanticSegmentation",
        backbone_config=backbone("ConvNext", **_STAGES, **_OUT),
        hidden_size=32,
        auxiliary_channels=16,
        auxiliary_in_channels=48,
    ),
    "hf dpt": hugging(
        "DPT",
        "ForSemanticSegmentation",
        **{**_TOKENS, "num_hidden_layers": 4},
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 16, 32, 32],
        fusion_hidden_size=16,
        resizes=False,
    ),
    "hf glpn": hugging(
        "GLPN",
        "ForDepthEstimation",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=16,
    ),
    "hf cvt": hugging("Cvt", embed_dim=[16, 32, 48], num_heads=[1, 2, 3], depth=[1, 2, 3]),
    "hf focalnet": hugging("FocalNet", image_size=SIDE, embed_dim=16, depths=[1, 1, 2, 1]),
    "hf pvt v2": hugging("PvtV2", hidden_sizes=[16, 32, 48, 64], num_attention_heads=[1, 2, 3, 4]),
    "hf dinov2": hugging(
        "Dinov2", **{k: v for k, v in _TOKENS.items() if k != "intermediate_size"}
    ),
    "hf textnet": hugging("TextNet"),
    "hf bit": hugging(
        "Bit",
        embedding_size=16,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        num_groups=4,
        layer_type="bottleneck",
    ),
    "hf mobilevit": hugging("MobileViT", image_size=SIDE),
    "fasterrcnn mobilenet": vision(
        "fasterrcnn_mobilenet_v3_large_320_fpn", 128, True, box_score_thresh=0.0
    ),
    "retinanet": vision("retinanet_resnet50_fpn", 128, True, score_thresh=0.0, min_size=128),
    "ssdlite": vision("ssdlite320_mobilenet_v3_large", 128, True, score_thresh=0.0),
    "fcos": vision("fcos_resnet50_fpn", 128, True, score_thresh=0.0, min_size=128),
    "deeplabv3": vision("deeplabv3_mobilenet_v3_large"),
    "lraspp": vision("lraspp_mobilenet_v3_large"),
    "fcn": vision("fcn_resnet50", aux_loss=True),
}


def images(side: int, seed: int = 0) -> Tensor:
    """Return two images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, side, side, generator=generator, dtype=torch.float64)
