"""Mask R-CNN.

He, Gkioxari, Dollár, Girshick: Mask R-CNN. ICCV 2017, as CutLER trains it. Written from the paper and from CutLER's
released constants.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from figureground.detectors.box_head import BoxHeadConfig, StageConfig
from figureground.detectors.mask_head import MaskHeadConfig
from figureground.detectors.rcnn import RCNN, RCNNConfig
from figureground.detectors.resnet import ResNetConfig, ResNetPyramid
from figureground.detectors.rpn import RPNConfig

# Small enough to learn drawn pictures of 96 px in minutes on one core.
TINY = {
    "rpn": RPNConfig(sizes=(12, 24, 48, 72, 96), samples=64, level_train=300, level_test=200, train=300, test=200),
    "box_head": BoxHeadConfig(width=128, samples=64),
    "mask_head": MaskHeadConfig(layers=2, channels=32),
    "short_side": None,
}
TINY_RESNET = ResNetConfig(arch="resnet18", norm="group", channels=32)
# What CutLER changes after the first round.
SELF_TRAIN = {"rpn": RPNConfig(nms=0.7, train=1000), "drop_loss": None}


class MaskRCNNConfig(RCNNConfig):
    """Mask R-CNN; the defaults are those of CutLER's first round."""

    detector: Literal["mask_rcnn"] = "mask_rcnn"
    backbone: ResNetConfig = ResNetConfig()
    stages: tuple[StageConfig] = Field(default=(StageConfig(),), description="Of the box head: one.")


class MaskRCNN(RCNN):
    """Mask R-CNN on a ResNet with a feature pyramid.

    Presets: ``default`` is CutLER's first round, ``self_train`` the later ones, ``tiny`` learns on a CPU.

    Reference:
        He et al., ICCV 2017. Deviates: as its parts do, each of which says so.
    """

    PRESETS: ClassVar = {
        "default": MaskRCNNConfig(),
        "self_train": MaskRCNNConfig(**SELF_TRAIN),
        "tiny": MaskRCNNConfig(backbone=TINY_RESNET, **TINY),
    }
    config: MaskRCNNConfig

    def make_backbone(self) -> nn.Module:
        """See :class:`figureground.detectors.rcnn.RCNN`."""
        return ResNetPyramid(self.config.backbone)
