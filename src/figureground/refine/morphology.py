"""Morphology of masks."""

import torch
from jaxtyping import Bool
from torch import Tensor

from figureground.ops.components import label_components


def fill_holes(masks: Bool[Tensor, "M H W"]) -> Bool[Tensor, "M H W"]:
    """Add to each mask the background that no 4-connected path joins to the border of the image.

    Example:
        >>> ring = torch.ones(1, 3, 3, dtype=torch.bool)
        >>> ring[0, 1, 1] = False
        >>> fill_holes(ring).all().item()
        True
    """
    if masks.numel() == 0:
        return masks
    background = label_components(~masks)
    border = torch.cat([background[:, [0, -1]].flatten(1), background[:, :, [0, -1]].flatten(1)], 1)
    count = int(background.max()) + 1
    outside = torch.zeros(len(masks), count, dtype=torch.bool, device=masks.device).scatter_(1, border, True)
    outside[:, 0] = False  # the label of the mask itself
    return ~outside.gather(1, background.flatten(1)).view(masks.shape)
