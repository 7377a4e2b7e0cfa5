"""Which cell of SOLO's grids stands for which object, and what its mask is compared with.

Wang, Kong, Shen, Jiang, Li: SOLO: Segmenting objects by locations. ECCV 2020, section 3.3. Written from the paper.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from figureground.detectors.targets import Truth

# Pixels from one place of the masks to the next.
MASK_STRIDE = 4


@torch.no_grad()
def assign(
    truth: Truth,
    size: tuple[int, int],
    grids: Sequence[int],
    ranges: Sequence[tuple[float, float]],
    centre: float,
) -> tuple[Int[Tensor, "N"], Bool[Tensor, "N"]]:
    """The object of each cell: of those whose centre region it touches, on a level for their size, the smallest.

    The centre region lies around the centre of mass of an object's mask and is ``centre`` of its box's sides wide and
    high; of the cells that it touches, those count that are at most one away from the centre's own.

    Args:
        truth: The objects of an image.
        size: ``(height, width)`` of the batch, over which the grids are laid.
        grids: Cells on a side, level by level.
        ranges: Least and greatest square root of the area of a box, in px, of the objects of each level.
        centre: See above.

    Returns:
        An object for each cell of all levels, each row by row; whether it is one: the others are background.

    Reference:
        Wang et al., ECCV 2020, section 3.3.1. Deviates: where several objects claim a cell the smallest has it; in the
        published code its category is that of the last one and its mask is to be like those of all. Objects that cover
        half of no place of the masks have no cell.
    """
    masks, boxes = truth.masks, truth.boxes
    areas = masks.flatten(1).sum(1)
    # The smallest first; one that is not there stands last.
    order = areas.sort(stable=True).indices
    sides = boxes[order, 2:] - boxes[order, :2]
    extents, half = sides.prod(1).sqrt(), centre * sides / 2
    middles = _centres_of_mass(masks[order])
    seen = shrink(masks[order]).flatten(1).any(1)
    index, positive = [], []
    for side, (low, high) in zip(grids, ranges, strict=True):
        per_px = side / boxes.new_tensor([size[1], size[0]])
        cell = (middles * per_px).floor()
        first = torch.maximum(((middles - half) * per_px).floor(), cell - 1)
        last = torch.minimum(((middles + half) * per_px).floor(), cell + 1)
        places = torch.arange(side, device=boxes.device)[:, None]
        # (M, side, 2): whether a column, a row is one of the object's.
        within = (places >= first[:, None]) & (places <= last[:, None])
        fits = seen & (extents >= low) & (extents <= high)
        claimed = within[:, :, None, 1] & within[:, None, :, 0] & fits[:, None, None]
        ranks = torch.arange(len(order) + 1, device=boxes.device)[:, None, None]
        claimed = torch.cat([claimed, torch.ones_like(ranks[:1], dtype=torch.bool).expand(1, side, side)])
        rank = torch.where(claimed, ranks, len(order)).amin(0).flatten()
        index.append(functional.pad(order, (0, 1))[rank])
        positive.append(rank < len(order))
    return torch.cat(index), torch.cat(positive)


def shrink(masks: Bool[Tensor, "M H W"]) -> Bool[Tensor, "M h w"]:
    """Masks at the stride of the predicted ones: where at least half of a place is the object's."""
    share = functional.avg_pool2d(masks[:, None].float(), MASK_STRIDE, ceil_mode=True, count_include_pad=False)
    return share[:, 0] >= 0.5


def fill_boxes(boxes: Float[Tensor, "M 4"], size: tuple[int, int]) -> Bool[Tensor, "M h w"]:
    """Places, at the stride of the predicted masks, that boxes touch.

    Args:
        boxes: xyxy, in px.
        size: ``(height, width)`` of the map.
    """
    low, high = boxes[:, :2] / MASK_STRIDE, boxes[:, 2:] / MASK_STRIDE
    y, x = (torch.arange(length, device=boxes.device) for length in size)
    rows = (y + 1 > low[:, 1:]) & (y < high[:, 1:])
    columns = (x + 1 > low[:, :1]) & (x < high[:, :1])
    return rows[:, :, None] & columns[:, None, :]


def _centres_of_mass(masks: Bool[Tensor, "M H W"]) -> Float[Tensor, "M 2"]:
    """In px, x first; the corner of an image for an empty mask."""
    area = masks.flatten(1).sum(1).clamp(min=1)
    y, x = (torch.arange(length, device=masks.device) + 0.5 for length in masks.shape[1:])
    # No product of matrices, which mixed precision would round.
    return torch.stack([(masks.sum(1) * x).sum(1), (masks.sum(2) * y).sum(1)], dim=1) / area[:, None]
