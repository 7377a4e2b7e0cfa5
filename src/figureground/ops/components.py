"""Connected components of boolean maps, 4-connected, as the published cuts use them."""

from typing import Any

import torch
from jaxtyping import Bool, Int
from scipy import ndimage
from torch import Tensor
from torch.nn import functional


def label_components(masks: Bool[Tensor, "B H W"]) -> Int[Tensor, "B H W"]:
    """Number the 4-connected components of each mask 1, 2, ... in reading order; 0 is outside.

    SciPy labels on the CPU; on an accelerator labels spread by max-pooling until nothing changes.
    """
    if masks.device.type == "cpu":
        labelled = torch.zeros(masks.shape, dtype=torch.int64)
        for index, mask in enumerate(masks.numpy()):
            numbers: Any = ndimage.label(mask)
            labelled[index] = torch.from_numpy(numbers[0])
        return labelled
    return spread_labels(masks)


def component_at(masks: Bool[Tensor, "B H W"], seeds: Int[Tensor, "B"]) -> Bool[Tensor, "B H W"]:
    """Keep the component of each mask that contains the flat index ``seeds``; empty if the seed lies outside."""
    labels = label_components(masks)
    at_seed = labels.flatten(1).gather(1, seeds[:, None])[:, :, None]
    return (labels == at_seed) & masks


def split_components(masks: Bool[Tensor, "B H W"], least: float = 1) -> tuple[Bool[Tensor, "M H W"], Int[Tensor, "M"]]:
    """Every 4-connected component of at least ``least`` pixels as a mask of its own, and whose mask it came from."""
    labels = label_components(masks)
    highest = labels.flatten(1).amax(1)
    # One numbering for all masks: those of mask b come after those of the masks before it.
    numbered = torch.where(labels > 0, labels + (highest.cumsum(0) - highest)[:, None, None], 0)
    areas = torch.bincount(numbered.flatten(), minlength=int(highest.sum()) + 1)[1:]
    kept = (areas >= least).nonzero()[:, 0]
    owners = torch.repeat_interleave(torch.arange(len(masks), device=masks.device), highest)[kept]
    return numbered[owners] == (kept + 1)[:, None, None], owners


def spread_labels(masks: Bool[Tensor, "B H W"]) -> Int[Tensor, "B H W"]:
    """The same numbering by tensor operations alone, for any device."""
    height, width = masks.shape[1:]
    # Every pixel starts with a number of its own, larger for earlier pixels: the maximum is the first of a component.
    count = height * width
    own = torch.arange(count, 0, -1, device=masks.device, dtype=torch.float64).view(1, height, width)
    labels = torch.where(masks, own, 0.0)
    while True:
        before = labels
        rows = functional.max_pool2d(labels[:, None], (3, 1), stride=1, padding=(1, 0))[:, 0]
        columns = functional.max_pool2d(labels[:, None], (1, 3), stride=1, padding=(0, 1))[:, 0]
        labels = torch.where(masks, torch.maximum(rows, columns), 0.0)
        # Pointer jumping: a label is the number of a pixel, whose own label may already be older.
        older = labels.flatten(1).gather(1, (count - labels).long().clamp(max=count - 1).flatten(1)).view_as(labels)
        labels = torch.where(masks, torch.maximum(labels, older), 0.0)
        if torch.equal(labels, before):
            break
    first = masks & (labels == own)
    rank = first.flatten(1).cumsum(1)
    numbered = rank.gather(1, (count - labels).long().clamp(max=count - 1).flatten(1)).view_as(labels)
    return torch.where(masks, numbered, 0)
