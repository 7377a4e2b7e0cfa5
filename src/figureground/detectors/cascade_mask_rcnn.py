"""Cascade Mask R-CNN: three box heads, each beginning where the one before ended and asking for more overlap.

Cai, Vasconcelos: Cascade R-CNN: delving into high quality object detection. CVPR 2018; TPAMI 2019, section 5, with
masks, as CutLER trains it. Written from the papers and from CutLER's released constants.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import nn

from figureground.detectors.box_head import StageConfig
from figureground.detectors.mask_rcnn import SELF_TRAIN, TINY, TINY_RESNET
from figureground.detectors.rcnn import RCNN, RCNNConfig
from figureground.detectors.resnet import ResNetConfig, ResNetPyramid

STAGES = (
    StageConfig(iou=0.5, weights=(10, 10, 5, 5)),
    StageConfig(iou=0.6, weights=(20, 20, 10, 10)),
    StageConfig(iou=0.7, weights=(30, 30, 15, 15)),
)


class CascadeMaskRCNNConfig(RCNNConfig):
    """Cascade Mask R-CNN; the defaults are those of CutLER's first round."""

    detector: Literal["cascade_mask_rcnn"] = "cascade_mask_rcnn"
    backbone: ResNetConfig = ResNetConfig()
    stages: tuple[StageConfig, ...] = Field(
        default=STAGES, min_length=2, description="Of the box head, each stricter than the one before (paper: 3)."
    )


class CascadeMaskRCNN(RCNN):
    """Cascade Mask R-CNN on a ResNet with a feature pyramid.

    Presets: ``default`` is CutLER's first round, ``self_train`` the later ones, ``tiny`` learns on a CPU.

    Reference:
        Cai and Vasconcelos, CVPR 2018. As in the published implementations, the mask head learns from the regions of
        the first stage and is used on the boxes of the last.
    """

    PRESETS: ClassVar = {
        "default": CascadeMaskRCNNConfig(),
        "self_train": CascadeMaskRCNNConfig(**SELF_TRAIN),
        "tiny": CascadeMaskRCNNConfig(backbone=TINY_RESNET, **TINY),
    }
    config: CascadeMaskRCNNConfig

    def make_backbone(self) -> nn.Module:
        """See :class:`figureground.detectors.rcnn.RCNN`."""
        return ResNetPyramid(self.config.backbone)
