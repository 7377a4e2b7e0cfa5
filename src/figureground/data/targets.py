"""What a detector learns from: the instances of one image, in torchvision's form."""

from typing import NotRequired, TypedDict

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from figureground.ops.masks import masks_to_boxes


class Targets(TypedDict):
    """The instances of one image, as torchvision's detectors take them; each has at least one pixel.

    Keys:
        boxes: Extents of the masks, xyxy, px, half-open.
        labels: Category ids; 1 is ``object``.
        masks: Of the size of the image.
        weights: In [0, 1]: how much each counts in the losses; the score for soft targets, else 1.
        embeddings: What each is like, for detectors that learn to say it; zeros where that is not known.
    """

    boxes: Float[Tensor, "M 4"]
    labels: Int64[Tensor, "M"]
    masks: Bool[Tensor, "M H W"]
    weights: Float[Tensor, "M"]
    embeddings: NotRequired[Float[Tensor, "M D"]]


def targets_of(
    masks: Bool[Tensor, "M H W"],
    labels: Int64[Tensor, "M"],
    weights: Float[Tensor, "M"],
    embeddings: Float[Tensor, "M D"] | None = None,
) -> Targets:
    """Targets with the boxes of their masks; masks without a pixel are left out."""
    boxes = masks_to_boxes(masks)
    kept = boxes[:, 2] > boxes[:, 0]
    if not bool(kept.all()):
        boxes, labels, masks, weights = boxes[kept], labels[kept], masks[kept], weights[kept]
        embeddings = None if embeddings is None else embeddings[kept]
    targets = Targets(boxes=boxes, labels=labels, masks=masks, weights=weights)
    if embeddings is not None:
        targets["embeddings"] = embeddings
    return targets
