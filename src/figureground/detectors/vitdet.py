"""ViTDet: a plain vision transformer, a pyramid made of its last map, and the heads of Mask R-CNN or its cascade.

Li, Mao, Girshick, He: Exploring plain vision transformer backbones for object detection. ECCV 2022. Written from the
paper.
"""

from typing import Any, ClassVar, Literal

from jaxtyping import Float
from pydantic import Field, model_validator
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from figureground.config import Config
from figureground.detectors.box_head import StageConfig
from figureground.detectors.cascade_mask_rcnn import STAGES
from figureground.detectors.mask_rcnn import SELF_TRAIN, TINY
from figureground.detectors.pooling import STRIDES
from figureground.detectors.rcnn import RCNN, RCNNConfig


class ViTConfig(Config):
    """Which transformer, in the sizes of DINO's; the default is ViT-B/16."""

    patch_size: Literal[4, 8, 16, 32] = Field(default=16, description="Side of a patch, in px (paper: 16).")
    width: int = Field(default=768, ge=8, description="Of a token (paper: 768).")
    depth: int = Field(default=12, ge=1, description="Blocks (paper: 12).")
    heads: int = Field(default=12, ge=1, description="Of the attention (paper: 12).")
    channels: int = Field(default=256, ge=8, description="Of each level of the pyramid (paper: 256).")

    @model_validator(mode="after")
    def _check(self) -> "ViTConfig":
        if self.width % self.heads:
            raise ValueError(f"A width of {self.width} cannot be shared out to {self.heads} heads.")
        return self


class ViTDetConfig(RCNNConfig):
    """ViTDet; the heads default to the cascade of CutLER's first round, one stage makes it Mask R-CNN."""

    detector: Literal["vitdet"] = "vitdet"
    backbone: ViTConfig = ViTConfig()
    stages: tuple[StageConfig, ...] = Field(
        default=STAGES, min_length=1, description="Of the box head: one, or those of a cascade (paper: both)."
    )


class ViTPyramid(nn.Module):
    """Feature maps of strides 4, 8, 16, 32 and 64 from a transformer's last map alone.

    The transformer has timm's names, which are DINO's: its weights fit as they are. Positions are resampled to the map.

    Reference:
        Li et al., ECCV 2022, sections 3 and A.2. Deviates: all blocks attend to the whole image, where the paper uses
        windows and a few global blocks to save memory, without relative positions and stochastic depth; the map is
        taken after the last norm, as DINO's features are.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.channels = config.channels
        self.trunk: Any = VisionTransformer(
            patch_size=config.patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            global_pool="",
            dynamic_img_size=True,
        )
        self.pyramid = nn.ModuleList(
            _level(config.patch_size, stride, config.width, config.channels) for stride in STRIDES[:-1]
        )

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C _ _"]]:
        """The five maps of normalised images whose sides are multiples of 32 px."""
        [last] = self.trunk.forward_intermediates(images, indices=1, norm=True, intermediates_only=True)
        maps = [level(last) for level in self.pyramid]
        return [*maps, functional.max_pool2d(maps[-1], 1, stride=2)]


def _level(patch_size: int, stride: int, width: int, channels: int) -> nn.Sequential:
    """From the stride of the patches to another: enlarged by steps of two, or pooled; then two convolutions."""
    layers: list[nn.Module] = []
    while patch_size > stride:
        if layers:
            layers += [LayerNorm2d(width), nn.GELU()]
        layers.append(nn.ConvTranspose2d(width, width // 2, 2, stride=2))
        width, patch_size = width // 2, patch_size // 2
    if patch_size < stride:
        layers.append(nn.MaxPool2d(stride // patch_size))
    for kernel in (1, 3):
        layers += [nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False), LayerNorm2d(channels)]
        width = channels
    return nn.Sequential(*layers)


class ViTDet(RCNN):
    """ViTDet.

    Presets: ``default`` is a cascade with the constants of CutLER's first round, ``mask_rcnn`` has one stage,
    ``self_train`` is for the later rounds, ``tiny`` learns on a CPU.

    Reference:
        Li et al., ECCV 2022. CutLER reports it and has not released how it was trained. Deviates: the heads are those
        of the other detectors; the paper's have more convolutions and layer norms.
    """

    PRESETS: ClassVar = {
        "default": ViTDetConfig(),
        "mask_rcnn": ViTDetConfig(stages=(StageConfig(),)),
        "self_train": ViTDetConfig(**SELF_TRAIN),
        "tiny": ViTDetConfig(backbone=ViTConfig(patch_size=8, width=96, depth=4, heads=3, channels=32), **TINY),
    }
    config: ViTDetConfig

    def make_backbone(self) -> nn.Module:
        """See :class:`figureground.detectors.rcnn.RCNN`."""
        return ViTPyramid(self.config.backbone)
