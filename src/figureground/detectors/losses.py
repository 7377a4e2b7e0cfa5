"""The losses of the heads, and the two ways to weigh them that labels made by a machine call for."""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from figureground.detectors.matching import Matches

# From the predicted boxes of one image and the boxes of its objects to the weight of each prediction.
Weigh = Callable[[Float[Tensor, "R 4"], Float[Tensor, "M 4"]], Float[Tensor, "R"]]


@torch.no_grad()
def drop_loss(boxes: Float[Tensor, "R 4"], truth: Float[Tensor, "M 4"], threshold: float = 0.01) -> Float[Tensor, "R"]:
    """DropLoss: leave alone what is predicted where nothing is labelled, for it may be an object that was missed.

    Args:
        boxes: As this stage predicts them, its differences applied.
        truth: All objects of the image.
        threshold: A prediction is dropped if it overlaps no object by more (CutLER: 0.01).

    Returns:
        0 or 1, without gradient. Without any object every prediction keeps its weight: overlap then tells nothing, and
        dropping all would make the image pass unseen. Whoever does not trust an empty image leaves it out.

    Reference:
        Wang et al., CutLER, CVPR 2023, section 3.3. Deviates from the published code, which compares with the boxes
        matched to the first few proposals, some objects missing among them, and decides differently about images
        without objects at the first and at the later stages of the cascade.
    """
    if len(truth) == 0:
        return torch.ones_like(boxes[:, 0])
    return (box_iou(boxes, truth).amax(1) > threshold).to(boxes.dtype)


def soft_targets(matches: Matches, weights: Float[Tensor, "M"]) -> Float[Tensor, "R"]:
    """Weight of each box: that of its object where it stands for one, 1 where it is background.

    Args:
        matches: Of the boxes of an image.
        weights: Of its objects; a pseudo-label's score.

    Reference:
        Arica et al., CuVLER, CVPR 2024, the soft target loss. Deviates: the region proposal network is not weighted.
    """
    result = weights.new_ones(len(matches.index))
    result[matches.positive] = weights[matches.index[matches.positive]]
    return result


def classification_loss(
    logits: Float[Tensor, "R K"], labels: Int[Tensor, "R"], weights: Float[Tensor, "R"]
) -> Float[Tensor, ""]:
    """Softmax cross-entropy, weighted; the mean over all boxes, those of weight 0 included."""
    return (weights * functional.cross_entropy(logits, labels, reduction="none")).sum() / max(len(labels), 1)


def box_loss(
    deltas: Float[Tensor, "P 4"], targets: Float[Tensor, "P 4"], weights: Float[Tensor, "P"], count: int
) -> Float[Tensor, ""]:
    """L1 distance, weighted, of the boxes that stand for an object, over the count of all boxes."""
    return (weights * (deltas - targets).abs().sum(1)).sum() / max(count, 1)


def mask_loss(
    logits: Float[Tensor, "P s s"], targets: Bool[Tensor, "P s s"], weights: Float[Tensor, "P"]
) -> Float[Tensor, ""]:
    """Binary cross-entropy, the mean over each mask, weighted, and the mean over masks."""
    each = functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="none")
    return (weights * each.mean((1, 2))).sum() / max(len(each), 1)
