"""Areas, overlaps, boxes and resizing of boolean masks."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional


def masks_to_boxes(masks: Bool[Tensor, "M H W"]) -> Float[Tensor, "M 4"]:
    """Extent of each mask as xyxy, half-open; an empty mask gives the empty box ``(0, 0, 0, 0)``.

    Example:
        >>> masks_to_boxes(torch.tensor([[[False, True], [False, True]]])).tolist()
        [[1.0, 0.0, 2.0, 2.0]]
    """
    # The largest byte of a row or column: what `any` says, many times faster on a CPU.
    values = masks.view(torch.uint8)
    y1, y2 = _extent(values.amax(dim=2).bool())
    x1, x2 = _extent(values.amax(dim=1).bool())
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def mask_iou(left: Bool[Tensor, "M H W"], right: Bool[Tensor, "K H W"]) -> Float[Tensor, "M K"]:
    """Intersection over union of every pair; 0 where both masks are empty."""
    a, b = left.flatten(1).float(), right.flatten(1).float()
    intersection = a @ b.T
    union = a.sum(1)[:, None] + b.sum(1)[None] - intersection
    return intersection / union.clamp(min=1)


def resize_masks(masks: Bool[Tensor, "M h w"], size: tuple[int, int]) -> Bool[Tensor, "M H W"]:
    """Resize masks to ``size = (height, width)``: bilinear with pixel centres aligned, then >= 0.5.

    Downscaling is antialiased, so that a thin object shrinks evenly instead of vanishing by luck of the grid.
    """
    if tuple(masks.shape[1:]) == tuple(size):
        return masks
    if masks.shape[0] == 0:
        return masks.new_zeros((0, *size))
    if masks.device.type == "cpu":
        # In bytes: a mask of a hundred million pixels then takes a hundred megabytes, not four hundred.
        grey = functional.interpolate(masks[:, None].byte() * 255, size=size, mode="bilinear", antialias=True)
        return grey[:, 0] >= 128
    soft = functional.interpolate(masks[:, None].float(), size=size, mode="bilinear", antialias=True)
    return soft[:, 0] >= 0.5


def mask_parents(masks: Bool[Tensor, "M H W"], coverage: float = 0.9) -> list[int | None]:
    """The instance that each instance is a part of.

    A is part of the smallest B that holds at least ``coverage`` of A and is not held by A to the same degree. The
    relation is read off the masks, so it can be asked after refinement and for masks of any method.

    Returns:
        For each mask the index of its parent; ``None`` for a whole.

    Reference:
        Cao et al., HASSOD, NeurIPS 2023, section 3.2 (0.9). Of equally small parents the first is taken.
    """
    flat = masks.flatten(1).float()
    areas = flat.sum(1)
    # held[a, b]: share of a inside b.
    held = (flat @ flat.mT) / areas.clamp(min=1)[:, None]
    holds = (held >= coverage) & (held.mT < coverage)
    found: list[int | None] = []
    for row in holds:
        sizes = torch.where(row, areas, torch.inf)
        found.append(int(sizes.argmin()) if bool(row.any()) else None)
    return found


def _extent(occupied: Bool[Tensor, "M L"]) -> tuple[Tensor, Tensor]:
    length = occupied.shape[1]
    position = torch.arange(length, device=occupied.device)
    first = torch.where(occupied, position, length).amin(1)
    last = torch.where(occupied, position + 1, 0).amax(1)
    return torch.where(last > 0, first, 0), last
