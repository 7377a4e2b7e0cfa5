"""Anchors: the reference boxes of the region proposal network, the same at every place of a feature map."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def anchors(
    map_size: tuple[int, int], stride: int, size: float, ratios: Sequence[float], device: torch.device
) -> Float[Tensor, "A 4"]:
    """Anchors of one feature map, row by row, the ratios of a place side by side.

    Args:
        map_size: ``(height, width)`` of the map.
        stride: Pixels from one place to the next; the first anchors are centred at the corner of the image.
        size: Side, in pixels, of the square with the area of an anchor.
        ratios: Height over width of the anchors.
        device: Where to make them.

    Returns:
        xyxy, in pixels; those at the border reach out of the image.

    Reference:
        Ren et al., Faster R-CNN, NeurIPS 2015, section 3.1.1; one size a level: Lin et al., FPN, CVPR 2017, section
        4.1. Not rounded, where torchvision's are.
    """
    heights = size * torch.tensor(ratios, device=device).sqrt()
    widths = size**2 / heights
    cell = torch.stack([-widths, -heights, widths, heights], dim=1) / 2
    y, x = (torch.arange(length, device=device) * stride for length in map_size)
    places = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1).reshape(-1, 1, 2)
    return (places.tile(2) + cell).flatten(0, 1)
