"""Run-length encoding of masks, as COCO files hold it."""

from typing import Any, TypedDict

import torch
from jaxtyping import Bool
from pycocotools import mask as coco_mask
from torch import Tensor


class RLE(TypedDict):
    """A compressed mask: ``size`` is ``[height, width]``, ``counts`` the compressed runs as text."""

    size: list[int]
    counts: str


def encode(masks: Bool[Tensor, "M H W"]) -> list[RLE]:
    """Encode masks of one image."""
    # Column by column, as COCO counts; one copy and no more, since masks of large photographs are large.
    columns = masks.permute(0, 2, 1).contiguous().cpu().view(torch.uint8).numpy().transpose(2, 1, 0)
    encoded: Any = coco_mask.encode(columns)
    return [{"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")} for rle in encoded]


def decode(rles: list[RLE]) -> Bool[Tensor, "M H W"]:
    """Decode masks of one image; all must have the same size."""
    if not rles:
        return torch.zeros((0, 0, 0), dtype=torch.bool)
    encoded: Any = [{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in rles]
    columns = coco_mask.decode(encoded)
    return torch.from_numpy(columns).permute(2, 0, 1).contiguous().bool()
