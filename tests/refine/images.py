"""Small images with a known answer, shared by the tests of this folder."""

import numpy as np
import torch


def iou(left, right) -> float:
    left, right = np.asarray(left, bool), np.asarray(right, bool)
    return (left & right).sum() / max((left | right).sum(), 1)


def two_tones(height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A noisy image of a bright box on dark, a mask too large by a few pixels, and the box."""
    box = torch.zeros(height, width, dtype=torch.bool)
    box[height // 4 : -height // 4, width // 4 : -width // 4] = True
    noise = torch.randint(0, 12, (height, width, 3), generator=torch.Generator().manual_seed(0))
    image = (torch.where(box, 200, 40)[:, :, None] + noise).to(torch.uint8)
    mask = torch.zeros_like(box)
    mask[height // 4 - 2 : -height // 4 + 2, width // 4 - 3 : -width // 4 + 1] = True
    return image, mask, box


DEGENERATE_SIZES = [(1, 1), (1, 17), (17, 1), (2, 3), (24, 40)]
