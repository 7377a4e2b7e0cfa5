"""CorLoc: in how many images the surest box lies on an object."""

import numpy as np
from jaxtyping import Float

from figureground.data.truth import Annotation, AnnotationSet


def corloc(
    truth: AnnotationSet, predictions: AnnotationSet, skip_difficult: bool = False, threshold: float = 0.5
) -> Float[np.ndarray, "I"]:
    """1 for each image whose surest box has an IoU of at least ``threshold`` with any true box, else 0.

    Crowd regions are no boxes to find. An image without truth is left out; one without a prediction counts as missed.
    Of equal scores the first of the file decides.

    Args:
        truth: What is to be found.
        predictions: What was found, matched to ``truth``.
        skip_difficult: Do not count difficult objects; an image that has no other is left out.
        threshold: IoU.

    Returns:
        One value per image with truth, in the order of ``truth.images``.

    Reference:
        Deselaers et al., ECCV 2010; as evaluated by Siméoni et al., LOST, BMVC 2021. Deviates:
        ``skip_difficult`` (LOST's ``--no_hard``) does not leave out truncated objects, which COCO files do not tell.
    """
    hits = []
    for image in truth.images:
        boxes = [a.bbox for a in truth.of(image) if not (a.crowd or (skip_difficult and a.difficult))]
        if boxes:
            found = predictions.of(image)
            hits.append(bool(found) and bool((_overlaps(surest(found), boxes) >= threshold).any()))
    return np.array(hits, dtype=np.float64)


def surest(annotations: tuple[Annotation, ...]) -> Annotation:
    """The first of those that rank highest."""
    return max(annotations, key=lambda annotation: annotation.rank)


def _overlaps(one: Annotation, others: list[tuple[float, float, float, float]]) -> Float[np.ndarray, "M"]:
    boxes = np.array(others)
    x, y, width, height = one.bbox
    right = np.minimum(x + width, boxes[:, 0] + boxes[:, 2])
    bottom = np.minimum(y + height, boxes[:, 1] + boxes[:, 3])
    inside = np.maximum(right - np.maximum(x, boxes[:, 0]), 0) * np.maximum(bottom - np.maximum(y, boxes[:, 1]), 0)
    union = width * height + boxes[:, 2] * boxes[:, 3] - inside
    return np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
