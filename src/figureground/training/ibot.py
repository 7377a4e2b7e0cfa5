"""iBOT: patches of a view are hidden from the student, which has to say what the teacher sees there.

Zhou et al.: iBOT: image BERT pre-training with online tokenizer. ICLR 2022. Written from the paper.
"""

import math
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from figureground.config import Config

# A block of hidden patches has at least so many (BEiT), and a shape between this and its inverse.
_LEAST = 16
_SHAPE = 0.3


class IbotConfig(Config):
    """The loss of hidden patches beside that of whole views."""

    weight: float = Field(default=0.0, ge=0, description="Of the loss of hidden patches; 0: none, DINO (paper: 1).")
    ratio: float = Field(default=0.3, gt=0, le=0.9, description="Share of the patches that is hidden (paper: 0.3) ...")
    spread: float = Field(default=0.2, ge=0, le=0.9, description="... give or take, drawn for each view (paper: 0.2).")
    share: float = Field(default=0.5, gt=0, le=1, description="Of the views that have hidden patches (paper: 0.5).")
    head: Literal["shared", "own"] = Field(
        default="shared", description="What patches are told by: the head of whole views, or another (paper: shared)."
    )


def block_masks(
    count: int, grid: tuple[int, int], config: IbotConfig, generator: torch.Generator
) -> Bool[Tensor, "B h w"]:
    """Which patches of each view are hidden: rectangles, one over another, until there are enough.

    Args:
        count: Views; the share of them that has hidden patches is exact up to rounding, but at least one has, for
            without any there is no loss and no centre; which ones is random.
        grid: Rows and columns of patches.
        config: How many.
        generator: Of the draws, on the CPU.

    Reference:
        Bao et al., BEiT, ICLR 2022, algorithm 1; ratios of Zhou et al., section 4.1. Deviates: a block is no larger
        than what is left to hide, or it would be more than was drawn.
    """
    h, w = grid
    patches = h * w
    ratios = config.ratio + config.spread * (2 * torch.rand(count, generator=generator) - 1)
    wanted = (ratios * patches).round().clamp(1, patches - 1)
    chosen = torch.randperm(count, generator=generator) < max(round(config.share * count), 1)
    wanted = torch.where(chosen, wanted, 0.0)
    masks = torch.zeros(count, h, w, dtype=torch.bool)
    rows, columns = torch.arange(h), torch.arange(w)
    while True:
        left = wanted - masks.sum((1, 2))
        if not (left > 0).any():
            return masks
        area, shape, down, right = torch.rand(4, count, generator=generator)
        least = left.clamp(max=_LEAST)
        area = least + (left - least) * area
        shape = torch.exp(math.log(_SHAPE) * (2 * shape - 1))
        height = (area * shape).sqrt().round().clamp(1, h)
        # Rounded down, so that there are never more than wanted.
        width = (torch.minimum(area, left) / height).floor().clamp(1, w)
        height = torch.where(height * width > left, torch.ones(()), height)
        top, first = (down * (h - height + 1)).floor(), (right * (w - width + 1)).floor()
        in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
        in_columns = (columns >= first[:, None]) & (columns < (first + width)[:, None])
        masks |= (left > 0)[:, None, None] & in_rows[:, :, None] & in_columns[:, None, :]


def patch_weights(masks: Bool[Tensor, "B h w"]) -> Float[Tensor, "M"]:
    """What each hidden patch counts: every view that has hidden ones counts the same, the others nothing."""
    hidden = masks.flatten(1).sum(1)
    each = 1 / (hidden.clamp(min=1) * len(masks))
    return each.repeat_interleave(hidden)


def hidden_patches(masks: Bool[Tensor, "B h w"]) -> Int[Tensor, "M"]:
    """Places of the hidden patches in the flattened batch, view by view."""
    return masks.flatten().nonzero()[:, 0]


def patch_loss(
    student: Float[Tensor, "M K"],
    teacher: Float[Tensor, "M K"],
    weights: Float[Tensor, "M"],
    centre: Float[Tensor, "K"],
    student_temperature: float,
    teacher_temperature: float,
) -> Float[Tensor, ""]:
    """Cross-entropy of the student, which does not see a patch, to the teacher, which does.

    Reference:
        Zhou et al., ICLR 2022, equation 2 with section 3.2.
    """
    targets = ((teacher - centre) / teacher_temperature).softmax(-1)
    each = -(targets * (student / student_temperature).log_softmax(-1)).sum(-1)
    return (each * weights).sum()
