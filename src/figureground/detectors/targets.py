"""What a detector learns from: the objects of each image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from figureground.detectors.boxes import not_empty


class Target(TypedDict):
    """The objects of one image, none or any number, as torchvision's detectors take them."""

    boxes: Float[Tensor, "M 4"]  # xyxy, px
    labels: Int[Tensor, "M"]  # category ids, from 1
    masks: Bool[Tensor, "M H W"]
    weights: NotRequired[Float[Tensor, "M"]]  # of each object's losses; without: 1
    embeddings: NotRequired[Float[Tensor, "M E"]]  # what each object is like; for detectors that learn to say it


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """A target that was looked over.

    Attributes:
        boxes: xyxy, in pixels, none of them empty.
        labels: Categories from 0.
        masks: At the size of the image.
        weights: What the losses of each object are multiplied by.
        embeddings: What each object is like, where that is known.
    """

    boxes: Float[Tensor, "M 4"]
    labels: Int[Tensor, "M"]
    masks: Bool[Tensor, "M H W"]
    weights: Float[Tensor, "M"]
    embeddings: Float[Tensor, "M E"] | None = None


def check_targets(targets: Sequence[Target] | None, sizes: Sequence[tuple[int, int]], categories: int) -> list[Truth]:
    """Look targets over, so that a wrong one is an error and not a loss of NaN.

    Raises:
        ValueError: If there is not one for each image, a shape or size disagrees, a box is empty, or a label is none
            of the categories.
    """
    if targets is None or len(targets) != len(sizes):
        raise ValueError(f"Training needs a target for each of {len(sizes)} images.")
    pairs = zip(targets, sizes, strict=True)
    return [_check(target, size, categories, image) for image, (target, size) in enumerate(pairs)]


def _check(target: Target, size: tuple[int, int], categories: int, image: int) -> Truth:
    boxes, labels, masks = target["boxes"].float(), target["labels"].long(), target["masks"]
    weights = target["weights"].float() if "weights" in target else torch.ones_like(boxes[:, 0])
    count = len(boxes)
    if boxes.shape != (count, 4) or masks.shape != (count, *size) or {len(labels), len(weights)} != {count}:
        raise ValueError(
            f"The target of image {image} of {size} does not fit together: boxes {tuple(boxes.shape)}, labels "
            f"{tuple(labels.shape)}, masks {tuple(masks.shape)}, weights {tuple(weights.shape)}."
        )
    if masks.dtype != torch.bool:
        raise ValueError(f"The masks of image {image} are {masks.dtype}, not booleans.")
    if not bool(not_empty(boxes).all()):
        raise ValueError(f"The target of image {image} has an empty box: {boxes[~not_empty(boxes)][0].tolist()}.")
    if not bool(((labels >= 1) & (labels <= categories)).all()):
        raise ValueError(f"The labels of image {image} are not all in 1 to {categories}: {labels.tolist()}.")
    embeddings = target.get("embeddings")
    if embeddings is not None and len(embeddings) != count:
        raise ValueError(f"The target of image {image} has {count} objects and {len(embeddings)} embeddings.")
    return Truth(boxes, labels - 1, masks, weights, embeddings)
