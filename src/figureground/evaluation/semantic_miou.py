"""Mean IoU of classes that were found without names: each cluster stands for the class it fits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int64, Integer
from scipy import sparse
from scipy.optimize import linear_sum_assignment

Criterion = Literal["iou", "pixels"]


@dataclass(frozen=True, slots=True)
class SemanticScores:
    """How well pixels were told apart; shares in [0, 1].

    Attributes:
        miou: Mean over the classes that have an IoU; ``None`` where none has.
        per_class: IoU of each class; ``None`` for one that is neither in the truth nor predicted.
        accuracy: Share of the pixels with the right class; ``None`` where there is no pixel.
    """

    miou: float | None
    per_class: tuple[float | None, ...]
    accuracy: float | None


def confusion_matrix(
    predicted: Integer[np.ndarray, "*shape"],
    truth: Integer[np.ndarray, "*shape"],
    clusters: int,
    classes: int,
    ignore: int = 255,
) -> Int64[np.ndarray, "clusters classes"]:
    """Count the pixels of each cluster in each class; the counts of images add up.

    Args:
        predicted: Cluster of each pixel, from 0.
        truth: Class of each, from 0, or ``ignore``.
        clusters: How many there are.
        classes: Likewise.
        ignore: Label of pixels that do not count, whatever was predicted there (PASCAL VOC: 255).

    Raises:
        ValueError: If a label that counts is out of range.
    """
    counted = truth != ignore
    rows, columns = predicted[counted].astype(np.int64), truth[counted].astype(np.int64)
    for name, labels, count in (("cluster", rows, clusters), ("class", columns, classes)):
        if labels.size and not 0 <= labels.min() <= labels.max() < count:
            raise ValueError(f"There are {count} of them, but a {name} label is {labels.min()} or {labels.max()}.")
    return np.bincount(rows * classes + columns, minlength=clusters * classes).reshape(clusters, classes)


def match_clusters(confusion: Integer[np.ndarray, "clusters classes"], by: Criterion = "iou") -> tuple[int | None, ...]:
    """Match clusters with classes one to one, so that the sum of what they have in common is greatest.

    Args:
        confusion: Pixels of each cluster in each class.
        by: What is summed: the IoU of cluster and class (MaskContrast), or common pixels (accuracy's optimum).

    Returns:
        The class of each cluster; ``None`` for those left over where clusters outnumber classes.

    Reference:
        Kuhn, The Hungarian method for the assignment problem, 1955; Van Gansbeke et al., ICCV 2021, section 4.1.
    """
    common = confusion.astype(np.float64)
    if by == "iou":
        union = common.sum(1, keepdims=True) + common.sum(0, keepdims=True) - common
        common = common / np.maximum(union, 1)
    matched: list[int | None] = [None] * len(confusion)
    for cluster, found in zip(*linear_sum_assignment(common, maximize=True), strict=True):
        matched[int(cluster)] = int(found)
    return tuple(matched)


def majority_classes(confusion: Integer[np.ndarray, "clusters classes"]) -> tuple[int | None, ...]:
    """Match each cluster with the class of most of its pixels, many to one: for more clusters than classes.

    Returns:
        The class of each cluster, of several as frequent the first; ``None`` for a cluster without pixels. The more
        clusters, the better the score: never compare it with that of :func:`match_clusters`.
    """
    return tuple(int(row.argmax()) if row.any() else None for row in confusion)


def semantic_scores(
    confusion: Integer[np.ndarray, "clusters classes"], matched: Sequence[int | None]
) -> SemanticScores:
    """Measure a segmentation whose clusters stand for classes.

    Pixels of a cluster that stands for no class are wrong: missing in their class, and too many in none.

    Args:
        confusion: Pixels of each cluster in each class, of all images together.
        matched: Class of each cluster.
    """
    classes = confusion.shape[1]
    # Pixels predicted as each class, in each class.
    merged = np.zeros((classes, classes), dtype=np.int64)
    for row, found in zip(confusion, matched, strict=True):
        if found is not None:
            merged[found] += row
    right, true = merged.diagonal(), confusion.sum(0)
    union = merged.sum(1) + true - right
    per_class = tuple(int(r) / int(u) if u else None for r, u in zip(right, union, strict=True))
    known = [value for value in per_class if value is not None]
    return SemanticScores(
        miou=sum(known) / len(known) if known else None,
        per_class=per_class,
        accuracy=int(right.sum()) / int(true.sum()) if true.any() else None,
    )


class ImageConfusions:
    """The confusion matrices of images, kept apart so that images can be drawn anew; most of a matrix is zero.

    Args:
        images: Number of images.
        clusters: Number of clusters.
        classes: Number of classes.
    """

    def __init__(self, images: int, clusters: int, classes: int) -> None:
        self._shape, self._images = (clusters, classes), images
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(
        self,
        images: Integer[np.ndarray, "R"],
        clusters: Integer[np.ndarray, "R"],
        counts: Integer[np.ndarray, "R classes"],
    ) -> None:
        """Count pixels.

        Args:
            images: Of each row.
            clusters: Likewise.
            counts: Pixels of each class.
        """
        rows, columns = counts.nonzero()
        self._parts.append((images[rows], clusters[rows] * self._shape[1] + columns, counts[rows, columns]))

    def total(self) -> Int64[np.ndarray, "clusters classes"]:
        """That of all images."""
        total = np.zeros(self._shape[0] * self._shape[1], dtype=np.int64)
        for _, places, counts in self._parts:
            np.add.at(total, places, counts)
        return total.reshape(self._shape)

    def resampled(self, draws: Integer[np.ndarray, "S I"], matched: Sequence[int | None]) -> Float64[np.ndarray, "S"]:
        """The mean IoU of images drawn anew.

        Clusters stand for what they stood for: matched anew to each draw, which has fewer different images, they would
        fit it better than all images, and the interval might leave the measure itself out.

        Args:
            draws: How often each image is drawn, by :func:`~figureground.evaluation.bootstrap.resample`.
            matched: Class of each cluster.

        Returns:
            NaN where no class has an IoU.
        """
        images, places, counts = (np.concatenate(part) for part in zip(*self._parts, strict=True))
        shape = (self._images, self._shape[0] * self._shape[1])
        matrix: Any = sparse.csr_matrix((counts.astype(np.int64), (images, places)), shape=shape)
        values = np.full(len(draws), np.nan)
        for index, weights in enumerate(draws):
            miou = semantic_scores((weights.astype(np.int64) @ matrix).reshape(self._shape), matched).miou
            values[index] = np.nan if miou is None else miou
        return values
