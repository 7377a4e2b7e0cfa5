"""From boxes to masks.

He, Gkioxari, Dollár, Girshick: Mask R-CNN. ICCV 2017. Written from the paper.
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torchvision.ops import roi_align

from figureground.config import Config
from figureground.detectors.losses import mask_loss
from figureground.detectors.matching import Matches
from figureground.detectors.pooling import pool
from figureground.detectors.targets import Truth

# Pixels of pasted masks at a time, before they are booleans: 256 MB.
_PASTED_AT_ONCE = 2**26


class MaskHeadConfig(Config):
    """Size of the mask head."""

    pool: int = Field(default=14, ge=1, description="Side of a box's features; its mask is twice as fine (paper: 14).")
    layers: int = Field(default=4, ge=1, description="3x3 convolutions before the enlargement (paper: 4).")
    channels: int = Field(default=256, ge=1, description="Of each (paper: 256).")


class MaskHead(nn.Module):
    """Convolutions, an enlargement to twice the side, and a mask for each category.

    Args:
        config: Its size.
        channels: Of the feature maps.
        categories: How many masks a box has.
    """

    def __init__(self, config: MaskHeadConfig, channels: int, categories: int) -> None:
        super().__init__()
        self.config = config
        widths = [channels] + [config.channels] * config.layers
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in itertools.pairwise(widths)
        )
        self.enlarge = nn.ConvTranspose2d(config.channels, config.channels, 2, stride=2)
        self.predictor = nn.Conv2d(config.channels, categories, 1)

    def forward(
        self, maps: Sequence[Float[Tensor, "B C _ _"]], boxes: list[Float[Tensor, "_ 4"]], labels: Int[Tensor, "R"]
    ) -> Float[Tensor, "R s s"]:
        """Logits of the mask of each box, for the category it is labelled with, in float32."""
        x = pool(maps, boxes, self.config.pool)
        for conv in self.convs:
            x = conv(x).relu()
        logits = self.predictor(self.enlarge(x).relu())
        return logits[torch.arange(len(labels), device=labels.device), labels].float()

    def losses(
        self,
        maps: Sequence[Float[Tensor, "B C _ _"]],
        boxes: Sequence[Float[Tensor, "_ 4"]],
        matched: Sequence[Matches],
        truths: Sequence[Truth],
    ) -> dict[str, Tensor]:
        """Loss of the regions that stand for an object.

        Args:
            maps: The pyramid from P2 on.
            boxes: Regions of each image.
            matched: What they stand for.
            truths: The objects.
        """
        positive = [own[matches.positive] for own, matches in zip(boxes, matched, strict=True)]
        indices = [matches.index[matches.positive] for matches in matched]
        pairs = list(zip(truths, indices, strict=True))
        logits = self(maps, positive, torch.cat([truth.labels[index] for truth, index in pairs]))
        side = logits.shape[-1]
        targets = [crop(t.masks, own, index, side) for (t, index), own in zip(pairs, positive, strict=True)]
        weights = torch.cat([truth.weights[index] for truth, index in pairs])
        return {"mask": mask_loss(logits, torch.cat(targets), weights)}


@torch.no_grad()
def crop(
    masks: Bool[Tensor, "M H W"], boxes: Float[Tensor, "R 4"], index: Int[Tensor, "R"], side: int
) -> Bool[Tensor, "R {side} {side}"]:
    """What each box shows of its mask, resampled to a square: where at least half of a cell is the object's."""
    regions = torch.cat([index[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks[:, None].float(), regions, side, sampling_ratio=0, aligned=True)[:, 0] >= 0.5


@torch.no_grad()
def paste(
    probabilities: Float[Tensor, "M s s"], boxes: Float[Tensor, "M 4"], size: tuple[int, int]
) -> Bool[Tensor, "M H W"]:
    """Masks of boxes laid into an image: bilinear, zero around the box, then >= 0.5.

    Args:
        probabilities: Of each box, in its own square.
        boxes: Where they belong, in pixels.
        size: ``(height, width)`` of the image.

    Reference:
        He et al., ICCV 2017, section 3.1. Bilinear interpolation is a product of one matrix for the rows and one for
        the columns, which takes half the time of sampling pixel by pixel and no grid.
    """
    height, width = size
    masks = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    at_once = max(1, _PASTED_AT_ONCE // (height * width))
    with torch.autocast(boxes.device.type, enabled=False):
        for first in range(0, len(boxes), at_once):
            part = slice(first, first + at_once)
            x1, y1, x2, y2 = boxes[part].unbind(1)
            rows, columns = (
                _interpolation(low, high, length, probabilities.shape[-1])
                for low, high, length in ((y1, y2, height), (x1, x2, width))
            )
            masks[part] = rows @ probabilities[part].float() @ columns.mT >= 0.5
    return masks


def _interpolation(low: Float[Tensor, "M"], high: Float[Tensor, "M"], pixels: int, side: int) -> Tensor:
    """Weight at the centre of each pixel of each of ``side`` cells from ``low`` to ``high``: ``(M, pixels, side)``."""
    centres = torch.arange(pixels, device=low.device) + 0.5
    places = (centres - low[:, None]) / (high - low)[:, None] * side - 0.5
    return (1 - (places[:, :, None] - torch.arange(side, device=low.device)).abs()).clamp(min=0)
