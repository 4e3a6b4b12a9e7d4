"""The networks of the coverage tables."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

LARGE = 100e6  # parameters: checked on smaller images, where the network takes them
RIGID = (
    "vit_",
    "swin",
    "maxvit",
    "inception",
)  # networks of torchvision that take one image size only
TIMM = (  # one small member of each family of CNNs, that is of each file of models
    "mobileone_s0",
    "convmixer_768_32",
    "convnext_zepto_rms",
    "cs3darknet_focus_s",
    "cspnext_tiny",
    "densenet121",
    "dla46x_c",
    "dpn48b",
    "mobilenetv2_050",
    "fasternet_t0",
    "ghostnet_050",
    "hardcorenas_b",
    "hgnetv2_b0",
    "hrnet_w18_small",
    "inception_next_atto",
    "inception_resnet_v2",
    "inception_v3",
    "inception_v4",
    "lcnetv2_small",
    "mambaout_femto",
    "mobilenetv3_small_050",
    "mobilenetv5_base",
    "nasnetalarge",
    "nf_regnet_b0",
    "pnasnet5large",
    "rdnet_tiny",
    "regnetx_002",
    "repghostnet_050",
    "repvit_m1",
    "res2next50",
    "resnest14d",
    "resnet10t",
    "resnetv2_18",
    "rexnet_100",
    "selecsls42",
    "legacy_seresnet18",
    "skresnet18",
    "starnet_s050",
    "tresnet_m",
    "vgg11",
    "ese_vovnet19b_slim_dw",
    "legacy_xception",
    "xception41p",
)


@dataclass(frozen=True)
class Subject:
    """A classifier with random weights, built by its library, and the side of its images."""

    name: str
    side: int

    @classmethod
    def named(cls, name: str) -> Subject:
        """Return the classifier of a name of torchvision, or of `timm/` and a name of timm."""
        if name.startswith("timm/"):
            import timm

            return cls(name, timm.get_pretrained_cfg(name[5:]).input_size[-1])
        return cls(name, 299 if name == "inception_v3" else 224)

    def build(self) -> nn.Module:
        """Return the network; auxiliary heads are on."""
        if self.name.startswith("timm/"):
            import timm

            return timm.create_model(self.name[5:])
        from torchvision.models import get_model

        extra = {"init_weights": False} if self.name in ("googlenet", "inception_v3") else {}
        return get_model(self.name, weights=None, **extra)

    def sides(self, params: int) -> tuple[int, int]:
        """Return the sides of the images it is checked on, in single and in double precision."""
        if self.name.startswith((*RIGID, "timm/")):
            return self.side, self.side
        return (128, 96) if params > LARGE else (self.side, 128)


def torchvision_names() -> list[str]:
    """Return the names of all classifiers of torchvision."""
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def classes(model: nn.Module) -> int:
    """Return the number of classes, which is the same for all."""
    return 1000
