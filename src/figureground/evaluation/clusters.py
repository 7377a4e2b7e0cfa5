"""How well clusters of instances go with classes, and which class an instance has by the truth."""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from sklearn.metrics import normalized_mutual_info_score

from figureground.data.truth import Annotation


def purity(clusters: Sequence[Hashable], classes: Sequence[Hashable]) -> float:
    """Share of the instances whose class is the commonest one of their cluster.

    It grows with the number of clusters: with one an instance it is 1.

    Example:
        >>> purity([1, 1, 1, 2], ["cat", "cat", "dog", "dog"])
        0.75
    """
    pairs = Counter(zip(clusters, classes, strict=True))
    largest: dict[Hashable, int] = {}
    for (cluster, _), count in pairs.items():
        largest[cluster] = max(largest.get(cluster, 0), count)
    return sum(largest.values()) / len(clusters)


def normalised_mutual_information(clusters: Sequence[int], classes: Sequence[str]) -> float:
    """Mutual information of clusters and classes over the mean of their entropies, in [0, 1]."""
    return float(normalized_mutual_info_score(classes, clusters))


def match_objects(
    instances: Sequence[Annotation], objects: Sequence[Annotation], threshold: float = 0.5
) -> list[int | None]:
    """Find the true object of each instance of an image: that of the greatest IoU.

    Masks are compared where all have one, else boxes. Two instances may have the same object.

    Args:
        instances: Found in the image.
        objects: The truth of the image.
        threshold: The least IoU.

    Returns:
        For each instance the index of its object, or ``None``.
    """
    if not instances or not objects:
        return [None] * len(instances)
    with_masks = all(each.mask is not None for each in (*instances, *objects))
    left, right = (_shapes(each, with_masks) for each in (instances, objects))
    overlaps = np.asarray(coco_mask.iou(left, right, [0] * len(objects)))
    return [int(row.argmax()) if row.max() >= threshold else None for row in overlaps]


def _shapes(annotations: Sequence[Annotation], masks: bool) -> Any:
    if masks:
        # Of a size and counts each, as pycocotools takes them.
        return [each.mask for each in annotations]
    return np.array([each.bbox for each in annotations], dtype=np.float64)
