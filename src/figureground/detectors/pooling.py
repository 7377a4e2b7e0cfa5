"""Features of boxes, each from the level of the pyramid that fits its size."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torchvision.ops import roi_align

# Pixels from one place to the next on P2 to P6; regions are pooled from all but the last.
STRIDES = (4, 8, 16, 32, 64)
_LEVELS = 4
# A box of this side belongs to P4, one of half the side to P3.
_CANONICAL_SIDE, _CANONICAL_LEVEL = 224, 2


def pool(
    maps: Sequence[Float[Tensor, "B C _ _"]], boxes: Sequence[Float[Tensor, "_ 4"]], size: int
) -> Float[Tensor, "R C {size} {size}"]:
    """Features of the boxes of a batch, one image after the other.

    Args:
        maps: The pyramid from P2 on.
        boxes: Of each image, in pixels.
        size: Side of the result.

    Reference:
        Levels: Lin et al., FPN, CVPR 2017, equation 1. RoIAlign: He et al., Mask R-CNN, ICCV 2017, section 3, with
        pixel centres at half coordinates and as many samples as the box has places. torchvision's
        ``MultiScaleRoIAlign`` puts the centres elsewhere.
    """
    # Each box with the number of its image before it.
    regions = torch.cat([functional.pad(own, (1, 0), value=float(image)) for image, own in enumerate(boxes)])
    sides = ((regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])).sqrt()
    levels = (_CANONICAL_LEVEL + (sides / _CANONICAL_SIDE + 1e-8).log2()).floor().clamp(0, _LEVELS - 1)
    pooled = maps[0].new_zeros(len(regions), maps[0].shape[1], size, size)
    for level, (features, stride) in enumerate(zip(maps, STRIDES[:_LEVELS], strict=False)):
        chosen = torch.nonzero(levels == level)[:, 0]
        # A level without boxes is pooled from as well: every map then has a gradient, on every process.
        pooled[chosen] = roi_align(features, regions[chosen], size, 1 / stride, sampling_ratio=0, aligned=True)
    return pooled
