"""Run-length encoding of masks, as COCO files hold it."""

from typing import Any, TypedDict

import numpy as np
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
    return [_encode_one(mask) for mask in masks]


def _encode_one(mask: Bool[Tensor, "H W"]) -> RLE:
    height, width = mask.shape
    # Column by column, as COCO counts. The runs are found here, a byte a pixel: pycocotools takes four more.
    columns = mask.T.contiguous().cpu().flatten().numpy()
    ends = [*(np.flatnonzero(columns[1:] != columns[:-1]) + 1), columns.size]
    outside = [0] if columns.size and columns[0] else []  # the first run is one of zeros
    counts = [*outside, *np.diff(ends, prepend=0).tolist()]
    runs: Any = {"size": [height, width], "counts": counts}
    rle: Any = coco_mask.frPyObjects(runs, height, width)
    return {"size": list(rle["size"]), "counts": rle["counts"].decode("ascii")}


def decode(rles: list[RLE]) -> Bool[Tensor, "M H W"]:
    """Decode masks of one image; all must have the same size."""
    if not rles:
        return torch.zeros((0, 0, 0), dtype=torch.bool)
    encoded: Any = [{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in rles]
    columns = coco_mask.decode(encoded)
    return torch.from_numpy(columns).permute(2, 0, 1).contiguous().bool()
