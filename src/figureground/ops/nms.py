"""Non-maximum suppression of masks."""

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from figureground.ops.masks import mask_iou


def matrix_nms(
    masks: Bool[Tensor, "M H W"],
    scores: Float[Tensor, "M"],
    labels: Int[Tensor, "M"] | None = None,
    kernel: Literal["gaussian", "linear"] = "gaussian",
    sigma: float = 2.0,
) -> Float[Tensor, "M"]:
    """Lower the score of each mask by how much it overlaps surer ones, all masks at once.

    Nothing is removed: the decay of a mask is the least, over all surer masks, of f(IoU with it) over f(the largest IoU
    that this surer mask has with masks surer still), f falling from 1 with the IoU.

    Args:
        masks: In any order.
        scores: Higher is surer; of equal scores the earlier mask is the surer one.
        labels: Masks of different labels do not suppress each other; none: all are of one kind.
        kernel: f(x) = exp(-sigma x^2) or 1 - x.
        sigma: Of the Gaussian kernel (SOLOv2, FreeSOLO: 2).

    Returns:
        New scores, in the order of ``masks``; none is higher than before.

    Reference:
        Wang et al., SOLOv2, NeurIPS 2020, section 3.3. Deviates: the sort is stable, and with the linear kernel a mask
        that an identical one precedes keeps 0 and not 0/0.
    """
    if len(masks) == 0:
        return scores.clone()
    order = scores.sort(descending=True, stable=True).indices
    ranked = masks[order]
    overlap = mask_iou(ranked, ranked).triu(diagonal=1)
    if labels is not None:
        overlap = overlap * (labels[order][:, None] == labels[order][None])
    # Row i: the largest overlap of mask i with a surer one; it takes the sting out of i's own suppression.
    suppressed = overlap.amax(0)[:, None]
    if kernel == "gaussian":
        # One exponential of the difference: neither factor can underflow.
        decay = torch.exp(-sigma * (overlap.square() - suppressed.square()))
    else:
        decay = (1 - overlap) / (1 - suppressed).clamp(min=torch.finfo(overlap.dtype).eps)
    # Only surer masks count; the others, and a mask itself, would give more than 1 or 1 at the least.
    decay = decay.clamp(max=1.0).amin(0).to(scores.dtype)
    lowered = torch.empty_like(scores)
    lowered[order] = scores[order] * decay
    return lowered
